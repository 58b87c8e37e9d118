"""On which side of a limit an interval lies: the only place where doubt is decided."""

from __future__ import annotations

from typing import Literal

from quantdraft.judge.comparison import num_prompts_to_settle
from quantdraft.record import MIN_PROMPTS, Interval
from quantdraft.record.analysis import State

Side = Literal["below", "above", "across"]


def side(ends: Interval, limit: float) -> Side:
    """Where all of the interval lies; touching the limit counts as across."""
    if ends.high < limit:
        return "below"
    return "above" if ends.low > limit else "across"


def state_if(ends: Interval, limit: float, wanted: Side) -> State | None:
    """ "found" where the interval lies on the wanted side, None where it lies on the other."""
    found = side(ends, limit)
    if found == "across":
        return "cannot tell"
    return "found" if found == wanted else None


def more_prompts(ends: Interval, limit: float, num_prompts: int) -> str:
    """What to do about an interval that comes from prompts and lies across a limit."""
    needed = num_prompts_to_settle(ends, limit, num_prompts)
    if needed is None:
        return "the estimate lies at the limit itself, and no number of prompts will tell"
    if num_prompts < MIN_PROMPTS:
        return f"measure at least {MIN_PROMPTS} prompts (now {num_prompts}); fewer have no interval"
    return f"about {needed} prompts would tell (now {num_prompts})"
