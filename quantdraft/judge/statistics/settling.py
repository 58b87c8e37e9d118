"""How much more data would settle a doubt: widths fall as one over the root of the sample."""

from __future__ import annotations

import math
from typing import NamedTuple

from quantdraft.record import MIN_PROMPTS, Interval


class Needed(NamedTuple):
    """Sample sizes to have in all; None where there is enough."""

    num_prompts: int | None
    num_timings: int | None


def num_prompts_to_settle(interval: Interval, limit: float, num_prompts: int) -> int | None:
    """Return the prompts in all at which the limit would lie outside an interval of prompts.

    None when it cannot be told: the estimate lies at the limit itself.
    """
    if num_prompts < MIN_PROMPTS:
        return MIN_PROMPTS
    distance = abs(interval.value - limit)
    if distance == 0:
        return None
    return _scaled(num_prompts, (_half_width(interval, limit) / distance) ** 2)


def what_would_settle(
    speed: Interval, lengths: Interval | None, limit: float, num_prompts: int, num_timings: int
) -> Needed | None:
    """Return the prompts and timing samples in all that would settle a speedup's interval.

    speed: a speedup, whose width comes from prompts and timing
    lengths: the factor in it that comes from the prompts alone; None when there is none

    The squares of relative half-widths add, and each falls as 1/n: where one is small enough to
    stay as it is, only the other needs more. None when the estimate lies at the limit itself.
    """
    if lengths is not None and num_prompts < MIN_PROMPTS:
        return Needed(MIN_PROMPTS, None)
    allowed = ((speed.value - limit) / speed.value) ** 2
    if allowed == 0:
        return None
    total = (_half_width(speed, limit) / speed.value) ** 2
    of_prompts = 0.0 if lengths is None else min(_relative_half_width(lengths) ** 2, total)
    of_timing = total - of_prompts
    if of_timing <= allowed / 2:
        return Needed(_scaled(num_prompts, of_prompts / (allowed - of_timing)), None)
    if of_prompts <= allowed / 2:
        return Needed(None, _scaled(num_timings, of_timing / (allowed - of_prompts)))
    return Needed(_scaled(num_prompts, total / allowed), _scaled(num_timings, total / allowed))


def _half_width(interval: Interval, limit: float) -> float:
    """Return the width of the side of the interval on which the limit lies."""
    is_below = limit < interval.value
    return interval.value - interval.low if is_below else interval.high - interval.value


def _relative_half_width(interval: Interval) -> float:
    return (interval.high - interval.low) / 2 / interval.value


def _scaled(num: int, factor: float) -> int:
    return max(num, math.ceil(num * factor))
