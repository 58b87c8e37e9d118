"""Diagnoses of k, by the measured curve of ms per token and never by acceptance alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from quantdraft.judge.advice.acceptance import alpha_of
from quantdraft.judge.advice.commands import evaluate_command
from quantdraft.judge.advice.limits import K_BY_ALPHA, MEASURED, PRACTITIONERS, state_if
from quantdraft.judge.comparison.points import replayed_of
from quantdraft.judge.comparison.speeds import speed_point
from quantdraft.judge.statistics.bootstrap import Bootstrap
from quantdraft.judge.verdict.policy import Policy
from quantdraft.record import Evaluation, Interval, Latency
from quantdraft.record.analysis import Diagnosis
from quantdraft.record.terms import MAX_K, USUAL_K
from quantdraft.record.wording import estimated, times


def k_too_high_or_low(
    evaluation: Evaluation, policy: Policy, bootstrap: Bootstrap
) -> tuple[Diagnosis, ...]:
    """Return whether the candidate's best k differs from the baseline's best and the usual one."""
    curve = _measured_ks(evaluation)
    if evaluation.served is not None:
        return ()
    if not curve:
        return _by_rule_of_thumb(evaluation)
    if len(curve) == 1:
        return (_no_curve(evaluation, curve[0]),)
    best = evaluation.best_k.get("candidate")
    if best is None:
        return ()
    held = [
        _held_against(evaluation, k, best, policy, bootstrap) for k in _others(evaluation, best)
    ]
    lines = [line for line in held if line is not None]
    found = [line for line in lines if line.state == "found"] or lines[:1]
    return (*found, *([_ends_at_best(evaluation, best)] if best == max(curve) < MAX_K else []))


def _by_rule_of_thumb(evaluation: Evaluation) -> tuple[Diagnosis, ...]:
    """Return what practitioners would try at this acceptance, where nothing was timed."""
    acceptance = evaluation.acceptance_at(evaluation.shown_k)
    if acceptance is None:
        return ()
    alpha = alpha_of(acceptance.candidate_length, acceptance.num_speculative_tokens)
    k = next((k for least, k in K_BY_ALPHA if alpha.value >= least), None)
    if k is None:
        return ()
    return (
        Diagnosis(
            code="k-unknown",
            state="cannot tell",
            finding=f"k = {k} is best",
            seen=(
                f"α = {estimated(alpha, 'rate')} at k = {acceptance.num_speculative_tokens}, "
                "and the candidate's speed was not measured"
            ),
            limit=f"a rule of thumb for this α is k = {k}",
            source=PRACTITIONERS,
            action="measure its speed, where its format has a kernel",
        ),
    )


def k_cost(evaluation: Evaluation, k: int, best: int, bootstrap: Bootstrap) -> Interval | None:
    """Return ms per token of the candidate at k over those at its best k; None: not timed."""
    if not evaluation.prompts:
        return None
    candidate = replayed_of(evaluation, "candidate")
    twice = _with_candidate_twice(evaluation.latency)
    point = speed_point(
        candidate, candidate, twice, baseline_k=k, candidate_k=best, bootstrap=bootstrap
    )
    return point.speedup_over_baseline


def _with_candidate_twice(latency: Latency) -> Latency:
    """Return the candidate in the baseline's place too, so that two of its k can be compared."""
    arms = dict(latency.arms)
    if "candidate" in arms:
        arms["baseline"] = arms["candidate"]
    else:
        arms.pop("baseline", None)
    return replace(latency, arms=arms)


def _measured_ks(evaluation: Evaluation) -> list[int]:
    return [
        point.candidate_num_speculative_tokens
        for point in evaluation.equal_k
        if point.candidate_ms_per_token is not None
    ]


def _others(evaluation: Evaluation, best: int) -> Iterator[int]:
    """Yield the k that the candidate would have without this advice: today's, or the usual one."""
    todays = evaluation.best_k.get("baseline")
    for k in dict.fromkeys((todays, USUAL_K)):
        if k is not None and k != best and k in _measured_ks(evaluation):
            yield k


def _held_against(
    evaluation: Evaluation, k: int, best: int, policy: Policy, bootstrap: Bootstrap
) -> Diagnosis | None:
    limit = policy.min_speedup_over_baseline
    cost = k_cost(evaluation, k, best, bootstrap)
    state = None if cost is None else state_if(cost, limit, "above")
    if cost is None or state is None:
        return None
    word = "high" if k > best else "low"
    whose = "the engines' usual k" if k == USUAL_K else "the baseline's best k"
    return Diagnosis(
        code=f"k-too-{word}",
        state=state,
        finding=f"k = {k}, {whose}, is too {word} for the candidate",
        seen=f"it takes {estimated(cost, 'speedup')} the time of k = {best} per token",
        limit=f"over {times(limit)}",
        source=f"{MEASURED}; the limit is what a go must gain",
        action=f"serve with k = {best}" if state == "found" else "replay more, and time longer",
        command=None if state == "found" else evaluate_command(evaluation, "--latency-seconds 60"),
        observed=cost,
        threshold=limit,
    )


def _ends_at_best(evaluation: Evaluation, best: int) -> Diagnosis:
    return Diagnosis(
        code="k-too-low",
        state="cannot tell",
        finding="a higher k is better still",
        seen=f"the best k of those tried is the highest of them, {best}",
        limit="a best k has a worse one above it",
        source=MEASURED,
        action="try more",
        command=evaluate_command(evaluation, f"-k 1-{MAX_K}"),
    )


def _no_curve(evaluation: Evaluation, k: int) -> Diagnosis:
    return Diagnosis(
        code="k-unknown",
        state="cannot tell",
        finding=f"k = {k} is too high or too low",
        seen="speed was measured at this k alone",
        limit="the k of least ms per token",
        source=MEASURED,
        action="replay costs no more for all of them",
        command=evaluate_command(evaluation, f"-k 1-{MAX_K}"),
    )
