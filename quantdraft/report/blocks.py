"""What a report is made of: sections of text, tables, equations and charts. Plain data.

A report is built once (`evaluation`, `comparison`) and shown four ways: HTML, Markdown, terminal
and report.json. Table cells are finished words; a chart is a specification.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from quantdraft.record import Arm
from quantdraft.record.analysis import TokenFate

Tone = Literal["good", "bad", "doubt", "plain"]


@dataclass(frozen=True, slots=True)
class Paragraph:
    """One sentence or a few."""

    text: str


@dataclass(frozen=True, slots=True)
class Bullets:
    """Short sentences of equal rank."""

    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Notice:
    """What the reader must not miss: an alarm, or what would settle doubt."""

    title: str
    items: tuple[str, ...]
    tone: Tone


@dataclass(frozen=True, slots=True)
class Figure:
    """One number that sums something up, with the line that explains it."""

    label: str
    value: str
    note: str


@dataclass(frozen=True, slots=True)
class Figures:
    """A strip of numbers, side by side."""

    items: tuple[Figure, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of finished cells, with what is needed to align and colour them."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()  # columns aligned at the right
    tones: tuple[Tone, ...] = ()  # one a row, or empty
    tone_column: int = 0  # the column that the tones colour
    caption: str = ""

    @classmethod
    def of(
        cls,
        rows: Sequence[Mapping[str, str]],
        numeric: Iterable[int] = (),
        *,
        tones: Sequence[Tone] = (),
        tone_column: int = 0,
        caption: str = "",
    ) -> Table:
        """Return a table of rows that name their cells; there is one row at least."""
        cells = tuple(tuple(row.values()) for row in rows)
        return cls(tuple(rows[0]), cells, frozenset(numeric), tuple(tones), tone_column, caption)


@dataclass(frozen=True, slots=True)
class Equation:
    """A quotient with its numbers filled in: `label: numerator / denominator = result`."""

    label: str
    numerator: str
    denominator: str
    result: str
    arm: Arm | Literal["plain"] = "plain"


@dataclass(frozen=True, slots=True)
class Equations:
    """The formula in words, then one filled-in line an arm."""

    formula: Equation
    lines: tuple[Equation, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart: its Vega-Lite specification, what it shows in words, and its numbers."""

    name: str  # of its file, and on the page; unique in a document
    title: str
    description: str
    spec: dict[str, Any]
    data: Table
    is_wide: bool = False  # takes the page's whole width


@dataclass(frozen=True, slots=True)
class Passage:
    """One response, token by token, as each arm would have kept it."""

    title: str
    domain: str
    note: str
    before: str  # the end of the prompt
    tokens: tuple[str, ...]
    arms: tuple[tuple[str, tuple[TokenFate, ...]], ...]  # (name, fate of every token)


@dataclass(frozen=True, slots=True)
class Passages:
    """Responses to read, side by side; `legend` says what the marks mean."""

    items: tuple[Passage, ...]
    legend: str


Block = (
    Paragraph | Bullets | Notice | Figures | Table | Equations | Chart | Passages
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Section:
    """A titled part. `is_detail`: folded on the pages, left out in a terminal."""

    title: str
    blocks: tuple[Block, ...]
    is_detail: bool = False

    @property
    def anchor(self) -> str:
        """Return the title as a fragment identifier."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.title.lower()).split())


@dataclass(frozen=True, slots=True)
class Banner:
    """The answer in one word, the number it rests on, and why in one sentence."""

    word: str
    why: str
    tone: Tone
    number: str = ""
    measure: str = ""  # of what, with its interval


@dataclass(frozen=True, slots=True)
class Document:
    """A whole report. `banner` and `lead` are the first screen."""

    title: str
    subtitle: str
    banner: Banner | None
    lead: tuple[Block, ...]
    sections: tuple[Section, ...]
    footer: str = ""

    @property
    def charts(self) -> tuple[Chart, ...]:
        """Return every chart, in the order of the page."""
        blocks = (*self.lead, *(block for section in self.sections for block in section.blocks))
        return tuple(block for block in blocks if isinstance(block, Chart))
