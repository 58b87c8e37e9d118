"""Contradictions in the step times: each a function from a Latency to an alarm or none.

A contradiction is a fault of the timing and not of the draft: a kernel that was chosen while
another process ran, a load that met other memory. It stops the verdict.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from quantdraft.judge.acceptance import Floats
from quantdraft.judge.comparison.times import (
    Timed,
    log_ratios,
    time_ratio,
    timed_rounds,
    timed_steps,
)
from quantdraft.judge.statistics.bootstrap import DEFAULT
from quantdraft.record import ARMS, Alarm, Interval, Latency
from quantdraft.record.wording import times, valued

Step = tuple[str, int]  # an arm, and the new tokens of its step

ABOVE_BYTE_LIMIT = "above_byte_limit"
BASELINE_FAR_FROM_BANDWIDTH = "baseline_far_from_bandwidth"
VERIFICATION_CHEAPER = "verification_cheaper"
TWINS_DIFFER = "twins_differ"
LOADS_DISAGREE = "loads_disagree"

# A ratio of step times may lie above the ratio of bytes by this: caches hold what is smaller.
BYTE_TOLERANCE = 0.05
# Of the fractions of the bandwidth, candidate over baseline: a float kernel so much worse than a
# quantized one was not the best there is.
MAX_FRACTION_RATIO = 1.25
WIDTH_TOLERANCE = 0.05  # by which a pass over more tokens may be faster
TWIN_TOLERANCE = 0.10
TWIN_MIN_BYTES = 64 * 2**20  # under it a draft's steps, which follow one another, find caches warm
LOAD_TOLERANCE = 0.15  # of a load's ratio from the middle of all loads'
LOAD_ERRORS = 4.0  # and so many of its own standard errors


def suspicions(latency: Latency) -> tuple[Alarm, ...]:
    """Return every contradiction in the step times, with what was tried against it."""
    found = (
        above_byte_limit(latency) or baseline_far_from_bandwidth(latency),
        verification_cheaper(latency),
        twins_differ(latency),
        loads_disagree(latency),
    )
    return tuple(alarm for alarm in found if alarm is not None)


def above_byte_limit(latency: Latency) -> Alarm | None:
    """Return an alarm where the candidate's step is faster than its bytes allow."""
    if not {"baseline", "candidate"} <= set(latency.arms):
        return None
    limit = latency.byte_ratio("candidate")
    ratio = _ratio(latency, ("baseline", 1), ("candidate", 1))
    if ratio is None or limit is None or ratio.low <= limit * (1 + BYTE_TOLERANCE):
        return None
    return _alarm(
        latency,
        ABOVE_BYTE_LIMIT,
        f"the candidate's step is {valued(ratio, 'speedup')} as fast as the baseline's, and its "
        f"bytes allow {times(limit)}: the baseline runs on poor kernels "
        f"({_kernels(latency, 'baseline')}).",
    )


def baseline_far_from_bandwidth(latency: Latency) -> Alarm | None:
    """Return an alarm where the baseline uses much less of the bandwidth than its candidate."""
    if not {"baseline", "candidate"} <= set(latency.arms):
        return None
    baseline, candidate = (latency.bandwidth_fraction(arm) for arm in ARMS)
    if not baseline or not candidate or candidate <= MAX_FRACTION_RATIO * baseline:
        return None
    return _alarm(
        latency,
        BASELINE_FAR_FROM_BANDWIDTH,
        f"the baseline's step reaches {100 * baseline:.0f} % of the machine's bandwidth and the "
        f"candidate's {100 * candidate:.0f} %: the baseline runs on poor kernels "
        f"({_kernels(latency, 'baseline')}).",
    )


def verification_cheaper(latency: Latency) -> Alarm | None:
    """Return an alarm where a pass of the target over more tokens is faster than one over fewer."""
    target = latency.arms.get("target")
    for few, many in pairwise(sorted(target.steps)) if target is not None else ():
        ratio = _ratio(latency, ("target", many), ("target", few))
        if ratio is not None and ratio.high < 1 - WIDTH_TOLERANCE:
            return _alarm(
                latency,
                VERIFICATION_CHEAPER,
                f"the target takes {valued(ratio, 'speedup')} as long for {many} new tokens as "
                f"for {few}: the kernels of {few} are poor ({_kernels(latency, 'target')}).",
            )
    return None


def twins_differ(latency: Latency) -> Alarm | None:
    """Return an alarm where draft and target have one shape and format, and different steps."""
    arms = latency.arms
    for draft in ARMS:
        if not {draft, "target"} <= set(arms):
            continue
        size, target_size = arms[draft].step_bytes, arms["target"].step_bytes
        if size is None or size != target_size or size < TWIN_MIN_BYTES:
            continue
        if arms[draft].head_bytes != arms["target"].head_bytes:
            continue
        ratio = _ratio(latency, (draft, 1), ("target", 1))
        if ratio is None or (ratio.low <= 1 + TWIN_TOLERANCE and ratio.high >= 1 - TWIN_TOLERANCE):
            continue
        return _alarm(
            latency,
            TWINS_DIFFER,
            f"the {draft} has the target's shape and format, and its step takes "
            f"{valued(ratio, 'speedup')} as long: they run on different kernels "
            f"({_kernels(latency, draft)}; target: {_kernels(latency, 'target')}).",
        )
    return None


def loads_disagree(latency: Latency) -> Alarm | None:
    """Return an alarm where one load's ratio lies far from the others' and its blocks agree."""
    ks = sorted(m - 1 for m in (latency.arms["target"].steps if "target" in latency.arms else ()))
    k = next((k for k in ks if k > 0), None)
    if k is None or not latency.loads:
        return None
    candidate = timed_rounds(latency, "candidate", k)
    for name, other in (
        ("baseline", timed_rounds(latency, "baseline", k)),
        ("target", timed_steps(latency, "target", 1)),
    ):
        strays = None if candidate is None or other is None else _stray(other, candidate, latency)
        if strays is not None:
            load, ratio, middle = strays
            return _alarm(
                latency,
                LOADS_DISAGREE,
                f"load {load + 1} of {latency.num_loads} disagrees with the others: {name} over "
                f"candidate is {ratio:.2f} there and {middle:.2f} in the middle of all. Another "
                "process, or memory that lies badly.",
            )
    return None


def _stray(over: Timed, under: Timed, latency: Latency) -> tuple[int, float, float] | None:
    """Return the load that strays most, its ratio and the middle one; None: none surely does."""
    by_load = log_ratios(over, under, latency)
    loads = list(by_load)
    middles = np.array([np.median(logs) for logs in by_load.values()])
    middle = float(np.median(middles))
    worst = int(np.argmax(np.abs(middles - middle)))
    off = abs(float(middles[worst]) - middle)
    if off <= math.log(1 + LOAD_TOLERANCE) or off <= LOAD_ERRORS * _error(by_load[loads[worst]]):
        return None
    return loads[worst], math.exp(float(middles[worst])), math.exp(middle)


def _error(values: Floats) -> float:
    """Return the standard error of a median of few values, by their mean absolute deviation."""
    spread = float(np.abs(values - np.median(values)).mean()) * math.sqrt(math.pi / 2)
    return 1.25 * spread / math.sqrt(max(len(values) - 1, 1))


def _ratio(latency: Latency, over: Step, under: Step) -> Interval | None:
    """Return how much longer one arm's step takes than another's, paired by block."""
    found = time_ratio(timed_steps(latency, *over), timed_steps(latency, *under), latency, DEFAULT)
    return None if found is None else found.interval(DEFAULT)


def _kernels(latency: Latency, arm: str) -> str:
    return ", ".join(latency.arms[arm].kernels)


def _alarm(latency: Latency, code: str, message: str) -> Alarm:
    if latency.retried:
        message += " Kernels were chosen again by new trials and all was timed again: it stayed."
    return Alarm(code, f"{message} Time again on a quiet machine.")
