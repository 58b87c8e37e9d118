"""Run every latency measurement that needs a GPU in one command; write results to reports/.

python -m tests.benchmarks.gpu_suite --output reports/h200 [--shapes …] [--seconds 20] [--dry-run]

1. The card: name, capability, driver, copy and read bandwidth, matrix rates.
2. Draft steps at real sizes (random weights): bf16, fp8, int8, int4, heads in 8 bits, over batch
   and context; the target's passes over 1 to 9 tokens. Recorded as CUDA graphs, in turns.
3. The live loop with recorded graphs against the same loop run eagerly: the same text.

Each shape has its own directory with bench.json and bench.md; suite.json sums up and is the last
line printed. A shape that is finished is not measured again, so a killed suite goes on.
`--dry-run` does the same on any device with the embedded draft's small shape: it proves that the
suite runs, and its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from quantdraft.checkpoints.checkpoint import Checkpoint, open_checkpoint
from quantdraft.checkpoints.reference import pair_dir
from quantdraft.checkpoints.shapes import shape_checkpoint
from quantdraft.checkpoints.tensors.devices import pick_device
from quantdraft.common.files import whole_directory, write_json
from quantdraft.engines.native.model import load_native
from quantdraft.engines.native.session import Session, modes
from quantdraft.engines.native.weight_sources import RandomWeights, WeightSource
from quantdraft.errors import NoKernelError
from quantdraft.judge.comparison.speeds import with_step_speedups
from quantdraft.measure.latency.loaded import BASELINE, CONTROL, TARGET
from quantdraft.measure.speculation import speculate
from quantdraft.measure.verification import RoundPlan
from quantdraft.quantize.recipe import load_recipe
from quantdraft.record import Bench, read_bench
from quantdraft.record.provenance import environment
from quantdraft.traffic.traffic import Sampling
from quantdraft.workflows.bench import BenchSettings, Contenders, measure_bench
from tests.pages import write_bench

SHAPES = ("llama-3.2-1b", "qwen3-0.6b", "qwen3-1.7b")
TARGET_SHAPE = "llama-3.1-8b"
RECIPES = ("fp8", "fp8-head8", "int8", "int8-head8", "int4", "int4-head8")
BATCH_SIZES, CONTEXTS = (1, 4, 16, 64), (512, 4096)
# What a good engine reaches at Llama-3.2-1B's shape and batch 1; see the H200 record.
GOALS = {"fp8": 1.4, "int4": 1.7, "int4-head8": 2.2}
MIN_BANDWIDTH_FRACTION = 0.7


def main() -> None:
    """Measure what is missing, then print and write the summary."""
    options = parsed()
    device = pick_device(options.device)
    if options.dry_run:
        shapes = {"embedded-draft": open_checkpoint(pair_dir() / "draft")}
        target, batches, contexts = open_checkpoint(pair_dir() / "target"), (1, 2), (16,)
    else:
        shapes = {name: shape_checkpoint(name) for name in options.shapes}
        target, batches, contexts = shape_checkpoint(TARGET_SHAPE), BATCH_SIZES, CONTEXTS
    benches = {}
    for index, (name, shape) in enumerate(shapes.items()):
        settings = BenchSettings(
            shape=name,
            recipes=RECIPES,
            batch_sizes=batches,
            context_lengths=contexts,
            new_tokens=tuple(range(1, 10)),
            seconds=options.seconds,
            device=str(device),
            mode="eager" if options.dry_run and device.type == "cpu" else "auto",
        )
        # One target is enough: its passes do not depend on the draft.
        contenders = contenders_of(name, shape, target if index == 0 else None)
        benches[name] = measured(settings, contenders, options.output / name)
    summary = {
        "environment": environment(str(device)),
        "is_dry_run": options.dry_run,
        "shapes": {name: sums(bench) for name, bench in benches.items()},
        "goals": goals(benches.get("llama-3.2-1b")),
        "live_loop": live_loop(next(iter(shapes.values())), device),
    }
    write_json(options.output / "suite.json", summary)
    print(json.dumps(summary))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    parser.add_argument("--seconds", type=float, default=20.0, help="a point (batch, context)")
    parser.add_argument("--device", default=None)
    parser.add_argument("--dry-run", action="store_true")
    return parser.parse_args()


def contenders_of(name: str, shape: Checkpoint, target: Checkpoint | None) -> Contenders:
    """The arms: random weights in the shape, quantized as each recipe would."""
    sources: dict[str, WeightSource] = {BASELINE: RandomWeights(shape, None)}
    sources |= {recipe: RandomWeights(shape, load_recipe(recipe)) for recipe in RECIPES}
    if target is not None:
        sources[TARGET] = RandomWeights(target, None, seed=1)
    return Contenders(name, sources | {CONTROL: RandomWeights(shape, None)})


def measured(settings: BenchSettings, contenders: Contenders, directory: Path) -> Bench:
    """The shape's bench, measured now or read from an earlier start of this suite."""
    record = directory / "bench.json"
    if record.exists():
        return read_bench(record)
    bench = measure_bench(settings, contenders)
    with whole_directory(directory, force=False) as staging:
        write_bench(bench, staging, directory)
    return bench


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
