"""Ratios of measured times: paired by block, resampled by load.

Blocks of one load share whatever that load brought with it (where its memory lies, what the
machine did meanwhile), so they are no independent samples of a ratio; loads are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from quantdraft.errors import PairingError
from quantdraft.judge import speedup
from quantdraft.judge.acceptance import Floats, Ints
from quantdraft.judge.statistics.bootstrap import (
    MIN_TIMINGS,
    Bootstrap,
    block_draws,
    interval_of,
    t_factor,
)
from quantdraft.record import Interval, Latency, StepSamples

NEAR_BEST = 0.03  # of the least ms per token: a k that may still turn out to be the best
MIN_LOADS = 3  # under these, loads say nothing of their spread, and blocks are resampled


class Timed(NamedTuple):
    """One time in many blocks, and which blocks they are."""

    ms: Floats  # (samples,)
    blocks: Ints  # (samples,), ascending


class TimeRatio(NamedTuple):
    """A ratio of times, and its resamples, which are as wide as they must be."""

    value: float
    draws: Floats  # (num_resamples,)
    num_loads: int

    def interval(self, bootstrap: Bootstrap) -> Interval:
        """Return the ratio with percentiles of its resamples."""
        return interval_of(self.value, self.draws, None, bootstrap)


def timed_steps(latency: Latency, arm: str, num_new_tokens: int) -> Timed | None:
    """Return an arm's step of so many tokens; None where it has fewer than MIN_TIMINGS samples."""
    if arm not in latency.arms or num_new_tokens not in latency.arms[arm].steps:
        return None
    found = timed(latency.arms[arm].steps[num_new_tokens])
    return found if len(found.ms) >= MIN_TIMINGS else None


def timed(step: StepSamples) -> Timed:
    """Return the samples of a step with their blocks."""
    blocks = step.blocks or tuple(range(len(step.samples_ms)))
    return Timed(np.array(step.samples_ms, np.float64), np.array(blocks, np.int64))


def timed_rounds(latency: Latency, arm: str, k: int) -> Timed | None:
    """Return an arm's round of k draft steps and a verification; None where a step is missing.

    Raises PairingError for steps of one load with different numbers of blocks.
    """
    draft, verify = timed_steps(latency, arm, 1), timed_steps(latency, "target", k + 1)
    if draft is None or verify is None:
        return None
    one, other, blocks = _in_common(draft, verify, latency)
    return Timed(speedup.round_ms(k, one, other), blocks)


def time_ratio(
    over: Timed | None, under: Timed | None, latency: Latency, bootstrap: Bootstrap
) -> TimeRatio | None:
    """Return over / under; None where one was not timed, or in fewer than MIN_TIMINGS blocks.

    Within a load the ratio is the *median over its blocks of the ratio within a block*, so drift of
    the machine cancels, and a block that another process disturbed counts for no more than any
    other. Over loads it is the geometric mean; whole loads are resampled, and their spread widened
    to Student's t of so many loads. (A drawn load keeps its blocks as they are: to draw among them
    as well would count their noise twice, Davison & Hinkley 1997, section 3.8.) Of fewer than
    MIN_LOADS loads, blocks are resampled, and the spread between loads is in no interval.

    Raises PairingError for times of one load with different numbers of blocks.
    """
    if over is None or under is None:
        return None
    by_load = log_ratios(over, under, latency)
    logs = np.concatenate([np.empty(0), *by_load.values()])
    if len(logs) < MIN_TIMINGS:
        return None
    if len(by_load) < MIN_LOADS:
        middle = float(np.median(logs))
        draws = np.median(logs[block_draws(len(logs), bootstrap)], axis=1)
        size = len(logs)
    else:
        medians = np.array([np.median(some) for some in by_load.values()])
        middle = float(medians.mean())
        draws = medians[block_draws(len(medians), bootstrap)].mean(axis=1)
        size = len(medians)
    wide = middle + (draws - middle) * t_factor(size, bootstrap.confidence)
    return TimeRatio(math.exp(middle), np.exp(wide), len(by_load))


def log_ratios(over: Timed, under: Timed, latency: Latency) -> dict[int, Floats]:
    """Return log(over / under) in the blocks that have both, in their order, by load.

    Raises PairingError for times of one load with different numbers of blocks.
    """
    one, other, blocks = _in_common(over, under, latency)
    logs = np.log(one / other)
    if not latency.loads:
        return {0: logs} if len(logs) else {}
    of_load = np.array(latency.loads, np.int64)[blocks]
    return {int(load): logs[of_load == load] for load in np.unique(of_load)}


def _in_common(one: Timed, other: Timed, latency: Latency) -> tuple[Floats, Floats, Ints]:
    """Return both times in the blocks that have both."""
    if not latency.loads and len(one.ms) != len(other.ms):
        raise PairingError(
            f"one step has {len(one.ms)} timing samples and another {len(other.ms)}: they are not "
            "from the same blocks. Time all arms together."
        )
    blocks, at, there = np.intersect1d(
        one.blocks, other.blocks, assume_unique=True, return_indices=True
    )
    return one.ms[at], other.ms[there], blocks


def widths_near_best(
    lengths: Mapping[str, Mapping[int, float]], latency: Latency
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
        found |= {k + 1 for k, ms in per_token.items() if ms <= (1 + NEAR_BEST) * least}
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
