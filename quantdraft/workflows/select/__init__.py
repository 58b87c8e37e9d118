"""Choosing among drafts: which draft, under which recipe, at which k, for one target's traffic."""

from quantdraft.workflows.select.ranking import Contender, Ranked, rank
from quantdraft.workflows.select.record import Selection
from quantdraft.workflows.select.rows import lines_of
from quantdraft.workflows.select.select import SelectSettings, select
from quantdraft.workflows.select.traits import Traits, traits_of

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
