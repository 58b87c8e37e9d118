"""Many small whole numbers as floats, in little memory: what greedy counts are."""

from __future__ import annotations

from collections.abc import Iterable

_KNOWN = tuple(float(number) for number in range(4096))


def compact(values: Iterable[float]) -> tuple[float, ...]:
    """The same numbers; small whole ones are one object each, however often they come."""
    return tuple(
        _KNOWN[int(value)] if 0 <= value < len(_KNOWN) and value == int(value) else value
        for value in values
    )
