"""Diagnoses of the batch: where even the better draft is no faster than the target alone."""

from __future__ import annotations

from collections.abc import Sequence

from quantdraft.judge.advice.commands import evaluate_command
from quantdraft.judge.advice.limits import MEASURED, PAYS, state_if
from quantdraft.judge.comparison.points import grid_points, stops_paying_at
from quantdraft.judge.statistics.bootstrap import Bootstrap
from quantdraft.judge.verdict.policy import Policy
from quantdraft.record import ARMS, Evaluation, GridPoint, Interval
from quantdraft.record.analysis import Diagnosis, State
from quantdraft.record.wording import estimated, times

BATCHES = "--batch-sizes 1,4,16,64"
SKIP = "speculation does not pay"


def skip_speculation(
    evaluation: Evaluation, policy: Policy, bootstrap: Bootstrap
) -> tuple[Diagnosis, ...]:
    """Return at which timed batch speculation stops paying, or that one batch alone was timed."""
    if evaluation.served is not None:
        return _served(evaluation, policy)
    points = [p for p in grid_points(evaluation, bootstrap) if p.better_speedup]
    if not points:
        return ()
    by_context: dict[int, list[GridPoint]] = {}
    for point in points:
        by_context.setdefault(point.context_length, []).append(point)
    stops = stops_paying_at(tuple(points), policy.min_speedup_over_autoregressive)
    lines = [_at_context(each, stops.get(context), policy) for context, each in by_context.items()]
    if len({point.batch_size for point in points}) == 1:
        lines.append(_one_batch(evaluation, points[0].batch_size))
    return tuple(line for line in lines if line is not None)


def _at_context(
    points: Sequence[GridPoint], stops_at: int | None, policy: Policy
) -> Diagnosis | None:
    """Return the diagnosis of one context. points: of that context, by batch"""
    if stops_at is not None:
        return _stops(points, stops_at, policy)
    last = points[-1]
    ends, limit = last.better_speedup, policy.min_speedup_over_autoregressive
    assert ends is not None
    if state_if(ends, limit, "below") is None:
        return None
    return _at_point(last, ends, limit, "cannot tell", "time longer, and replay more prompts")


def _stops(points: Sequence[GridPoint], stops_at: int, policy: Policy) -> Diagnosis:
    at = next(point for point in points if point.batch_size == stops_at)
    ends = at.better_speedup
    assert ends is not None
    word = "serve without speculation"
    if stops_at > points[0].batch_size:
        word += f" from batch {stops_at} on; below it, by the table of batch and context"
    return _at_point(at, ends, policy.min_speedup_over_autoregressive, "found", word)


def _at_point(
    point: GridPoint, ends: Interval, limit: float, state: State, action: str
) -> Diagnosis:
    where = f"at batch {point.batch_size} and context {point.context_length}"
    return _skip(where, "the better draft, at its best k,", ends, limit, state, action)


def _skip(
    where: str, draft: str, ends: Interval, limit: float, state: State, action: str
) -> Diagnosis:
    return Diagnosis(
        code="skip-speculation",
        state=state,
        finding=f"{SKIP} {where}",
        seen=f"{draft} is {estimated(ends, 'speedup')} as fast as the target alone",
        limit=f"not over {times(limit)}",
        source=PAYS,
        action=action,
        observed=ends,
        threshold=limit,
    )


def _one_batch(evaluation: Evaluation, batch_size: int) -> Diagnosis:
    return Diagnosis(
        code="batch-unknown",
        state="cannot tell",
        finding=f"{SKIP} at other batches",
        seen=f"batch {batch_size} alone was timed",
        limit="large batches are bound by arithmetic, and proposals cost it",
        source=MEASURED,
        action="time the batches you serve",
        command=evaluate_command(evaluation, BATCHES),
    )


def _served(evaluation: Evaluation, policy: Policy) -> tuple[Diagnosis, ...]:
    """Return the diagnosis of a serving engine's whole requests, one at a time: batch 1."""
    point, limit = evaluation.operating_point, policy.min_speedup_over_autoregressive
    arms = (point.of(arm).speedup_over_autoregressive for arm in ARMS)
    known = [ends for ends in arms if ends is not None]
    if not known:
        return ()
    ends = max(known, key=lambda each: each.value)
    state = state_if(ends, limit, "below")
    if state is None:
        return ()
    action = "serve without speculation" if state == "found" else "serve more prompts"
    return (_skip("for one request at a time", "the better draft", ends, limit, state, action),)
