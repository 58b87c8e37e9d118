"""Choosing among drafts: which draft, under which recipe, at which k, for one target's traffic."""

from quantdraft.selection.ranking import Contender, Ranked, rank
from quantdraft.selection.record import Selection
from quantdraft.selection.rows import lines_of
from quantdraft.selection.select import SelectSettings, select
from quantdraft.selection.traits import Traits, traits_of

__all__ = [
    "Contender",
    "Ranked",
    "SelectSettings",
    "Selection",
    "Traits",
    "lines_of",
    "rank",
    "select",
    "traits_of",
]
