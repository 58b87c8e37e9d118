"""k, the number of tokens that a draft proposes a round: its limits, and the usual choice."""

from __future__ import annotations

from collections.abc import Iterable

MAX_K = 16
ALL_KS = tuple(range(1, MAX_K + 1))
# What engines' documents and launch lines use most.
USUAL_K = 4


def nearest_to_usual(ks: Iterable[int]) -> int:
    """The k nearest to the usual one, of two the lower: rates of several runs are shown at it.

    It depends on what was replayed alone, never on a timing, so that the same draft on the same
    traffic always has the same acceptance.
    """
    return min(ks, key=lambda k: (abs(k - USUAL_K), k))
