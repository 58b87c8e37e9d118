"""The arithmetic of speculative speed. Pure functions of numbers, or of arrays of resamples.

Times are in ms at one batch and context: `draft_step_ms` one draft step, `verify_step_ms` one
target pass over k + 1 new tokens, `autoregressive_step_ms` one target pass over 1. `length` is the
mean acceptance length. A speedup above 1 means faster.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from quantdraft.errors import UndefinedMetricError
from quantdraft.judge.acceptance import closed_form_length, rate_from_length
from quantdraft.record import AcceptanceComparison, Projection, SpeedPoint

Number = TypeVar("Number", float, NDArray[np.float64])


def round_ms(k: int, draft_step_ms: Number, verify_step_ms: Number) -> Number:
    """Return the time of one round: k draft steps, then one verification of k + 1 tokens."""
    return k * draft_step_ms + verify_step_ms


def speedup_over_autoregressive(
    autoregressive_step_ms: Number, round_time_ms: Number, length: Number
) -> Number:
    """Return the target's time alone over that of speculation, per token."""
    return autoregressive_step_ms * length / round_time_ms


def speedup_over_baseline(
    baseline_round_ms: Number,
    candidate_round_ms: Number,
    baseline_length: Number,
    candidate_length: Number,
) -> Number:
    """Return the baseline's time over the candidate's, per token. The arms may use different k."""
    return (baseline_round_ms / candidate_round_ms) * (candidate_length / baseline_length)


def break_even_length(
    baseline_round_ms: Number, candidate_round_ms: Number, baseline_length: Number
) -> Number:
    """Return the candidate's mean acceptance length at which it is as fast as the baseline.

    It may lie above k + 1: then no acceptance, however good, makes the candidate pay.
    """
    return baseline_length * candidate_round_ms / baseline_round_ms


def break_even_rate(length: float, k: int) -> float | None:
    """Return the acceptance rate at a break-even length; None where no rate gives it.

    Under 1 even a draft that is never right pays; over k + 1 a perfect one does not.
    """
    try:
        return rate_from_length(length, k)
    except UndefinedMetricError:
        return None


def leviathan(alpha: float, k: int, cost: float) -> float:
    """Return the expected speedup over autoregressive where proposals are kept independently.

    (1 - alpha^(k+1)) / ((1 - alpha)(k cost + 1)), arXiv 2211.17192, theorem 3.8; `cost` is a draft
    step over a target step, and verifying k + 1 tokens is taken to cost one target step.
    """
    return closed_form_length(alpha, k) / (k * cost + 1)


def rule_of_thumb(alpha: float, k: int, cost: float) -> float:
    """Return the same with the draft charged once a round, not once a token: too high for k > 1.

    Common in print, and never used in a verdict.
    """
    return closed_form_length(alpha, k) / (1 + cost)


def operations_factor(alpha: float, k: int, operations_ratio: float = 0.0) -> float:
    """Return the expected arithmetic of speculation over that of the target alone.

    (1 - alpha)(k ĉ + k + 1) / (1 - alpha^(k+1)), arXiv 2211.17192, theorem 3.11; ĉ is the draft's
    arithmetic for a token over the target's. It is what a batch that is bound by arithmetic pays.
    """
    return (k * operations_ratio + k + 1) / closed_form_length(alpha, k)


def project_speed(
    point: SpeedPoint, acceptance: AcceptanceComparison, ceiling: float
) -> Projection | None:
    """Return what a candidate without a kernel here might gain elsewhere; None where not needed.

    A projection, never evidence: it supposes that memory is the only limit, so that a draft step
    shrinks as its bytes do. No engine reaches that, and the verdict does not look at it.

    acceptance: of both arms at the candidate's k
    ceiling: baseline bytes / candidate bytes of a draft step
    """
    k, step_ms = point.candidate_num_speculative_tokens, point.baseline_draft_step_ms
    verify_ms = point.candidate_verify_step_ms
    if point.candidate_draft_step_ms is not None or step_ms is None or verify_ms is None:
        return None
    projected_ms = step_ms / ceiling
    gain = speedup_over_baseline(
        round_ms(k, step_ms, verify_ms),
        round_ms(k, projected_ms, verify_ms),
        acceptance.baseline_length.value,
        acceptance.candidate_length.value,
    )
    return Projection(k, ceiling, projected_ms, float(gain))
