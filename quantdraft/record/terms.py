"""The terms that every record uses: arms, intervals, and k, the tokens that a draft proposes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

# The two drafts that are compared. Timed besides: "control", "target" and "target-control".
Arm = Literal["baseline", "candidate"]
ARMS: tuple[Arm, Arm] = ("baseline", "candidate")
# Under these, resampling says nothing of the spread: one prompt would give a width of zero.
MIN_PROMPTS = 5
MAX_K = 16
ALL_KS = tuple(range(1, MAX_K + 1))
# What engines' documents and launch lines use most.
USUAL_K = 4
# What a number of a record may be; checked where one is read. Beyond these limits it is none that
# was measured: a page would show nonsense.
MOST = 1e15
Count = Annotated[int, Ge(0), Le(int(MOST))]
Amount = Annotated[float, Ge(0), Le(MOST)]  # a count that may be an expectation; bytes a second
Positive = Annotated[int, Ge(1), Le(int(MOST))]
K = Annotated[int, Ge(1), Le(1024)]
Milliseconds = Annotated[float, Gt(0), Le(1e9)]
Seconds = Annotated[float, Ge(0), Le(1e9)]
Rate = Annotated[float, Gt(0), Le(1e18)]  # bytes or operations a second
Ratio = Annotated[float, Gt(0), Le(1e9)]
SLACK = 1e-6  # of sums of rounded numbers
Share = Annotated[float, Ge(-SLACK), Le(1 + SLACK)]
Length = Annotated[float, Ge(1 - SLACK), Le(1025)]  # mean acceptance length, tokens a round
Finite = Annotated[float, Ge(-MOST), Le(MOST)]
_KNOWN = tuple(float(number) for number in range(4096))


@dataclass(frozen=True, slots=True)
class Interval:
    """A point estimate with the ends of its confidence interval."""

    value: Finite
    low: Finite
    high: Finite


def nearest_to_usual(ks: Iterable[int]) -> int:
    """Return the k nearest to the usual one, of two the lower: rates of all runs are shown at it.

    It depends on what was replayed alone, never on a timing, so that the same draft on the same
    traffic always has the same acceptance.
    """
    return min(ks, key=lambda k: (abs(k - USUAL_K), k))


def compact(values: Iterable[float]) -> tuple[float, ...]:
    """Return the same numbers; small whole ones are one object each, which saves memory."""
    return tuple(
        _KNOWN[int(value)] if 0 <= value < len(_KNOWN) and value == int(value) else value
        for value in values
    )
