"""Time one draft step at a real model's shape: bf16, INT4, W8A8, INT4 with an 8-bit head.

python -m tests.benchmarks.draft_step --shape llama-3.2-1b [--threads 2] [--seconds 60]

Random weights, batch 1, on this CPU or a GPU: latency only. Every arm and its output head take
turns in shuffled blocks. The last line is one JSON object: `int4_ratio`, `int8_ratio` and
`int4_head8_ratio` are the baseline's time over the arm's, each with its 95 % interval beside it
(`…_interval`); `bandwidth_fraction` is bytes of the step over its time over the copy bandwidth
measured in the same run; `head_share` is the head's product alone over the step.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from quantdraft.judge.comparison.speeds import with_step_speedups
from quantdraft.record import Latency
from quantdraft.workflows.bench import BenchSettings, contenders_of, measure_bench
from tests.pages import render_bench

RECIPES = ("int4", "int8", "int4-head8")


def figures(point: Latency) -> dict[str, Any]:
    """The figures of every arm that was timed, and why the others were not."""
    timed = {arm: with_step_speedups(point).figures(arm) for arm in point.arms}
    found: dict[str, Any] = {}
    for arm in (*RECIPES, "control"):
        ratio = timed[arm].ratio if arm in timed else None
        name = arm.replace("-", "_")
        found[f"{name}_ratio"] = None if ratio is None else ratio.value
        found[f"{name}_ratio_interval"] = None if ratio is None else [ratio.low, ratio.high]
    roofline = point.roofline
    return found | {
        "step_ms": {arm: each.median_ms for arm, each in timed.items()},
        "byte_ratio": {arm: each.byte_ratio for arm, each in timed.items()},
        "bandwidth_fraction": {arm: each.bandwidth_fraction for arm, each in timed.items()},
        "head_share": {arm: each.head_time_share for arm, each in timed.items()},
        "head_bytes_share": {arm: each.head_bytes_share for arm, each in timed.items()},
        "copy_bandwidth_gb_s": None if roofline is None else roofline.copy_bytes_per_s / 1e9,
        "read_bandwidth_gb_s": None if roofline is None else roofline.read_bytes_per_s / 1e9,
        "load_average": point.load_average,
        "undefined": point.undefined,
    }


def main() -> None:
    """Print the tables, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--context-length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--device")
    parser.add_argument("--mode", default="auto", choices=["auto", "eager", "fused", "compiled"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = BenchSettings(
        shape=options.shape,
        recipes=tuple(options.recipes.split(",")),
        batch_sizes=(1,),
        context_lengths=(options.context_length,),
        seconds=options.seconds,
        device=options.device,
        mode=options.mode,
    )
    measured = measure_bench(settings, contenders_of(settings))
    print(render_bench(measured))
    conditions = {"shape": options.shape, "threads": options.threads}
    print(json.dumps(conditions | figures(measured.points[0])))


if __name__ == "__main__":
    main()
