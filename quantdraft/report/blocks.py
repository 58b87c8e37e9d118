"""What a report is made of: sections of text, tables, equations and charts. Plain data.

A report is built once (`rows`, `comparison`) and shown three ways (`markdown`, `html`,
`terminal`). Table cells are finished words; chart values are numbers, in the unit of their axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Tone = Literal["good", "bad", "doubt", "plain"]
Arm = Literal["baseline", "candidate", "control", "plain"]


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
    """Something the reader must not miss: an alarm, or what would settle doubt."""

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
class Span:
    """An interval against its limit, drawn beside a table row where there is room to draw."""

    value: float
    low: float
    high: float
    limit: float | None
    tone: Tone


@dataclass(frozen=True, slots=True)
class Dumbbell:
    """Two arms' values of one row, drawn on the scale that all rows of the table share."""

    baseline: float
    candidate: float


@dataclass(frozen=True, slots=True)
class Table:
    """Finished cells. `marks` has one drawing (or None) a row, or is empty."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()  # columns aligned at the right
    marks: tuple[Span | Dumbbell | None, ...] = ()
    mark_title: str = ""
    tones: tuple[Tone, ...] = ()  # one a row, or empty
    tone_column: int = 0  # the column that the tones colour
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Equation:
    """A quotient with its numbers filled in: `label: numerator / denominator = result`."""

    label: str
    numerator: str
    denominator: str
    result: str
    arm: Arm = "plain"


@dataclass(frozen=True, slots=True)
class Equations:
    """The formula in words, then one filled-in line an arm."""

    formula: Equation
    lines: tuple[Equation, ...]


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one arm or recipe; `marked_x` is the point to ring (the best k)."""

    name: str
    points: tuple[tuple[float, float], ...]  # (x, y)
    arm: Arm = "plain"
    ends: tuple[tuple[float, float], ...] = ()  # (low, high) of each point, or empty
    marked_x: float | None = None


@dataclass(frozen=True, slots=True)
class Bars:
    """Grouped bars: one group a label, one bar a series; fractions are shown as percent."""

    title: str
    description: str
    groups: tuple[str, ...]
    series: tuple[tuple[str, Arm, tuple[float, ...]], ...]
    x_title: str


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines over k; `reference` is a level worth comparing with, e.g. 1 for no gain."""

    title: str
    description: str
    series: tuple[Series, ...]
    x_title: str
    unit: str  # after every y tick: "×", "" …
    reference: float | None = None
    reference_name: str = ""


@dataclass(frozen=True, slots=True)
class Forest:
    """One interval a row, with limit lines: which recipes clear the limit, and by how much."""

    title: str
    description: str
    rows: tuple[tuple[str, Span | None, str], ...]  # name, interval, what to print beside it
    limits: tuple[tuple[float, str], ...]  # (level, name)


Block = (
    Paragraph | Bullets | Notice | Figures | Table | Equations | Bars | Lines | Forest
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Section:
    """A titled part. `is_detail`: for the pages, too long for a terminal."""

    title: str
    blocks: tuple[Block, ...]
    is_detail: bool = False

    @property
    def anchor(self) -> str:
        """The title as a fragment identifier."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.title.lower()).split())


@dataclass(frozen=True, slots=True)
class Banner:
    """The answer in one word, and why in one sentence."""

    word: str
    why: str
    tone: Tone


@dataclass(frozen=True, slots=True)
class Document:
    """A whole report. `banner` and `lead` are the first screen."""

    title: str
    subtitle: str
    banner: Banner | None
    lead: tuple[Block, ...]
    sections: tuple[Section, ...]
    footer: str = ""
