"""A record filled in with everything that follows from its measurements. No model, no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from quantdraft.judge.acceptance import token_acceptance
from quantdraft.judge.advice.acceptance import alpha_of
from quantdraft.judge.advice.all import diagnoses, explained
from quantdraft.judge.comparison.points import grid_points, stops_paying_at
from quantdraft.judge.comparison.served import load_spread
from quantdraft.judge.comparison.speeds import with_step_speedups
from quantdraft.judge.statistics.bootstrap import DEFAULT
from quantdraft.judge.verdict.checks import result_of
from quantdraft.judge.verdict.policy import Policy, policy_of
from quantdraft.judge.verdict.turning import obstacle, turning_points
from quantdraft.record import (
    ARMS,
    Analysis,
    Arm,
    Bench,
    CheckResult,
    Decision,
    Evaluation,
    GridPoint,
    Interval,
    TokenFates,
)

# From this probability on an expected event is shown as if it happened.
LIKELY = 0.5


def analysed(evaluation: Evaluation) -> Evaluation:
    """Return the record with its analysis, its steps held to the baseline's, its verdict explained.

    A record that has an analysis is returned as it is: what was concluded when it was written.
    """
    return evaluation if evaluation.analysis is not None else analyse(evaluation)


def analyse(evaluation: Evaluation) -> Evaluation:
    """Return the record with all that follows from its measurements, computed anew."""
    policy = policy_of(evaluation)
    filled = replace(
        explained(evaluation, policy),
        latency=with_step_speedups(evaluation.latency),
        grid=tuple(with_step_speedups(latency) for latency in evaluation.grid),
    )
    return replace(filled, analysis=_analysis(filled, policy))


def analysed_bench(bench: Bench) -> Bench:
    """Return the bench with every arm's step held to the baseline's."""
    return replace(bench, points=tuple(with_step_speedups(point) for point in bench.points))


def _analysis(evaluation: Evaluation, policy: Policy) -> Analysis:
    points = tuple(
        replace(point, decision=_decision_at(point, evaluation, policy))
        for point in grid_points(evaluation)
    )
    spread = None if evaluation.served is None else load_spread(evaluation.served)
    fates = [
        TokenFates(*(token_fates(each.keep(arm), evaluation.known_slices_k) for arm in ARMS))
        for each in evaluation.disagreements
    ]
    return Analysis(
        min_speedup_over_baseline=policy.min_speedup_over_baseline,
        min_speedup_over_autoregressive=policy.min_speedup_over_autoregressive,
        num_resamples=DEFAULT.num_resamples,
        baseline_alpha=_alpha(evaluation, "baseline"),
        candidate_alpha=_alpha(evaluation, "candidate"),
        grid=points,
        stops_paying_at=stops_paying_at(points, policy.min_speedup_over_autoregressive),
        diagnoses=diagnoses(evaluation, policy),
        turning_points=turning_points(evaluation, policy),
        obstacle=obstacle(evaluation, policy),
        fates=tuple(fates),
        served_load_error=None if spread is None else spread.error,
    )


def _alpha(evaluation: Evaluation, arm: Arm) -> Interval | None:
    """Return one arm's acceptance per token asked for, at the k where rates are shown."""
    acceptance = evaluation.acceptance_at(evaluation.shown_k)
    return None if acceptance is None else alpha_of(acceptance.of(arm).length, evaluation.shown_k)


def _decision_at(point: GridPoint, evaluation: Evaluation, policy: Policy) -> Decision | None:
    """Return the decision by the speed checks at a point and the checks that hold everywhere."""
    if point.speed is None:
        return None
    over_target = point.speed.speedup_over_autoregressive
    results: set[CheckResult] = {
        result_of(point.speed.speedup_over_baseline, ">=", policy.min_speedup_over_baseline),
        result_of(over_target, ">", policy.min_speedup_over_autoregressive),
    }
    results |= {
        check.result
        for check in evaluation.verdict.checks
        if check.kind == "decides" and check.observed is None and check.limit is None
    }
    if "fail" in results:
        return "no-go"
    return "go" if results <= {"pass"} else "inconclusive"


def token_fates(keep: Sequence[float], k: int) -> str:
    """Return what most likely happened to every token in rounds of k, one mark of FATES each."""
    ((_, tokens),) = token_acceptance([np.array(keep)], k)
    pairs = zip(tokens.asked.tolist(), tokens.kept.tolist(), strict=True)
    return "".join(_mark(asked, kept) for asked, kept in pairs)


def _mark(asked: float, kept: float) -> str:
    if asked < LIKELY:
        return "."
    return "+" if kept >= LIKELY * asked else "x"
