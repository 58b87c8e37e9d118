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
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from quantdraft.checkpoints.checkpoint import Checkpoint, open_checkpoint
from quantdraft.checkpoints.reference import pair_dir
from quantdraft.checkpoints.shapes import shape_checkpoint
from quantdraft.checkpoints.tensors.devices import pick_device
from quantdraft.common.files import write_json, write_text
from quantdraft.common.resume import key_of
from quantdraft.engines.native.model import load_native
from quantdraft.engines.native.session import Session, modes
from quantdraft.engines.native.weight_sources import RandomWeights, WeightSource
from quantdraft.errors import NoKernelError
from quantdraft.judge.comparison.speeds import with_step_speedups
from quantdraft.measure.latency.loaded import BASELINE, CONTROL, TARGET
from quantdraft.measure.latency.timing_plan import Place
from quantdraft.measure.speculation import speculate
from quantdraft.measure.verification import RoundPlan
from quantdraft.quantize.recipe import load_recipe
from quantdraft.record import Bench, Latency, read_bench
from quantdraft.record.provenance import environment
from quantdraft.traffic.traffic import Sampling
from quantdraft.workflows.bench import BenchSettings, Contenders, measure_bench

SHAPES = ("llama-3.2-1b", "qwen3-0.6b", "qwen3-1.7b")
TARGET_SHAPE = "llama-3.1-8b"
DRY_SHAPE = "embedded-draft"
TO_BE_CONTINUED = 3  # exit code
PART = TypeAdapter(Latency)
RECIPES = ("fp8", "fp8-head8", "int8", "int8-head8", "int4", "int4-head8")
BATCH_SIZES, CONTEXTS = (1, 4, 16, 64), (512, 4096)
# What a good engine reaches at Llama-3.2-1B's shape and batch 1; see the H200 record.
GOALS = {"fp8": 1.4, "int4": 1.7, "int4-head8": 2.2}
MIN_BANDWIDTH_FRACTION = 0.7


def main() -> None:
    """Do one part of the suite, write and print the summary, and exit."""
    options = parsed()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.draw:
        draw(options.output)
        return
    if options.earlier is not None:
        shutil.copytree(options.earlier, options.output, dirs_exist_ok=True)
    os.environ.setdefault("QUANTDRAFT_CHOICES", str(options.output / "choices"))
    device = pick_device(options.device)
    if options.cudnn_attention:
        torch.backends.cuda.enable_cudnn_sdp(True)
    name = DRY_SHAPE if options.dry_run else options.shape
    shape = open_checkpoint(pair_dir() / "draft") if options.dry_run else shape_checkpoint(name)
    if options.live_loop:
        write_json(options.output / "live-loop.json", live_loop(shape, device))
    elif measured(*what_to_time(options, name, shape, device), options) is None:
        sys.exit(TO_BE_CONTINUED)
    found = summary(options.output, device, options.dry_run)
    write_json(options.output / "suite.json", found)
    print(json.dumps(found))


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
    recipes = tuple(recipe for recipe in RECIPES if recipe not in options.without)
    settings = BenchSettings(
        shape=name,
        recipes=recipes,
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
    return settings, contenders_of(name, shape, target, recipes)


class OutOfTime(Exception):
    """The next part may not end before the call has to."""


class Parts:
    """The measured parts of one shape in one file, and the clock of a call.

    A machine may hand back only a few files, so no part has a file of its own.
    """

    def __init__(self, path: Path, inputs: dict[str, Any], seconds: float) -> None:
        self.path, self.key = path, key_of(inputs)
        self.ends, self.longest_s = time.monotonic() + seconds, 0.0
        self.parts: dict[str, Any] = {}
        if path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            self.parts = kept["parts"] if kept["key"] == self.key else {}

    def keep(self, place: Place, measure: Callable[[], Latency]) -> Latency:
        """Return a part that an earlier call measured, or measure and write it now."""
        name = "-".join(map(str, place))
        if name in self.parts:
            return PART.validate_python(self.parts[name])
        if time.monotonic() + self.longest_s > self.ends:
            raise OutOfTime
        started = time.monotonic()
        part = measure()
        self.longest_s = max(self.longest_s, time.monotonic() - started)
        self.parts[name] = PART.dump_python(part, mode="json")
        write_text(self.path, json.dumps({"key": self.key, "parts": self.parts}))
        return part


def contenders_of(
    name: str, shape: Checkpoint, target: Checkpoint | None, recipes: tuple[str, ...] = RECIPES
) -> Contenders:
    """The arms: random weights in the shape, quantized as each recipe would."""
    sources: dict[str, WeightSource] = {BASELINE: RandomWeights(shape, None)}
    sources |= {recipe: RandomWeights(shape, load_recipe(recipe)) for recipe in recipes}
    if target is not None:
        sources[TARGET] = RandomWeights(target, None, seed=1)
    return Contenders(name, sources | {CONTROL: RandomWeights(shape, None)})


def measured(
    settings: BenchSettings, contenders: Contenders, options: argparse.Namespace
) -> Bench | None:
    """The shape's bench, now or from an earlier call; None where this call's time is over."""
    directory = options.output / contenders.name
    record, parts = directory / "bench.json", directory / "parts.json"
    if record.exists():
        return read_bench(record)
    directory.mkdir(exist_ok=True)
    inputs = asdict(settings) | {"cudnn": options.cudnn_attention}
    kept = Parts(parts, json.loads(json.dumps(inputs, default=str)), 60 * options.minutes)
    try:
        bench = measure_bench(settings, contenders, kept.keep)
    except OutOfTime:
        print(f"{contenders.name}: {len(kept.parts)} parts are measured; run the command again")
        return None
    write_json(record, bench)
    parts.unlink()
    return bench


def summary(output: Path, device: torch.device, is_dry_run: bool) -> dict[str, Any]:
    """What all calls so far have found."""
    benches = {path.parent.name: read_bench(path) for path in sorted(output.glob("*/bench.json"))}
    loop = output / "live-loop.json"
    return {
        "environment": environment(str(device)),
        "is_dry_run": is_dry_run,
        "shapes": {name: sums(bench) for name, bench in benches.items()},
        "goals": goals(benches.get("llama-3.2-1b")),
        "live_loop": json.loads(loop.read_text(encoding="utf-8")) if loop.is_file() else None,
    }


def draw(output: Path) -> None:
    """Draw the pages of every record, where the packages for it are installed."""
    from quantdraft.report import write_bench_pages
    from quantdraft.workflows.report import read_shown

    for record in sorted(output.glob("*/bench.json")):
        write_bench_pages(read_shown(record), record.parent)
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


def live_loop(shape: Checkpoint, device: torch.device) -> dict[str, Any]:
    """The loop in the device's own mode and eagerly: texts and rounds must be the same."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    target = load_native(RandomWeights(shape, None), dtype, device)
    prompts = [list(range(1, 20)), list(range(5, 12))]
    found: dict[str, Any] = {}
    for recipe in ("int4", "fp8"):
        try:
            draft = load_native(RandomWeights(shape, load_recipe(recipe)), dtype, device)
        except NoKernelError as error:
            found[recipe] = {"undefined": str(error)}
            continue
        texts = {}
        for mode in dict.fromkeys((modes(target, device)[0], "eager")):
            sessions = [Session(native, len(prompts), 96, mode) for native in (target, draft)]
            batch = speculate(
                *sessions,
                prompts=prompts,
                plan=RoundPlan(4, "greedy", Sampling()),
                max_new_tokens=[32] * len(prompts),
                eos_token_ids=frozenset(),
                seeds=[0] * len(prompts),
            )
            texts[mode] = batch.runs
            found.setdefault(recipe, {})[mode] = {
                "decode_seconds": batch.decode_seconds,
                "num_drafts": [run.num_drafts for run in batch.runs],
            }
        found[recipe]["is_same_text"] = len({tuple(runs) for runs in texts.values()}) == 1
    return found


if __name__ == "__main__":
    main()
