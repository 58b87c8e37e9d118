"""The types of the names that `__init__.py` imports on demand."""

from quantdraft.checkpoints.checkpoint import Checkpoint as Checkpoint
from quantdraft.common.progress import show_progress as show_progress
from quantdraft.engines.serving_settings import ServingSettings as ServingSettings
from quantdraft.errors import QuantDraftError as QuantDraftError
from quantdraft.measure.capture import capture as capture
from quantdraft.measure.settings import CaptureSettings as CaptureSettings
from quantdraft.measure.settings import EvaluateSettings as EvaluateSettings
from quantdraft.measure.settings import ModelSettings as ModelSettings
from quantdraft.measure.settings import SharedSettings as SharedSettings
from quantdraft.measure.settings import TimingSettings as TimingSettings
from quantdraft.measure.settings import TrafficSettings as TrafficSettings
from quantdraft.quantize.apply import apply as apply
from quantdraft.quantize.recipe import Recipe as Recipe
from quantdraft.quantize.recipe import load_recipe as load_recipe
from quantdraft.quantize.training.settings import TrainingSettings as TrainingSettings
from quantdraft.record import Bench as Bench
from quantdraft.record import ComparedRuns as ComparedRuns
from quantdraft.record import Evaluation as Evaluation
from quantdraft.record import Interval as Interval
from quantdraft.record import Verdict as Verdict
from quantdraft.traffic.contents import Contents as Contents
from quantdraft.traffic.split import split_traffic as split_traffic
from quantdraft.traffic.traffic import Sampling as Sampling
from quantdraft.traffic.traffic import Traffic as Traffic
from quantdraft.workflows.bench import BenchSettings as BenchSettings
from quantdraft.workflows.bench import bench as bench
from quantdraft.workflows.check import Preflight as Preflight
from quantdraft.workflows.check import check as check
from quantdraft.workflows.compare import compare as compare
from quantdraft.workflows.distill import DistillSettings as DistillSettings
from quantdraft.workflows.distill import distill as distill
from quantdraft.workflows.evaluate import evaluate as evaluate
from quantdraft.workflows.export.export import ExportSettings as ExportSettings
from quantdraft.workflows.export.export import export as export
from quantdraft.workflows.plan.plan import Plan as Plan
from quantdraft.workflows.plan.plan import PlanSettings as PlanSettings
from quantdraft.workflows.plan.plan import plan as plan
from quantdraft.workflows.report import read_run as read_run
from quantdraft.workflows.select.select import SelectSettings as SelectSettings
from quantdraft.workflows.select.select import select as select
from quantdraft.workflows.sweep.grid import SweepSettings as SweepSettings
from quantdraft.workflows.sweep.sweep import sweep as sweep
from quantdraft.workflows.traffic import describe_traffic as describe_traffic

__version__: str
