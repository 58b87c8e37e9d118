"""What a draft and a row are called on a page: as short as it is unmistakable."""

from __future__ import annotations

from pathlib import Path

from quantdraft.workflows.select.ranking import Ranked
from quantdraft.workflows.select.record import Selection


def short(draft: str, selection: Selection) -> str:
    """A draft's last name where it is the only one of it, else all that the user said."""
    names = [Path(each).name for each in {row.draft for row in selection.rows}]
    last = Path(draft).name
    return last if names.count(last) == 1 else draft


def name_of(row: Ranked, selection: Selection) -> str:
    """`draft` or `draft + recipe`."""
    draft = short(row.draft, selection)
    return draft if row.recipe == "none" else f"{draft} + {row.recipe}"
