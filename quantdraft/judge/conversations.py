"""Conversations, the units that intervals resample: the turns of one are not independent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Units = tuple[int, ...]  # (prompts,): the number of each prompt's conversation, from 0


def units_of(conversations: Sequence[str | None]) -> Units | None:
    """Return the number of each prompt's conversation; None where every prompt stands alone."""
    numbers: dict[object, int] = {}
    units = tuple(
        numbers.setdefault((name,) if name else at, len(numbers))
        for at, name in enumerate(conversations)
    )
    return None if len(numbers) == len(units) else units


def sum_units(
    values: NDArray[np.float64] | NDArray[np.int64], units: Sequence[int] | NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the sums of `values`, (prompts, ...), over each unit: (units, ...).

    units: (prompts,), the numbers of the units, not all of which need a prompt here; the sums are
    in the order of the numbers that have one
    """
    _, place = np.unique(np.asarray(units, np.int64), return_inverse=True)
    sums = np.zeros((int(place.max(initial=-1)) + 1, *values.shape[1:]))
    np.add.at(sums, place, values)
    return sums


def resampled_noun(units: Units | None) -> str:
    """Return what intervals resample, as sentences call it."""
    return "prompts" if units is None else "conversations"
