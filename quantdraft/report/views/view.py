"""The interface of every format of a report, and the call of its method for a block."""

from __future__ import annotations

from typing import Protocol

from quantdraft.report.blocks import (
    Block,
    Bullets,
    Chart,
    Equations,
    Figures,
    Notice,
    Paragraph,
    Passages,
    Table,
)


class View(Protocol):
    """One format: a method for each kind of block, which returns it as text of the format."""

    def paragraph(self, block: Paragraph) -> str:
        """Return one sentence or a few."""
        ...

    def bullets(self, block: Bullets) -> str:
        """Return short sentences of equal rank."""
        ...

    def notice(self, block: Notice) -> str:
        """Return what must not be missed."""
        ...

    def figures(self, block: Figures) -> str:
        """Return a strip of numbers."""
        ...

    def table(self, block: Table) -> str:
        """Return finished cells and a caption."""
        ...

    def equations(self, block: Equations) -> str:
        """Return a formula and its filled-in lines."""
        ...

    def chart(self, block: Chart) -> str:
        """Return a chart, its words and its numbers."""
        ...

    def passages(self, block: Passages) -> str:
        """Return responses to read, token by token."""
        ...


def show_block(block: Block, view: View) -> str:
    """Return the block in the view's format; empty where the format leaves it out."""
    match block:
        case Paragraph():
            text = view.paragraph(block)
        case Bullets():
            text = view.bullets(block)
        case Notice():
            text = view.notice(block)
        case Figures():
            text = view.figures(block)
        case Table():
            text = view.table(block)
        case Equations():
            text = view.equations(block)
        case Chart():
            text = view.chart(block)
        case Passages():
            text = view.passages(block)
    return text
