"""The speed equation with measured numbers, and intervals from prompts and timing blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantdraft import speedup
from quantdraft.acceptance import Floats, Replayed
from quantdraft.comparison.lengths import check_paired
from quantdraft.comparison.resampling import (
    DEFAULT,
    MIN_TIMINGS,
    Bootstrap,
    block_draws,
    interval_of,
)
from quantdraft.comparison.studentized import draw_alone, draw_length_ratio
from quantdraft.errors import PairingError
from quantdraft.results import Interval, Latency, SpeedPoint, StepSamples


@dataclass(frozen=True, slots=True)
class Quotient:
    """A ratio of two acceptance lengths, or one length over 1, with its resamples."""

    value: float
    draws: Floats  # (num_resamples,)


def speed_point(
    baseline: Replayed,
    candidate: Replayed,
    latency: Latency,
    *,
    baseline_k: int,
    candidate_k: int,
    bootstrap: Bootstrap = DEFAULT,
) -> SpeedPoint:
    """The speed equation with the measured numbers, at one k per arm.

    A ratio of times is the *median over blocks of the ratio within a block*, so that drift of the
    machine cancels, and a block that another process disturbed counts for no more than any other.
    (Simulated A/A blocks with drift and 15 % of heavy-tailed delays: a nominal 95 % interval covers
    1 in 94-97 % of runs; means cover it in 87-93 % and are several times as wide.) It differs a
    little from the ratio of the medians that stand beside it.

    Blocks are resampled independently of prompts. A field is None where a step it needs was not
    measured at least MIN_TIMINGS times. Raises PairingError for arms with different prompts, or
    steps with different numbers of blocks.
    """
    check_paired(baseline, candidate)
    base_tau = baseline.counts(baseline_k).mean_acceptance_length
    cand_tau = candidate.counts(candidate_k).mean_acceptance_length
    base_length = Quotient(base_tau, draw_alone(baseline, baseline_k, bootstrap).length)
    cand_length = Quotient(cand_tau, draw_alone(candidate, candidate_k, bootstrap).length)
    ratio = Quotient(
        cand_tau / base_tau,
        draw_length_ratio(baseline, candidate, baseline_k, candidate_k, bootstrap),
    )

    base_step, cand_step = _steps(latency, "baseline", 1), _steps(latency, "candidate", 1)
    alone = _steps(latency, "target", 1)
    base_round = round_samples(latency, "baseline", baseline_k)
    cand_round = round_samples(latency, "candidate", candidate_k)
    control_round = round_samples(latency, "control", baseline_k)
    pays_from = _break_even_length(base_round, cand_round, base_tau)
    return SpeedPoint(
        baseline_num_speculative_tokens=baseline_k,
        candidate_num_speculative_tokens=candidate_k,
        baseline_draft_step_ms=_median(base_step),
        candidate_draft_step_ms=_median(cand_step),
        baseline_verify_step_ms=_median(_steps(latency, "target", baseline_k + 1)),
        candidate_verify_step_ms=_median(_steps(latency, "target", candidate_k + 1)),
        autoregressive_step_ms=_median(alone),
        baseline_ms_per_token=_median(base_round, base_tau),
        candidate_ms_per_token=_median(cand_round, cand_tau),
        speedup_over_baseline=_time_ratio(base_round, cand_round, ratio, bootstrap),
        speedup_over_autoregressive=_time_ratio(alone, cand_round, cand_length, bootstrap),
        baseline_speedup_over_autoregressive=_time_ratio(alone, base_round, base_length, bootstrap),
        control_speedup=_time_ratio(base_round, control_round, None, bootstrap),
        draft_latency_saving=_saving(_time_ratio(cand_step, base_step, None, bootstrap)),
        break_even_length=pays_from,
        break_even_rate=None
        if pays_from is None
        else speedup.break_even_rate(pays_from, candidate_k),
    )


def best_k(points: Sequence[SpeedPoint]) -> dict[str, int | None]:
    """The k of least ms per token of "baseline" and "candidate"; None where none was measured."""
    baseline = [(p.baseline_ms_per_token, p.baseline_num_speculative_tokens) for p in points]
    candidate = [(p.candidate_ms_per_token, p.candidate_num_speculative_tokens) for p in points]
    return {"baseline": _k_of_least(baseline), "candidate": _k_of_least(candidate)}


def step_ratio(
    over: StepSamples, under: StepSamples, bootstrap: Bootstrap = DEFAULT
) -> Interval | None:
    """Median over blocks of over / under within a block; None under MIN_TIMINGS blocks.

    Raises PairingError for samples with different numbers of blocks.
    """
    times = [np.array(step.samples_ms, np.float64) for step in (over, under)]
    if min(len(samples) for samples in times) < MIN_TIMINGS:
        return None
    return _time_ratio(times[0], times[1], None, bootstrap)


def _k_of_least(timed: Sequence[tuple[float | None, int]]) -> int | None:
    measured = [(ms, k) for ms, k in timed if ms is not None]
    return min(measured)[1] if measured else None


def _time_ratio(
    over: Floats | None, under: Floats | None, length: Quotient | None, bootstrap: Bootstrap
) -> Interval | None:
    """over / under within each block, (blocks,) ms each, times a ratio of lengths if given."""
    if over is None or under is None:
        return None
    _check_same_blocks(over, under)
    in_block = over / under
    draws = np.median(in_block[block_draws(len(in_block), bootstrap)], axis=1)
    value = float(np.median(in_block))
    if length is not None:
        value, draws = value * length.value, draws * length.draws
    return interval_of(value, draws, len(in_block), bootstrap)


def _saving(ratio: Interval | None) -> Interval | None:
    return None if ratio is None else Interval(1 - ratio.value, 1 - ratio.high, 1 - ratio.low)


def _break_even_length(
    base_round: Floats | None, cand_round: Floats | None, base_length: float
) -> float | None:
    if base_round is None or cand_round is None:
        return None
    return speedup.break_even_length(float(np.median(base_round / cand_round)), 1.0, base_length)


def _steps(latency: Latency, arm: str, num_new_tokens: int) -> Floats | None:
    """Samples of one step in the order of the blocks, (blocks,) ms; None if under MIN_TIMINGS."""
    if arm not in latency.arms or num_new_tokens not in latency.arms[arm].steps:
        return None
    samples = np.array(latency.arms[arm].steps[num_new_tokens].samples_ms, np.float64)
    return samples if len(samples) >= MIN_TIMINGS else None


def round_samples(latency: Latency, arm: str, k: int) -> Floats | None:
    """Time of one round of an arm in each block, (blocks,) ms; None where a step is missing.

    Raises PairingError for steps with different numbers of blocks.
    """
    draft, verify = _steps(latency, arm, 1), _steps(latency, "target", k + 1)
    if draft is None or verify is None:
        return None
    _check_same_blocks(draft, verify)
    return speedup.round_ms(k, draft, verify)


def _check_same_blocks(one: Floats, other: Floats) -> None:
    if len(one) != len(other):
        raise PairingError(
            f"one step has {len(one)} timing samples and another {len(other)}: they are not from "
            "the same blocks. Time all arms together."
        )


def _median(samples: Floats | None, per: float = 1.0) -> float | None:
    return None if samples is None else float(np.median(samples)) / per
