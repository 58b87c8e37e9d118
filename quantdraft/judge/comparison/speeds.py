"""The speed equation with measured numbers, and intervals from prompts and timing blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from quantdraft.judge import speedup
from quantdraft.judge.acceptance import Floats, Replayed
from quantdraft.judge.comparison.lengths import check_paired
from quantdraft.judge.comparison.times import (
    Timed,
    time_ratio,
    timed,
    timed_rounds,
    timed_steps,
)
from quantdraft.judge.statistics.bootstrap import DEFAULT, Bootstrap, interval_of
from quantdraft.judge.statistics.studentized import draw_alone, draw_length_ratio
from quantdraft.record import ARMS, ArmLatency, Interval, Latency, SpeedPoint, StepSamples


def speed_point(
    baseline: Replayed,
    candidate: Replayed,
    latency: Latency,
    *,
    baseline_k: int,
    candidate_k: int,
    bootstrap: Bootstrap = DEFAULT,
) -> SpeedPoint:
    """Return the speed equation with the measured numbers, at one k for each arm.

    Ratios of times are `times.time_ratio`'s: paired by block, resampled by load, independently of
    the prompts. They differ a little from the ratios of the medians that stand beside them. A
    field is None where a step it needs was not measured at least MIN_TIMINGS times.

    Raises PairingError for arms with different prompts, or steps with different numbers of blocks.
    """
    check_paired(baseline, candidate)
    base_tau = baseline.counts(baseline_k).mean_acceptance_length
    cand_tau = candidate.counts(candidate_k).mean_acceptance_length
    base_drawn = draw_alone(baseline, baseline_k, bootstrap).length
    cand_drawn = draw_alone(candidate, candidate_k, bootstrap).length
    ratio_drawn = draw_length_ratio(baseline, candidate, baseline_k, candidate_k, bootstrap)

    base_step, cand_step = (timed_steps(latency, arm, 1) for arm in ARMS)
    alone = timed_steps(latency, "target", 1)
    base_round = timed_rounds(latency, "baseline", baseline_k)
    cand_round = timed_rounds(latency, "candidate", candidate_k)
    control_round = timed_rounds(latency, "control", baseline_k)
    target_control = timed_steps(latency, "target-control", 1)

    def interval(
        over: Timed | None, under: Timed | None, length: float = 1.0, drawn: Floats | float = 1.0
    ) -> Interval | None:
        """Return a ratio of times, times a ratio of lengths where there is one."""
        found = time_ratio(over, under, latency, bootstrap)
        if found is None:
            return None
        return interval_of(found.value * length, found.draws * drawn, None, bootstrap)

    rounds = time_ratio(base_round, cand_round, latency, bootstrap)
    pays_from = None if rounds is None else base_tau / rounds.value
    return SpeedPoint(
        baseline_num_speculative_tokens=baseline_k,
        candidate_num_speculative_tokens=candidate_k,
        baseline_draft_step_ms=_median(base_step),
        candidate_draft_step_ms=_median(cand_step),
        baseline_verify_step_ms=_median(timed_steps(latency, "target", baseline_k + 1)),
        candidate_verify_step_ms=_median(timed_steps(latency, "target", candidate_k + 1)),
        autoregressive_step_ms=_median(alone),
        baseline_ms_per_token=_median(base_round, base_tau),
        candidate_ms_per_token=_median(cand_round, cand_tau),
        speedup_over_baseline=interval(base_round, cand_round, cand_tau / base_tau, ratio_drawn),
        speedup_over_autoregressive=interval(alone, cand_round, cand_tau, cand_drawn),
        baseline_speedup_over_autoregressive=interval(alone, base_round, base_tau, base_drawn),
        control_speedup=interval(base_round, control_round),
        target_control_speedup=interval(alone, target_control),
        draft_latency_saving=_saving(interval(cand_step, base_step)),
        break_even_length=pays_from,
        break_even_rate=None
        if pays_from is None
        else speedup.break_even_rate(pays_from, candidate_k),
    )


def best_k(points: Sequence[SpeedPoint]) -> dict[str, int | None]:
    """Return the k of least ms per token of "baseline" and "candidate"; None: not measured."""
    found: dict[str, int | None] = {}
    for arm in ARMS:
        speeds = [point.of(arm) for point in points]
        known = [
            (each.ms_per_token, each.num_speculative_tokens)
            for each in speeds
            if each.ms_per_token is not None
        ]
        found[arm] = min(known)[1] if known else None
    return found


def step_ratio(
    over: StepSamples | None,
    under: StepSamples | None,
    latency: Latency,
    bootstrap: Bootstrap = DEFAULT,
) -> Interval | None:
    """Return over / under, paired by block and resampled by load; None under MIN_TIMINGS blocks.

    Raises PairingError for samples with different numbers of blocks.
    """
    if over is None or under is None:
        return None
    found = time_ratio(timed(over), timed(under), latency, bootstrap)
    return None if found is None else found.interval(bootstrap)


def with_step_speedups(latency: Latency) -> Latency:
    """Return the same times with every arm's step held to the baseline's, and its head's share."""
    baseline = latency.arms.get("baseline")
    over = None if baseline is None else baseline.steps.get(1)

    def filled(arm: ArmLatency) -> ArmLatency:
        share = step_ratio(arm.head_step, arm.steps.get(1), latency)
        return replace(
            arm,
            step_speedup=step_ratio(over, arm.steps.get(1), latency),
            head_time_share=None if share is None else share.value,
        )

    return replace(latency, arms={name: filled(arm) for name, arm in latency.arms.items()})


def _saving(ratio: Interval | None) -> Interval | None:
    return None if ratio is None else Interval(1 - ratio.value, 1 - ratio.high, 1 - ratio.low)


def _median(samples: Timed | None, per: float = 1.0) -> float | None:
    return None if samples is None else float(np.median(samples.ms)) / per
