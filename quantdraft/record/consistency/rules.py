"""What a problem of a record is, and the rules that several parts of it keep."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from quantdraft.record.terms import SLACK, Interval

Problem = tuple[str, str]  # a field, dotted below the value that was asked; what is wrong with it
TOLERANCE = 1e-4  # of what is stored beside what it is made of, relative


def check_length(name: str, values: Sequence[Any], number: int, of: str) -> Iterator[Problem]:
    """Yield a list that has not the number of entries."""
    if len(values) != number:
        yield (
            name,
            f"it has {len(values)} entries, {of} there are {number}"
            if of != "k"
            else (f"it has {len(values)} entries at k = {number}"),
        )


def falls(values: Sequence[float]) -> bool:
    """Return True when no value is above the one before it."""
    return all(is_at_most(after, before) for before, after in itertools.pairwise(values))


def is_at_most(value: float, limit: float) -> bool:
    """Return True when a value is at most the limit, but for rounding."""
    return value <= limit + SLACK * max(1.0, abs(limit))


def is_near(value: float, other: float) -> bool:
    """Return True when a value is between half and twice another."""
    return other / 2 <= value <= other * 2


def check_within(name: str, ends: Interval, low: float, high: float) -> Iterator[Problem]:
    """Yield the ends of an interval that lie outside two bounds."""
    for end in ("value", "low", "high"):
        value = getattr(ends, end)
        if not low - SLACK <= value <= high + SLACK:
            yield f"{name}.{end}", f"{value:g} lies outside {low:g} to {high:g}"


def check_above_0(name: str, ends: Interval | None) -> Iterator[Problem]:
    """Yield the ends of a ratio that are not above 0."""
    for end in ("value", "low") if ends is not None else ():
        if getattr(ends, end) <= 0:
            yield f"{name}.{end}", f"{getattr(ends, end):g} is no ratio of times"


def check_same(
    name: str, value: float, made_of: float, by: str = "the counts"
) -> Iterator[Problem]:
    """Yield a stored value that is not what it is made of."""
    if not math.isclose(value, made_of, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        yield name, f"{value:g}; by {by} it is {made_of:g}"
