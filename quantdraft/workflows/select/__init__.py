"""Choose among drafts: which draft, under which recipe, at which k, for one target's traffic."""

from quantdraft.workflows.select.ranking import Contender, basis_of, rank
from quantdraft.workflows.select.record import (
    SELECTION_FILE,
    SELECTION_SCHEMA_VERSION,
    Ranked,
    Selection,
)
from quantdraft.workflows.select.select import SelectSettings, select
from quantdraft.workflows.select.traits import Traits, traits_of
from quantdraft.workflows.select.view import selection_document, selection_text

__all__ = [
    "SELECTION_FILE",
    "SELECTION_SCHEMA_VERSION",
    "Contender",
    "Ranked",
    "SelectSettings",
    "Selection",
    "Traits",
    "basis_of",
    "rank",
    "select",
    "selection_document",
    "selection_text",
    "traits_of",
]
