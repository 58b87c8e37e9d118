"""demo: every step of the path on the embedded pair, with one page of output."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from quantdraft.checkpoints.reference import pair_dir
from quantdraft.checkpoints.tensors.devices import pick_device
from quantdraft.common.files import whole_directory
from quantdraft.engines.native.session import live_mode
from quantdraft.errors import OutputExistsError
from quantdraft.measure.capture import capture
from quantdraft.measure.settings import (
    CaptureSettings,
    EvaluateSettings,
    ModelSettings,
    SharedSettings,
    TimingSettings,
    TrafficSettings,
)
from quantdraft.quantize.apply import apply
from quantdraft.quantize.calibration import taking_all
from quantdraft.quantize.recipe import Recipe, load_recipe
from quantdraft.record import RECORD_FILE, Evaluation, read_evaluation
from quantdraft.record.choices import ModeChoice
from quantdraft.record.wording import counted
from quantdraft.report import render_comparison
from quantdraft.report.sections.headline import sentence
from quantdraft.traffic.traffic import Sampling
from quantdraft.workflows.check import check
from quantdraft.workflows.compare import compare
from quantdraft.workflows.evaluate import evaluate
from quantdraft.workflows.export.export import ExportSettings, export
from quantdraft.workflows.select.select import SelectSettings, select
from quantdraft.workflows.select.view import selection_text

RECIPES = ("identity", "fp8", "int8", "int4", "int4-gptq")
KS = tuple(range(1, 9))
DRAFTS, SELECT_RECIPE = ("draft", "draft-shallow", "draft-library"), "int4"
NUM_TOKENS = 128
LATENCY_SECONDS = 5.0
LIVE_PROMPTS = 2
PROMPTS = {"prompts": "evaluation", "calibration": "calibration, of other files"}

Say = Callable[[str], None]


def demo(
    output: Path,
    names: Sequence[str] = (),
    *,
    num_prompts: int = 32,
    force: bool = False,
    say: Say = lambda line: None,
) -> list[Evaluation]:
    """Apply and evaluate several recipes on the embedded pair, compare them, export the best.

    Everything lands in `output`; a demo that was killed goes on where it stopped.
    """
    started = time.monotonic()
    _open_output(output, force)
    recipes = [load_recipe(name) for name in names or RECIPES]
    target, draft = str(_pair() / "target"), str(_pair() / "draft")

    say(f"1. check: does the draft fit the target?  {check(target, draft).lines()[-1]}")
    traffic = {name: _capture(output, name, target, num_prompts, say) for name in PROMPTS}
    for number, recipe in enumerate(recipes, 3):
        say(f"{number}. {recipe.name}: {recipe.summary}")
        _measure(output, recipe, target, draft, traffic, say)
    runs = [output / "runs" / recipe.name for recipe in recipes]
    say("")
    say(render_comparison(compare(runs, output / "comparison", force=True)))
    say("")
    _select(output, target, traffic["prompts"], runs, say)
    evaluations = [read_evaluation(run_dir / RECORD_FILE) for run_dir in runs]
    _export_best(evaluations, output, target, say)
    _say_where(output, runs[-1], time.monotonic() - started, say)
    return evaluations


def write_inputs(output: Path, *, force: bool = False) -> list[Path]:
    """Copy the embedded pair to a directory: target, drafts, prompts and calibration texts.

    Returns what lies there. Raises OutputExistsError where the directory exists, without `force`.
    """
    with whole_directory(output, force) as staging:
        for name in ("target", *DRAFTS):
            shutil.copytree(pair_dir() / name, staging / name)
        for name in PROMPTS:
            shutil.copy(pair_dir() / f"{name}.jsonl", staging)
    return sorted(output.iterdir())


def _open_output(output: Path, force: bool) -> None:
    if (output / "comparison").exists():
        if not force:
            raise OutputExistsError(
                f"'{output}' holds a finished demo. Give another --output, or --force."
            )
        shutil.rmtree(output)


def _capture(output: Path, name: str, target: str, num_prompts: int, say: Say) -> Path:
    """Return the file of the target's greedy responses to one of the embedded sets of prompts."""
    path = output / f"traffic-{name}.jsonl"
    if not path.exists():
        traffic = capture(
            CaptureSettings(
                target,
                _pair() / f"{name}.jsonl",
                path,
                sampling=Sampling(),
                max_new_tokens=NUM_TOKENS,
                batch_size=16,
                limit=num_prompts,
            )
        )
        size = (
            f"{counted(len(traffic.responses), 'prompt')}, {counted(traffic.num_tokens, 'token')}"
        )
        say(f"2. capture: the target's own responses for {PROMPTS[name]}: {size}")
    return path


def _pair() -> Path:
    """Return the directory of the embedded pair, as a short path where there is one."""
    here = Path.cwd()
    return pair_dir().relative_to(here) if pair_dir().is_relative_to(here) else pair_dir()


def _measure(
    output: Path, recipe: Recipe, target: str, draft: str, traffic: dict[str, Path], say: Say
) -> None:
    """Apply a recipe and evaluate its candidate, unless that was done before; say the verdict."""
    candidate, run_dir = output / "candidates" / recipe.name, output / "runs" / recipe.name
    if not candidate.exists():
        apply(taking_all(recipe), draft, candidate, calibration=traffic["calibration"])
    if not (run_dir / RECORD_FILE).exists():
        evaluate(_settings(candidate, target, draft, traffic["prompts"], run_dir))
    verdict = read_evaluation(run_dir / RECORD_FILE).verdict
    say(f"   {verdict.decision}: {sentence(verdict)}")


def _settings(
    candidate: Path, target: str, draft: str, traffic: Path, run_dir: Path
) -> EvaluateSettings:
    return EvaluateSettings(
        models=ModelSettings(str(candidate), target, draft),
        traffic=TrafficSettings(traffic),
        ks=KS,
        timing=TimingSettings(latency_seconds=LATENCY_SECONDS, mode=_mode()),
        live_prompts=LIVE_PROMPTS,
        output=run_dir,
    )


def _select(output: Path, target: str, traffic: Path, runs: Sequence[Path], say: Say) -> None:
    """Choose among the embedded drafts: one is shallower, one has seen other texts.

    What the demo measured already is taken as it is, so that no recipe has two verdicts.
    """
    say(f"Choosing among {len(DRAFTS)} drafts, as they are and in {SELECT_RECIPE}:")
    found = select(
        SelectSettings(
            target=target,
            drafts=tuple(str(_pair() / name) for name in DRAFTS),
            recipes=(SELECT_RECIPE,),
            traffic_path=traffic,
            runs=tuple(runs),
            output=output / "selection",
            evaluations=SharedSettings(
                ks=KS,
                timing=TimingSettings(latency_seconds=LATENCY_SECONDS, mode=_mode()),
                live_prompts=0,
            ),
        ),
        lambda line: say(f"  {line}"),
    )
    say(selection_text(found))
    say("")


def _mode() -> ModeChoice:
    """Return the mode of the steps; on a CPU without a trial, which would take longer than all."""
    device = pick_device()
    return live_mode(device) if device.type == "cpu" else "auto"


def _export_best(evaluations: list[Evaluation], output: Path, target: str, say: Say) -> None:
    """Export the fastest recipe; unless it is a go, the export says loudly that it is none."""
    speeds = {
        each.name: speedup.value
        for each in evaluations
        if (speedup := each.operating_point.speedup_over_baseline) and not each.verdict.is_control
    }
    if not speeds:
        say("Nothing is exported: no recipe could be timed on this machine.")
        return
    best = max(speeds, key=lambda name: speeds[name])
    exported = export(
        ExportSettings(
            output / "candidates" / best,
            "vllm",
            output / "export",
            target=target,
            run=output / "runs" / best,
            force=True,
        )
    )
    say(f"Export of the fastest, {best}:")
    for line in exported.lines:
        say(f"  {line}")


def _say_where(output: Path, run_dir: Path, seconds: float, say: Say) -> None:
    say("")
    say(f"Report:     {output / 'comparison' / 'report.html'}")
    say(f"Choice:     {output / 'selection' / 'report.html'}")
    say(f"One recipe: {run_dir / 'report.html'} (beside it: evaluation.json, the record)")
    say(f"Took {seconds:.0f} s.")
