"""What must hold between the fields of a record, checked where one is read.

The types say what each number may be alone. Here: lengths of lists that belong together, ends in
their order, counts that add up, and the free dictionaries as far as pages read them. A record in
which one of these does not hold was changed after it was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from quantdraft.record.acceptance import AcceptanceComparison, AcceptanceCounts, Disagreement, Slice
from quantdraft.record.analysis import Analysis
from quantdraft.record.consistency.acceptance import (
    check_comparison,
    check_counts,
    check_disagreement,
    check_interval,
    check_part,
)
from quantdraft.record.consistency.judgement import check_analysis, check_limit, check_verdict
from quantdraft.record.consistency.rules import Problem
from quantdraft.record.consistency.serving import check_request, check_served
from quantdraft.record.consistency.timing import (
    check_arm_latency,
    check_latency,
    check_live_loop,
    check_point,
    check_samples,
)
from quantdraft.record.consistency.whole import check_bench, check_evaluation
from quantdraft.record.evaluation import Bench, Evaluation
from quantdraft.record.served import Served, ServedRequest
from quantdraft.record.terms import Interval
from quantdraft.record.timing import ArmLatency, Latency, LiveCheck, SpeedPoint, StepSamples
from quantdraft.record.verdict import Check, Verdict


def first_problem(record: Evaluation | Bench) -> Problem | None:
    """Return the first field that contradicts another, with what is wrong; None: all is well."""
    return next(_problems(record, ""), None)


def _problems(value: Any, path: str) -> Iterator[Problem]:
    """Yield the problems of a value and of everything in it, the innermost first."""
    for name, inner in _inner(value):
        yield from _problems(inner, f"{path}.{name}" if path else name)
    for check in _CHECKS.get(type(value), ()):
        for name, wrong in check(value):
            yield ".".join(part for part in (path, name) if part), wrong


def _inner(value: Any) -> Iterable[tuple[str, Any]]:
    """Return the parts of a value that may be wrong in themselves, by name."""
    if is_dataclass(value) and not isinstance(value, type):
        return [(name, getattr(value, name)) for name in _names(type(value))]
    if isinstance(value, dict):
        return [(str(key), inner) for key, inner in value.items()]
    if isinstance(value, tuple) and value and not isinstance(value[0], str | int | float):
        return [(str(at), inner) for at, inner in enumerate(value)]
    return ()


@cache
def _names(kind: type[Any]) -> tuple[str, ...]:
    return tuple(each.name for each in fields(kind) if each.name not in ("ledger", "provenance"))


_CHECKS: dict[type[Any], tuple[Callable[[Any], Iterator[Problem]], ...]] = {
    Interval: (check_interval,),
    AcceptanceCounts: (check_counts,),
    Slice: (check_part,),
    AcceptanceComparison: (check_comparison,),
    Disagreement: (check_disagreement,),
    StepSamples: (check_samples,),
    ArmLatency: (check_arm_latency,),
    Latency: (check_latency,),
    ServedRequest: (check_request,),
    Served: (check_served,),
    LiveCheck: (check_live_loop,),
    SpeedPoint: (check_point,),
    Check: (check_limit,),
    Verdict: (check_verdict,),
    Analysis: (check_analysis,),
    Evaluation: (check_evaluation,),
    Bench: (check_bench,),
}
