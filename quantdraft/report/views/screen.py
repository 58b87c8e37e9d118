"""The place where text is shown: a terminal with a width, perhaps with colours, or a pipe."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from dataclasses import dataclass
from typing import TextIO

from quantdraft.record.wording import NUMBER_AND_UNIT
from quantdraft.report.blocks import Tone

MAX_WIDTH = 100  # of running text: longer lines are not read with ease
MIN_WIDTH = 40
STYLES: dict[Tone, str] = {"good": "green", "bad": "red", "doubt": "yellow", "plain": ""}
TIED = "\u00a0"  # no line ends at this space


@dataclass(frozen=True, slots=True)
class Screen:
    """The room for text, and whether it may have colours."""

    columns: int | None = None  # of a terminal; None: a pipe or a file, whose tables may be wide
    has_colours: bool = False

    @property
    def width(self) -> int:
        """Return the width of running text."""
        return MAX_WIDTH if self.columns is None else min(self.columns, MAX_WIDTH)

    def wrapped(self, text: str, lead: str = "") -> str:
        """Return lines of at most `width`, unless a word is longer; a number keeps its unit."""
        tied = NUMBER_AND_UNIT.sub(TIED, " ".join(text.split()))
        filled = textwrap.fill(
            tied,
            self.width,
            initial_indent=lead,
            subsequent_indent=" " * len(lead),
            break_long_words=False,
            break_on_hyphens=False,
        )
        return filled.replace(TIED, " ")

    def listed(self, text: str, lead: str = "") -> str:
        """Return an item of a list: one line in a pipe, where programs read lines, else wrapped."""
        return self.wrapped(text, lead) if self.columns else f"{lead}{' '.join(text.split())}"

    def styled(self, text: str, style: str) -> str:
        """Return text in a colour or weight if the terminal has them; `style` as rich names it."""
        if not self.has_colours or not style:
            return text
        from rich.color import ColorSystem
        from rich.style import Style

        return Style.parse(style).render(text, color_system=ColorSystem.STANDARD)


PIPE = Screen()


def here(stream: TextIO | None = None) -> Screen:
    """Return what stdout is at this moment. Colours are off under NO_COLOR (https://no-color.org)."""
    if not (stream or sys.stdout).isatty():
        return PIPE
    columns = max(MIN_WIDTH, shutil.get_terminal_size().columns)
    is_plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    return Screen(columns, not is_plain)
