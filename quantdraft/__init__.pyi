"""The types of the names that `__init__.py` imports on demand."""

from quantdraft.checkpoints.checkpoint import Checkpoint as Checkpoint
from quantdraft.common.progress import progress as progress
from quantdraft.engines.serving_settings import ServingSettings as ServingSettings
from quantdraft.errors import QuantDraftError as QuantDraftError
from quantdraft.measure.capture import capture as capture
from quantdraft.measure.settings import CaptureSettings as CaptureSettings, EvaluateSettings as EvaluateSettings, ModelSettings as ModelSettings, TimingSettings as TimingSettings, TrafficSettings as TrafficSettings
from quantdraft.quantize.apply import apply as apply
from quantdraft.quantize.recipe import Recipe as Recipe, load_recipe as load_recipe
from quantdraft.record import Bench as Bench, Evaluation as Evaluation, Interval as Interval, SideBySide as SideBySide, Verdict as Verdict
from quantdraft.traffic.traffic import Sampling as Sampling, Traffic as Traffic
from quantdraft.workflows.bench import BenchSettings as BenchSettings, bench as bench
from quantdraft.workflows.check import Preflight as Preflight, check as check
from quantdraft.workflows.compare import compare as compare
from quantdraft.workflows.evaluate import evaluate as evaluate
from quantdraft.workflows.export.export import ExportSettings as ExportSettings, export as export
from quantdraft.workflows.plan.plan import Plan as Plan, PlanSettings as PlanSettings, plan as plan
from quantdraft.workflows.report import read_run as read_run
from quantdraft.workflows.select.select import SelectSettings as SelectSettings, select as select
from quantdraft.workflows.sweep.grid import SweepSettings as SweepSettings
from quantdraft.workflows.sweep.sweep import sweep as sweep

__version__: str
