"""Time draft steps at real sizes on a GPU, one shape a call; docs/gpu.md has the commands.

python -m tests.benchmarks.gpu_suite --output DIR --shape llama-3.2-1b [--seconds 8] [--minutes 9]
python -m tests.benchmarks.gpu_suite --output DIR --live-loop
python -m tests.benchmarks.gpu_suite --output DIR --draw

Steps: random weights; bf16, fp8, int8, int4, heads in 8 bits, over batch and context, and with the
first shape the target's passes over 1 to 9 tokens. Recorded as CUDA graphs, in turns. The live
loop with recorded graphs is held against the same loop run eagerly: the same text.

A call ends by its own clock, with exit code 3 while points are missing; the same command goes on at
the next part. DIR then holds a file for each shape and those of the machine: all that a call needs
of those before it (`--from` copies it from elsewhere). The record is DIR/SHAPE/bench.json; its
pages are drawn later, where the packages for it are. `--dry-run` does the same on any device with
the embedded draft's small shape: it proves that the suite runs, and its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from quantdraft.checkpoints.checkpoint import Checkpoint, open_checkpoint
from quantdraft.checkpoints.reference import pair_dir
from quantdraft.checkpoints.shapes import shape_checkpoint
from quantdraft.common.files import write_json
from quantdraft.engines.native.weight_sources import RandomWeights, Weight, WeightSource
from quantdraft.errors import UndefinedMetricError
from quantdraft.judge.comparison.speeds import with_step_speedups
from quantdraft.measure.latency.loaded import BASELINE, CONTROL, TARGET
from quantdraft.quantize.recipe import load_recipe
from quantdraft.record import Bench, read_bench
from quantdraft.record.provenance import environment
from quantdraft.workflows.bench import BenchSettings, Contenders, measure_bench
from tests.benchmarks.gpu_loop import live_loop
from tests.benchmarks.gpu_parts import (
    TO_BE_CONTINUED,
    OutOfTime,
    Parts,
    copy_earlier,
    device_of,
    machine,
    run_plainly,
)

SHAPES = ("llama-3.2-1b", "qwen3-0.6b", "qwen3-1.7b")
TARGET_SHAPE = "llama-3.1-8b"
DRY_SHAPE = "embedded-draft"
RECIPES = ("fp8", "fp8-head8", "fp8-block", "int8", "int8-head8", "int4", "int4-head8")
BATCH_SIZES, CONTEXTS = (1, 4, 16, 64), (512, 4096)
# What a good engine reaches at Llama-3.2-1B's shape and batch 1; see the H200 record.
GOALS = {"fp8": 1.4, "int4": 1.7, "int4-head8": 2.2}
MIN_BANDWIDTH_FRACTION = 0.7


def main() -> int:
    """Do one part of the suite, write and print the summary, and return the exit code."""
    options = parsed()
    options.output.mkdir(parents=True, exist_ok=True)
    copy_earlier(options.earlier, options.output)
    if options.draw:
        draw(options.output)
        return 0
    os.environ.setdefault("QUANTDRAFT_CHOICES", str(options.output / "choices"))
    device = device_of(options.device, options.dry_run)
    options.device = str(device)
    if options.cudnn_attention:
        torch.backends.cuda.enable_cudnn_sdp(True)
    name = DRY_SHAPE if options.dry_run else options.shape
    shape = open_checkpoint(pair_dir() / "draft") if options.dry_run else shape_checkpoint(name)
    if options.live_loop:
        write_json(options.output / "live-loop.json", live_loop(shape, device))
    elif measured(*what_to_time(options, name, shape, device), options) is None:
        return TO_BE_CONTINUED
    found = summary(options.output, device, options.dry_run)
    write_json(options.output / "suite.json", found)
    print(json.dumps(found))
    return 0


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--from", dest="earlier", type=Path, help="what an earlier call left")
    parser.add_argument("--shape", choices=SHAPES, default=SHAPES[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="a point (batch, context)")
    parser.add_argument("--minutes", type=float, default=9.0, help="of this call")
    parser.add_argument("--without", nargs="+", default=[], choices=RECIPES, metavar="RECIPE")
    parser.add_argument("--cudnn-attention", action="store_true", help="let torch choose cuDNN's")
    parser.add_argument("--live-loop", action="store_true", help="the live loop, no steps")
    parser.add_argument("--draw", action="store_true", help="the pages of all records in DIR")
    parser.add_argument("--device", default=None)
    parser.add_argument("--dry-run", action="store_true")
    return parser.parse_args()


def what_to_time(
    options: argparse.Namespace, name: str, shape: Checkpoint, device: torch.device
) -> tuple[BenchSettings, Contenders]:
    """The settings and the arms of one shape."""
    settings = BenchSettings(
        shape=name,
        recipes=RECIPES,
        batch_sizes=(1, 2) if options.dry_run else BATCH_SIZES,
        context_lengths=(16,) if options.dry_run else CONTEXTS,
        new_tokens=tuple(range(1, 10)),
        seconds=options.seconds,
        device=str(device),
        mode="eager" if device.type == "cpu" else "auto",
    )
    # One target is enough: its passes do not depend on the draft.
    target = None
    if options.dry_run:
        target = open_checkpoint(pair_dir() / "target")
    elif name == SHAPES[0]:
        target = shape_checkpoint(TARGET_SHAPE)
    return settings, contenders_of(name, shape, target, options.without)


@dataclass(frozen=True)
class LeftOut(RandomWeights):
    """An arm that is not to be timed, and says so where its weights are asked for."""

    def weight(self, module: str) -> Weight:
        """Raise UndefinedMetricError."""
        raise UndefinedMetricError("left out by --without")


def contenders_of(
    name: str, shape: Checkpoint, target: Checkpoint | None, without: Sequence[str] = ()
) -> Contenders:
    """The arms: random weights in the shape, quantized as each recipe would."""
    sources: dict[str, WeightSource] = {BASELINE: RandomWeights(shape, None)}
    for recipe in RECIPES:
        kind = LeftOut if recipe in without else RandomWeights
        sources[recipe] = kind(shape, load_recipe(recipe))
    if target is not None:
        sources[TARGET] = RandomWeights(target, None, seed=1)
    return Contenders(name, sources | {CONTROL: RandomWeights(shape, None)})


def measured(
    settings: BenchSettings, contenders: Contenders, options: argparse.Namespace
) -> Bench | None:
    """The shape's bench, now or from an earlier call; None where this call's time is over."""
    directory = options.output / contenders.name
    record = directory / "bench.json"
    if record.exists():
        print(f"{record} is finished; to measure again, delete it")
        return read_bench(record)
    directory.mkdir(exist_ok=True)
    inputs = asdict(settings) | {
        "cudnn": options.cudnn_attention,
        "machine": machine(torch.device(str(settings.device))),
    }
    kept = Parts(directory, inputs, 60 * options.minutes)
    try:
        bench = measure_bench(settings, contenders, kept.keep)
    except OutOfTime:
        print(f"{contenders.name}: {len(kept.parts)} parts are measured; run the command again")
        return None
    write_json(record, bench)
    kept.path.unlink()
    return bench


def summary(output: Path, device: torch.device, is_dry_run: bool) -> dict[str, Any]:
    """What all calls so far have found."""
    benches = {path.parent.name: read_bench(path) for path in sorted(output.glob("*/bench.json"))}
    loop = output / "live-loop.json"
    return {
        "environment": environment(str(device)),
        "is_dry_run": is_dry_run,
        "shapes": {name: sums(bench) for name, bench in benches.items()},
        "goals": goals(benches.get(DRY_SHAPE if is_dry_run else SHAPES[0])),
        "live_loop": json.loads(loop.read_text(encoding="utf-8")) if loop.is_file() else None,
    }


def draw(output: Path) -> None:
    """Draw the pages of every record, where the packages for it are installed."""
    from quantdraft.judge.analysis import analysed_bench
    from quantdraft.report import write_bench_pages

    for record in sorted(output.glob("*/bench.json")):
        write_bench_pages(analysed_bench(read_bench(record)), record.parent)
        print(f"Report: {record.parent / 'bench.html'}")


def sums(bench: Bench) -> list[dict[str, Any]]:
    """One row a point: every draft's step, its ratio to the baseline's, its share of the limit."""
    return [
        {
            "batch_size": point.batch_size,
            "context_length": point.context_length,
            "steps": {
                name: asdict(with_step_speedups(point).figures(name))
                for name in point.arms
                if name != TARGET
            },
            "undefined": point.undefined,
        }
        for point in bench.points
    ]


def goals(bench: Bench | None) -> dict[str, Any] | None:
    """Which goals are met at batch 1 and the shortest context; None without that shape."""
    if bench is None:
        return None
    point = bench.points[0]
    found: dict[str, Any] = {}
    if BASELINE in point.arms:
        fraction = with_step_speedups(point).figures(BASELINE).bandwidth_fraction
        found[BASELINE] = {
            "bandwidth_fraction": fraction,
            "goal": MIN_BANDWIDTH_FRACTION,
            "is_met": None if fraction is None else fraction >= MIN_BANDWIDTH_FRACTION,
        }
    for name, goal in GOALS.items():
        ratio = with_step_speedups(point).figures(name).ratio if name in point.arms else None
        found[name] = {
            "ratio": None if ratio is None else asdict(ratio),
            "goal": goal,
            "is_met": None if ratio is None else ratio.value >= goal,
        }
    return found


if __name__ == "__main__":
    run_plainly(main)
