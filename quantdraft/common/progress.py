"""Progress on stderr, with the time left. Nothing is written where stderr is no terminal.

Lines are nested: the stage of a job stands under the job. A line is erased when its work ends.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

SECONDS_BEFORE = 1.0  # what ends sooner is never shown
SECONDS_BETWEEN = 0.5  # drawings
SECONDS_PREPARING = 5.0  # the same while a measurement is prepared: kernels are tried then
BAR_COLUMNS, GAP = 20, 2


@dataclass(slots=True, eq=False)
class Line:
    """One piece of work in progress; `total` is None where its size is unknown."""

    name: str
    total: float | None = None
    unit: str = ""
    is_timed: bool = False  # no thread may wake while it is the innermost: it is a measurement
    started: float = field(default_factory=time.monotonic)
    done: float = 0.0
    first: float = 0.0  # of `done`, what an earlier run did
    marked: float = 0.0  # when `done` was last true
    has_begun: bool = False  # of a measurement: it has reported

    def advance(self, by: float) -> None:
        """Add to what is done. A measurement's time before its first report is preparation."""
        now = time.monotonic()
        self.done += by
        self.marked = now
        if self.is_timed and not self.has_begun and by > 0:
            self.has_begun, self.first, self.started = True, self.done, now

    def seconds_left(self, now: float) -> float | None:
        """Return the seconds left at the pace so far; None before there is a pace."""
        new = self.done - self.first
        if self.total is None or new <= 0:
            return None
        pace = (self.marked - self.started) / new
        return max(0.0, pace * (self.total - self.done) - (now - self.marked))

    def count(self) -> str:
        """Return `12/64 prompts`, `37 %`, or an empty text."""
        if self.total is None:
            return ""
        if self.unit == "%":
            return f"{self.done:.0f} %"
        plural = "" if self.total == 1 else "s"
        return f"{self.done:.0f}/{self.total:.0f} {self.unit}{plural}"

    def clock(self, now: float) -> str:
        """Return the time left, or the time taken where that is not known."""
        left = self.seconds_left(now)
        return clock(now - self.started) if left is None else f"{clock(left)} left"


def clock(seconds: float) -> str:
    """Return seconds as `0:07`, `12:34`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def bar(
    total: float, name: str, unit: str, done: float = 0, *, is_timed: bool = False
) -> Iterator[Callable[[float], None]]:
    """Show a bar; yield a function to call with the amount that was done since its last call.

    unit: of one, e.g. `prompt`; done: what an earlier run did; is_timed: draw only in these calls
    """
    line = Line(name, total, unit, is_timed, done=done, first=done)
    with _show(line) as redraw:

        def advance(by: float) -> None:
            line.advance(by)
            redraw()

        yield advance


@contextmanager
def share_bar(name: str) -> Iterator[Callable[[float], None]]:
    """Show a measurement's bar; yield a function to call with the share done so far, in [0, 1]."""
    done = 0.0
    with bar(100, name, "%", is_timed=True) as advance:

        def reach(share: float) -> None:
            nonlocal done
            advance(100 * share - done)
            done = 100 * share

        yield reach


@contextmanager
def step(name: str) -> Iterator[Callable[[str], None]]:
    """Show work of unknown length; yield a function to call with the name of its current stage."""
    line = Line(name)
    with _show(line):

        def rename(now: str) -> None:
            line.name, line.started = f"{name}: {now}", time.monotonic()

        yield rename


@contextmanager
def aside() -> Iterator[None]:
    """Erase all lines and draw none inside the block, so that it can print."""
    with _DISPLAY.lock:
        _DISPLAY.erase()
        yield


def say(message: str) -> None:
    """Print a line on stderr: something that the user should know and that no record holds."""
    with aside():
        print(message, file=sys.stderr)


@contextmanager
def _show(line: Line) -> Iterator[Callable[[], None]]:
    if not _DISPLAY.open(line):
        yield lambda: None
        return
    try:
        yield _DISPLAY.redraw
    finally:
        _DISPLAY.close(line)


class _Display:
    """The lines of this process, and the thread that redraws their clocks."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._lines: list[Line] = []
        self._stream: TextIO = sys.stderr
        self._live: Live | None = None
        self._drawn = 0.0
        self._has_ended = threading.Event()

    def open(self, line: Line) -> bool:
        """Add a line; return False where stderr is no terminal."""
        with self.lock:
            if not self._lines:
                if not _is_for_people(sys.stderr):
                    return False
                self._stream = sys.stderr
                self._has_ended = threading.Event()
                threading.Thread(target=self._tick, args=(self._has_ended,), daemon=True).start()
            self._lines.append(line)
            if line.is_timed:
                self._draw()
            return True

    def close(self, line: Line) -> None:
        with self.lock:
            self._lines.remove(line)
            if not self._lines:
                self._has_ended.set()
                self.erase()

    def redraw(self) -> None:
        """Draw, unless the last drawing is too recent or the work has not lasted long enough."""
        with self.lock:
            if self._lines and time.monotonic() - self._drawn >= SECONDS_BETWEEN:
                self._draw()

    def erase(self) -> None:
        """Remove what is drawn and restore the terminal."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _tick(self, has_ended: threading.Event) -> None:
        while not has_ended.wait(SECONDS_BETWEEN):
            with self.lock:
                if not has_ended.is_set() and self._may_wake(self._lines[-1]):
                    self._draw()

    def _may_wake(self, innermost: Line) -> bool:
        """Return whether the thread may draw: seldom before a measurement, never during one."""
        if not innermost.is_timed:
            return True
        return not innermost.has_begun and time.monotonic() - self._drawn >= SECONDS_PREPARING

    def _draw(self) -> None:
        now = self._drawn = time.monotonic()
        outermost = self._lines[0]
        if now - outermost.started < SECONDS_BEFORE and not self._lines[-1].is_timed:
            return
        if self._live is None:
            self._live = _start(self._stream)
        columns = self._live.console.width
        self._live.update(_drawing(self._lines, now, columns), refresh=True)


def _is_for_people(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _start(stream: TextIO) -> Live:
    from rich.console import Console
    from rich.live import Live

    live = Live(
        console=Console(file=stream),
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    live.start()
    live.console.show_cursor(True)  # a process that is killed cannot bring it back
    return live


def _drawing(lines: list[Line], now: float, columns: int) -> Table:
    """Return the lines as a table. Long names are cut; bars, counts and clocks never are."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    clocks, counts = [line.clock(now) for line in lines], [line.count() for line in lines]
    widths = [
        BAR_COLUMNS if any(line.total for line in lines) else 0,
        max(map(len, counts)),
        max(map(len, clocks)),
    ]
    room = columns - 1 - sum(widths) - GAP * 3
    table = Table.grid(padding=(0, GAP))
    table.add_column(width=max(1, room), no_wrap=True, overflow="ellipsis")
    for width in widths:
        table.add_column(width=width, no_wrap=True, justify="right")
    for depth, (line, count, time_left) in enumerate(zip(lines, counts, clocks, strict=True)):
        bar_drawn = ProgressBar(line.total, line.done, width=BAR_COLUMNS) if line.total else ""
        name = Text("  " * depth + line.name)
        table.add_row(name, bar_drawn, count, Text(time_left, style="dim"))
    return table


_DISPLAY = _Display()
