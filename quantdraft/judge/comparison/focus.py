"""Which steps are worth more time, once a part of the timing has told which k can be the best."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from quantdraft.judge.comparison.times import timed_rounds
from quantdraft.record import Latency

NEAR_BEST = 0.03  # of the least ms per token: a k that may still turn out to be the best


def widths_near_best(
    lengths: Mapping[str, Mapping[int, float]], latency: Latency, near: float = NEAR_BEST
) -> tuple[int, ...]:
    """Return the numbers of new tokens, 1 and k + 1, of every k that may be an arm's best.

    lengths: by arm ("baseline", "candidate") and k, the mean acceptance length
    Empty where no round was timed.
    """
    found: set[int] = set()
    for arm, by_k in lengths.items():
        rounds = {k: timed_rounds(latency, arm, k) for k in by_k}
        per_token = {k: float(np.median(r.ms)) / by_k[k] for k, r in rounds.items() if r}
        least = min(per_token.values(), default=0.0)
        found |= {k + 1 for k, ms in per_token.items() if ms <= (1 + near) * least}
    return tuple(sorted({1, *found})) if found else ()


def timed_throughout(latency: Latency, ks: tuple[int, ...]) -> tuple[int, ...]:
    """Return the k whose verification was timed in the most loads; all where there is one load."""
    target = latency.arms.get("target")
    if target is None or not latency.loads:
        return ks
    num_loads = {
        k: len({latency.loads[block] for block in step.blocks or range(len(step.samples_ms))})
        for k in ks
        if (step := target.steps.get(k + 1)) is not None
    }
    most = max(num_loads.values(), default=0)
    return tuple(k for k, number in num_loads.items() if number == most) or ks
