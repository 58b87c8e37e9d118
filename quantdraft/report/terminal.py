"""A report as plain text for a terminal, verdict first. Charts and long lists are left out."""

from __future__ import annotations

import textwrap

from quantdraft.report.blocks import (
    Banner,
    Block,
    Bullets,
    Chart,
    Document,
    Equations,
    Figures,
    Notice,
    Paragraph,
    Passages,
    Section,
    Table,
)
from quantdraft.report.markdown import equation_line
from quantdraft.report.wording import NUMBER_AND_UNIT

WIDTH = 100


def render(document: Document, is_whole: bool = True) -> str:
    """The report at most `WIDTH` columns wide, apart from tables that need more.

    is_whole: False stops after the first section, which is the advice
    """
    sections = document.sections if is_whole else document.sections[:1]
    parts = [*_banner(document.banner), _wrap(f"{document.title} · {document.subtitle}")]
    parts += [text for block in document.lead if (text := _block(block))]
    parts += [_section(section) for section in sections if not section.is_detail]
    return "\n\n".join(parts) + "\n"


def _banner(banner: Banner | None) -> list[str]:
    if banner is None:
        return []
    spaced = " ".join(banner.word) if len(banner.word) <= 5 else banner.word
    return [f"{spaced}\n{'═' * max(len(spaced), 8)}\n{_wrap(banner.why)}"]


def _section(section: Section) -> str:
    blocks = [text for block in section.blocks if (text := _block(block))]
    return "\n\n".join([f"── {section.title} " + "─" * (WIDTH - len(section.title) - 4), *blocks])


def _block(block: Block) -> str:
    match block:
        case Paragraph():
            text = _wrap(block.text)
        case Bullets():
            text = "\n".join(_wrap(item, "• ") for item in block.items)
        case Notice():
            text = "\n".join([f"!! {block.title}", *(_wrap(item, "   ") for item in block.items)])
        case Figures():
            text = table(
                Table(
                    ("", "", ""),
                    tuple((item.label, item.value, item.note) for item in block.items),
                    frozenset({1}),
                )
            )
        case Table():
            text = _stacked(block) if _is_prose(block) else table(block)
        case Equations():
            lines = (block.formula, *block.lines)
            text = "\n".join(equation_line(line) for line in lines)
        case Chart() | Passages():
            text = ""
    return text


def table(block: Table) -> str:
    """Columns two spaces apart; a heading only where there are words in it."""
    cells = [block.columns, *block.rows] if any(block.columns) else list(block.rows)
    widths = [max(len(row[column]) for row in cells) for column in range(len(block.columns))]
    lines = [_line(row, widths, block.numeric) for row in cells]
    if any(block.columns):
        lines.insert(1, "─" * len("  ".join("─" * width for width in widths)))
    caption = [_wrap(block.caption)] if block.caption else []
    return "\n".join(lines + caption)


def _is_prose(block: Table) -> bool:
    """True where a cell is a sentence that no column has room for."""
    return any(len(cell) > WIDTH // 2 for row in block.rows for cell in row)


def _stacked(block: Table) -> str:
    """Each row as a paragraph: its first cell, then every other under its column's name.

    What the tones colour, a word of judgement, comes before all of it.
    """
    lines = []
    for row in block.rows:
        named = list(zip(block.columns, row, strict=True))
        judged = f"{named.pop(block.tone_column)[1]}: " if block.tones and block.tone_column else ""
        said = [f"{title.lower()}: {cell}" if title else cell for title, cell in named[1:] if cell]
        lines.append(_wrap(f"{judged}{row[0]}; " + "; ".join(said), "• "))
    caption = [_wrap(block.caption)] if block.caption else []
    return "\n".join(lines + caption)


def _line(row: tuple[str, ...], widths: list[int], numeric: frozenset[int]) -> str:
    padded = (
        cell.rjust(width) if column in numeric else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join(padded).rstrip()


def _wrap(text: str, lead: str = "") -> str:
    flat = " ".join(text.split())
    tied = NUMBER_AND_UNIT.sub("\u00a0", flat)  # textwrap does not break there
    filled = textwrap.fill(
        tied,
        WIDTH,
        initial_indent=lead,
        subsequent_indent=" " * len(lead),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return filled.replace("\u00a0", " ")
