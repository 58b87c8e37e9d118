"""Tables of a report as text: aligned in a pipe, fitted to its width and coloured in a terminal.

No cell with a number is ever broken: a table that is too wide is shown in parts, each with the
first column, and one whose cells are sentences as paragraphs.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from quantdraft.report.blocks import Table
from quantdraft.report.views.screen import STYLES, Screen, here

GAP = 2  # between columns
LONG = 50  # characters
WORDY = 2  # words in a cell that may be broken between them
MAX_NAMES = 3  # columns that stand in every part of a table


def table(block: Table, screen: Screen | None = None) -> str:
    """Return the table and its caption. screen: where it is shown; else what stdout is now"""
    screen = screen or here()
    if _is_prose(block):
        return _paragraphs(block, screen)
    drawn = _aligned(block) if screen.columns is None else _fit(block, screen.columns, screen)
    lines = [drawn]
    caption = [screen.wrapped(block.caption)] if block.caption else []
    return "\n".join(lines + caption)


def _is_prose(block: Table) -> bool:
    """Return whether a cell is a sentence that no column has room for."""
    return any(len(cell) > LONG and " " in cell for row in block.rows for cell in row)


def _paragraphs(block: Table, screen: Screen) -> str:
    """Return each row as a paragraph: its first cell, then every other under its column's name.

    What the tones colour, a word of judgement, comes before all of it.
    """
    lines = []
    for row in block.rows:
        named = list(zip(block.columns, row, strict=True))
        judged = f"{named.pop(block.tone_column)[1]}: " if block.tones and block.tone_column else ""
        said = [f"{title.lower()}: {cell}" if title else cell for title, cell in named[1:] if cell]
        lines.append(screen.wrapped(f"{judged}{row[0]}; " + "; ".join(said), "• "))
    caption = [screen.wrapped(block.caption)] if block.caption else []
    return "\n".join(lines + caption)


def _aligned(block: Table) -> str:
    """Return columns two spaces apart; with a heading only where it has words."""
    cells = [block.columns, *block.rows] if any(block.columns) else list(block.rows)
    widths = [max(len(row[column]) for row in cells) for column in range(len(block.columns))]
    lines = [_line(row, widths, block.numeric) for row in cells]
    if any(block.columns):
        lines.insert(1, "─" * (sum(widths) + GAP * (len(widths) - 1)))
    return "\n".join(lines)


def _line(row: tuple[str, ...], widths: list[int], numeric: frozenset[int]) -> str:
    padded = (
        cell.rjust(width) if column in numeric else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return (" " * GAP).join(padded).rstrip()


@dataclass(frozen=True, slots=True)
class _Column:
    """A column to be drawn; its heading may take several lines."""

    index: int
    heading: str
    width: int
    may_wrap: bool


def _fit(block: Table, room: int, screen: Screen) -> str:
    """Return the table drawn by rich, in as many parts as the terminal's width asks for."""
    columns = [_column(block, index, is_tight=False) for index in range(len(block.columns))]
    if _width(columns) > room:
        columns = [_column(block, index, is_tight=True) for index in range(len(block.columns))]
    parts = _balanced(columns, _num_names(block), room)
    return "\n\n".join(_drawn(block, part, room, screen) for part in parts)


def _num_names(block: Table) -> int:
    """Return how many columns name a row: up to the first column of words, if that is near."""
    words = [index for index in range(len(block.columns)) if index not in block.numeric]
    return words[0] + 1 if words and words[0] < MAX_NAMES else 1


def _column(block: Table, index: int, *, is_tight: bool) -> _Column:
    """Return a column's heading and width.

    is_tight: the heading takes as many lines, and wordy cells as little width, as they can
    """
    cells = [row[index] for row in block.rows]
    widest = max((len(cell) for cell in cells), default=0)
    heading = block.columns[index]
    may_wrap = index not in block.numeric and any(len(c.split()) >= WORDY for c in cells)
    may_wrap = may_wrap and not any(char.isdigit() for cell in cells for char in cell)
    if is_tight:
        narrow = max((len(word) for word in heading.split()), default=0)
        body = max((len(w) for c in cells for w in c.split()), default=0) if may_wrap else widest
        width = max(narrow, body)
        heading = textwrap.fill(heading, width, break_long_words=False) if heading else ""
        return _Column(index, heading, width, may_wrap)
    return _Column(index, heading, max(widest, len(heading)), False)


def _width(columns: Sequence[_Column]) -> int:
    return sum(column.width for column in columns) + GAP * (len(columns) - 1)


def _balanced(columns: list[_Column], num_names: int, room: int) -> list[list[_Column]]:
    """Return as few parts as fit, of about equal width."""
    parts = _parts(columns, num_names, room)
    for narrower in range(room - 1, 0, -1):
        fewer = _parts(columns, num_names, narrower)
        if len(fewer) > len(parts):
            break
        parts = fewer
    return parts


def _parts(columns: list[_Column], num_names: int, room: int) -> list[list[_Column]]:
    """Return columns in parts that fit; those that name the row stand in every part."""
    names = columns[:num_names]
    parts = [list(names)]
    for column in columns[num_names:]:
        if len(parts[-1]) > num_names and _width([*parts[-1], column]) > room:
            parts.append(list(names))
        parts[-1].append(column)
    return parts


def _drawn(block: Table, columns: Sequence[_Column], room: int, screen: Screen) -> str:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, GAP - 1, 0, 0),  # the box itself puts one more between columns
        show_header=any(block.columns),
    )
    for column in columns:
        drawn.add_column(
            Text(column.heading),
            justify="right" if column.index in block.numeric else "left",
            no_wrap=not column.may_wrap,
            overflow="fold",
            min_width=column.width,
        )
    for number, row in enumerate(block.rows):
        tone = block.tones[number] if block.tones else "plain"
        drawn.add_row(
            *(
                Text(row[c.index], style=STYLES[tone] if c.index == block.tone_column else "")
                for c in columns
            )
        )
    return _text_of(drawn, max(room, _width(columns)), screen)


def _text_of(drawn: object, room: int, screen: Screen) -> str:
    from io import StringIO

    from rich.console import Console

    console = Console(
        file=StringIO(),
        width=room,
        force_terminal=True,
        color_system="standard" if screen.has_colours else None,
        legacy_windows=False,
        _environ={},
    )
    with console.capture() as shown:
        console.print(drawn)
    return "\n".join(line.rstrip() for line in shown.get().rstrip("\n").split("\n"))
