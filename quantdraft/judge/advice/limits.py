"""The limits of diagnoses, where each comes from, and on which side of one an interval lies.

docs/claims.md tests them. The two bands of acceptance are the verdict's own (`Policy`).
"""

from __future__ import annotations

from typing import Literal

from quantdraft.judge.comparison.points import num_units, units_in
from quantdraft.judge.conversations import resampled_noun
from quantdraft.judge.statistics.settling import num_prompts_to_settle
from quantdraft.record import MIN_PROMPTS, Evaluation, Interval
from quantdraft.record.analysis import State

PRACTITIONERS = "practitioners' rule, see docs/claims.md"
MEASURED = "measured in this run"
OWN = "quantdraft's own limit: below it lies the noise of a few hundred tokens"
PAYS = "arXiv 2211.17192, corollary 3.9: speculation has to beat the target alone"

# Acceptance per token above which more of it can hardly be what is missing.
HIGH_ALPHA = 0.90
# Share of a round from which drafting, and not verifying, is what makes it long.
MAX_DRAFT_SHARE = 0.50
# Used only where speed was not measured: which k an acceptance per token is good for.
K_BY_ALPHA = ((0.90, "8 or more"), (0.85, "6 to 8"), (0.75, "4 to 6"), (0.60, "3 or 4"))
# A difference of conditional acceptance between two parts of the tokens that is worth a line.
MIN_CONTRAST = 0.03

Side = Literal["below", "above", "across"]


def side(ends: Interval, limit: float) -> Side:
    """Return where all of the interval lies; touching the limit counts as across."""
    if ends.high < limit:
        return "below"
    return "above" if ends.low > limit else "across"


def state_if(ends: Interval, limit: float, wanted: Side) -> State | None:
    """Return "found" for an interval on the wanted side of the limit, None for one on the other."""
    found = side(ends, limit)
    if found == "across":
        return "cannot tell"
    return "found" if found == wanted else None


def more_prompts(ends: Interval, limit: float, evaluation: Evaluation) -> str:
    """Return what to do about an interval of prompts that lies across a limit."""
    num_prompts, noun = num_units(evaluation), resampled_noun(units_in(evaluation))
    needed = num_prompts_to_settle(ends, limit, num_prompts)
    if needed is None:
        return f"the estimate lies at the limit itself, and no number of {noun} will tell"
    if num_prompts < MIN_PROMPTS:
        return f"measure at least {MIN_PROMPTS} {noun} (now {num_prompts}); fewer have no interval"
    return f"about {needed} {noun} would tell (now {num_prompts})"
