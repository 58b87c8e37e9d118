"""Several evaluations of one question held against each other: order, pairs, recommendation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from quantdraft.errors import OptionError, PairingError
from quantdraft.judge.analysis import analysed
from quantdraft.judge.comparison.pairwise import all_pairs
from quantdraft.record import (
    COMPARISON_SCHEMA_VERSION,
    ComparedRun,
    ComparedRuns,
    Comparison,
    Evaluation,
    Interval,
    ParetoPoint,
    RecipePair,
)
from quantdraft.record.terms import nearest_to_usual


def compare_runs(evaluations: Sequence[Evaluation]) -> ComparedRuns:
    """Return the runs, fastest first, and what they say together.

    Raises PairingError when two runs differ in traffic, acceptance rule, target or baseline, and
    OptionError when there is no run.
    """
    if not evaluations:
        raise OptionError("there is no run to compare. Give at least one run directory.")
    require_same_question(evaluations)
    ordered = sorted(map(analysed, _with_own_names(evaluations)), key=_speed_order)
    k = common_k(ordered)
    runs, pairs = tuple(map(_compared, ordered)), all_pairs(ordered, k)
    fastest = [run for run in runs if run.decision == "go" and not run.is_control]
    comparison = Comparison(
        schema_version=COMPARISON_SCHEMA_VERSION,
        runs=runs,
        num_speculative_tokens=k,
        min_speedup_over_baseline=ordered[0].known_analysis.min_speedup_over_baseline,
        pairs=pairs,
        pareto=() if k is None else _pareto(ordered, k),
        recommended=fastest[0].name if fastest else None,
        rivals=_rivals(fastest, pairs),
    )
    return ComparedRuns(tuple(ordered), comparison)


def common_k(runs: Sequence[Evaluation]) -> int | None:
    """Return the k nearest to the usual one that every run replayed; None where they share none."""
    shared = set.intersection(*(set(run.num_speculative_tokens) for run in runs))
    return nearest_to_usual(shared) if shared else None


def require_same_question(evaluations: Sequence[Evaluation]) -> None:
    """Raise PairingError, naming two runs, where they did not measure the same thing."""
    first = evaluations[0]
    for other in evaluations[1:]:
        for what, here, there in _question(first, other):
            if here != there:
                raise PairingError(
                    f"runs {first.name!r} and {other.name!r} differ in {what}: "
                    f"{_short(here)} and {_short(there)}. "
                    "Compare runs of one question, or evaluate again on the same inputs."
                )


def _with_own_names(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Return the runs with one name each: the second run of a name is `name (2)`."""
    seen: dict[str, int] = {}
    named = []
    for evaluation in evaluations:
        seen[evaluation.name] = number = seen.get(evaluation.name, 0) + 1
        own = evaluation.name if number == 1 else f"{evaluation.name} ({number})"
        named.append(replace(evaluation, name=own))
    return named


def _speed_order(evaluation: Evaluation) -> tuple[bool, float, str]:
    speedup = evaluation.speedup_over_baseline
    return speedup is None, -speedup.value if speedup else 0.0, evaluation.name


def _compared(evaluation: Evaluation) -> ComparedRun:
    return ComparedRun(
        name=evaluation.name,
        decision=evaluation.verdict.decision,
        is_control=evaluation.verdict.is_control,
        best_k=evaluation.best_k,
        speedup_over_baseline=evaluation.speedup_over_baseline,
    )


def _rivals(fastest: Sequence[ComparedRun], pairs: Sequence[RecipePair]) -> tuple[str, ...]:
    """Return the recipes with a go from which the fastest is not told apart."""
    if not fastest:
        return ()
    best, others = fastest[0].name, {run.name for run in fastest[1:]}
    close = [
        ({pair.one, pair.other} - {best}).pop()
        for pair in pairs
        if best in (pair.one, pair.other) and not pair.is_different
    ]
    return tuple(name for name in close if name in others)


def _pareto(runs: Sequence[Evaluation], k: int) -> tuple[ParetoPoint, ...]:
    """Return acceptance rates against draft steps; () where fewer than two drafts have both.

    A recipe's step is the baseline's of its own run over its paired speed-up, so that runs timed at
    different hours share one scale: the first run's baseline.
    """
    points: list[ParetoPoint] = []
    unit: float | None = None
    for run in runs:
        point, acceptance = run.operating_point, run.acceptance_at(k)
        if acceptance is None or point.baseline_draft_step_ms is None:
            continue
        if unit is None:
            unit = point.baseline_draft_step_ms
            same = Interval(unit, unit, unit)
            points.append(ParetoPoint("baseline", same, acceptance.baseline_rate, False))
        saving = point.draft_latency_saving
        if saving is not None:
            ends = (1 - saving.value, 1 - saving.high, 1 - saving.low)
            step = Interval(*(unit * each for each in ends))
            points.append(ParetoPoint(run.name, step, acceptance.candidate_rate, False))
    return _with_front(points) if len(points) > 1 else ()


def _with_front(points: Sequence[ParetoPoint]) -> tuple[ParetoPoint, ...]:
    """Mark the points that keep more than every point of a shorter step."""
    front: list[ParetoPoint] = []
    for point in sorted(points, key=lambda p: (p.draft_step_ms.value, -p.acceptance_rate.value)):
        if not front or point.acceptance_rate.value > front[-1].acceptance_rate.value:
            front.append(point)
    return tuple(replace(point, is_on_front=point in front) for point in points)


def _question(first: Evaluation, other: Evaluation) -> Iterator[tuple[str, Any, Any]]:
    """Yield what two runs must share, with each run's value."""
    traffic = [evaluation.provenance.get("traffic") or {} for evaluation in (first, other)]
    yield "traffic", traffic[0].get("sha256"), traffic[1].get("sha256")
    yield "how the traffic was read", traffic[0].get("read_with"), traffic[1].get("read_with")
    yield "trace", *(_trace(evaluation) for evaluation in (first, other))
    yield "acceptance rule", first.acceptance_rule, other.acceptance_rule
    yield "target", *_models(first, other, "target")
    yield "baseline draft", *_models(first, other, "baseline")


def _trace(evaluation: Evaluation) -> Any:
    """Return which trace the verdict was given on, and how it was served; None: on none."""
    found = evaluation.trace
    if found is None:
        return None
    return found.sha256, found.num_servers, found.ms_per_token if found.is_pace_given else None


def _models(first: Evaluation, other: Evaluation, role: str) -> tuple[Any, Any]:
    """Return the most certain thing that both records know of a model: hashes, or else its name."""
    here, there = (evaluation.provenance.get(role) or {} for evaluation in (first, other))
    for key in ("sha256", "weights_sha256", "name"):
        if here.get(key) and there.get(key):
            return here[key], there[key]
    return None, None


def _short(value: Any) -> str:
    text = str(value)
    return repr(text if len(text) <= 24 else text[:12] + "…")
