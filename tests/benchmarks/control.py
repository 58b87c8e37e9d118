"""Measure the noise of the latency check: how often a draft is "2 % faster" than itself.

python -m tests.benchmarks.control [--runs 20] [--seconds 5] [-k 4]

Every run times the embedded pair anew: baseline, control (the same draft, loaded again) and target
steps in shuffled blocks, as `evaluate` does. What the latency check alone would say of the control
is its speedup at k, equal acceptance, with the 95 % interval. The last line is one JSON object with
`num_faster`: runs in which the interval's lower end reached 1.02.
"""

from __future__ import annotations

import argparse
import json

import torch

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.checkpoints.reference import pair_dir
from quantdraft.engines.native.weight_sources import stored_weights
from quantdraft.judge.acceptance import replay_rounds
from quantdraft.judge.comparison.speeds import speed_point
from quantdraft.judge.verdict.policy import Policy
from quantdraft.measure.latency.grid import measure_grid
from quantdraft.measure.latency.loaded import BASELINE, CONTROL, TARGET
from quantdraft.measure.latency.timing_plan import TimingPlan


def main() -> None:
    """Print a line per run, then the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("-k", type=int, default=4)
    options = parser.parse_args()
    draft, target = (stored_weights(open_checkpoint(pair_dir() / n)) for n in ("draft", "target"))
    sources = {BASELINE: draft, CONTROL: draft, TARGET: target}
    replayed = some_rounds(options.k)
    limit = Policy().min_speedup_over_baseline
    found = []
    for run in range(options.runs):
        plan = TimingPlan(
            points=((1, 128),),
            widths=(1, options.k + 1),
            device=torch.device("cpu"),
            max_seconds=options.seconds,
            seed=run,
        )
        (latency,) = measure_grid(sources, plan)
        point = speed_point(
            replayed, replayed, latency, baseline_k=options.k, candidate_k=options.k
        )
        speedup = point.control_speedup
        assert speedup is not None
        found.append(speedup)
        print(
            f"run {run}: {speedup.value:.4f} ({speedup.low:.4f} to {speedup.high:.4f}), "
            f"{len(latency.arms[BASELINE].steps[1].samples_ms)} blocks, "
            f"load {latency.load_average}",
            flush=True,
        )
    print(
        json.dumps(
            {
                "runs": len(found),
                "num_faster": sum(speedup.low >= limit for speedup in found),
                "num_slower": sum(speedup.high <= 1 / limit for speedup in found),
                "num_point_estimates_over_limit": sum(speedup.value >= limit for speedup in found),
                "limit": limit,
                "speedups": [speedup.value for speedup in found],
                "num_threads": torch.get_num_threads(),
            }
        )
    )


def some_rounds(k: int) -> object:
    """Any rounds will do: both arms have the same, and the control's speed does not read them."""
    keep = [[1.0, 1.0, 0.0, 1.0] * 8] * 6
    import numpy as np

    return replay_rounds([str(i) for i in range(6)], [np.array(each) for each in keep], [k])


if __name__ == "__main__":
    main()
