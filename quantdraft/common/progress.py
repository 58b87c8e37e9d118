"""What takes long says so on stderr, with the time left: for people, silent without a terminal.

Lines lie within one another: the stage of a job under the job. All of them are gone when they end.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

Item = TypeVar("Item")

SECONDS_BEFORE = 1.0  # what ends sooner is never shown
SECONDS_BETWEEN = 0.5  # drawings
SECONDS_PREPARING = 5.0  # the same while a measurement is prepared: kernels are tried then
BAR_COLUMNS, GAP = 20, 2


@dataclass(slots=True, eq=False)
class Line:
    """One thing that is being done; `total` is None where nobody knows how much it is."""

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
        """So much more is done. What a measurement does before its first report is preparation."""
        now = time.monotonic()
        self.done += by
        self.marked = now
        if self.is_timed and not self.has_begun and by > 0:
            self.has_begun, self.first, self.started = True, self.done, now

    def seconds_left(self, now: float) -> float | None:
        """At the pace so far; None before there is any."""
        new = self.done - self.first
        if self.total is None or new <= 0:
            return None
        pace = (self.marked - self.started) / new
        return max(0.0, pace * (self.total - self.done) - (now - self.marked))

    def count(self) -> str:
        """`12/64 prompts`, `37 %`, or nothing."""
        if self.total is None:
            return ""
        if self.unit == "%":
            return f"{self.done:.0f} %"
        plural = "" if self.total == 1 else "s"
        return f"{self.done:.0f}/{self.total:.0f} {self.unit}{plural}"

    def clock(self, now: float) -> str:
        """The time left, or the time taken where that is not known."""
        left = self.seconds_left(now)
        return clock(now - self.started) if left is None else f"{clock(left)} left"


def clock(seconds: float) -> str:
    """`0:07`, `12:34`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def bar(
    total: float, name: str, unit: str, done: float = 0, *, is_timed: bool = False
) -> Iterator[Callable[[float], None]]:
    """Yield a function that says how much more is done.

    unit: of one, e.g. `prompt`; done: what an earlier run did; is_timed: draw between calls alone
    """
    line = Line(name, total, unit, is_timed, done=done, first=done)
    with _shown(line) as redraw:

        def advance(by: float) -> None:
            line.advance(by)
            redraw()

        yield advance


@contextmanager
def share_bar(name: str) -> Iterator[Callable[[float], None]]:
    """Yield a function that says which share of a measurement, in [0, 1], is done by now."""
    done = 0.0
    with bar(100, name, "%", is_timed=True) as advance:

        def reach(share: float) -> None:
            nonlocal done
            advance(100 * share - done)
            done = 100 * share

        yield reach


@contextmanager
def show_progress(name: str = "quantdraft") -> Iterator[Callable[[str], None]]:
    """Draw progress and print notes on stderr while the block runs; outside of one all is silent.

    Yields a function that says what is done now.
    """
    _DISPLAY.num_viewers += 1
    try:
        with step(name) as rename:
            yield rename
    finally:
        _DISPLAY.num_viewers -= 1


@contextmanager
def step(name: str) -> Iterator[Callable[[str], None]]:
    """Something whose length nobody knows; yield a function that says what it is doing now."""
    line = Line(name)
    with _shown(line):

        def rename(now: str) -> None:
            line.name, line.started = f"{name}: {now}", time.monotonic()

        yield rename


def watched(items: Collection[Item], name: str, unit: str) -> Iterator[Item]:
    """The items, one by one, with a bar that counts those that are done with."""
    with bar(len(items), name, unit) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def aside() -> Iterator[None]:
    """While it lasts nothing is drawn: what is printed has the terminal for itself."""
    with _DISPLAY.lock:
        _DISPLAY.erase()
        yield


def say(message: str) -> None:
    """Print a line on stderr, or log it where progress is not shown: what no record holds."""
    if not _DISPLAY.num_viewers:
        logging.getLogger("quantdraft").info(message)
        return
    with aside():
        print(message, file=sys.stderr)


@contextmanager
def _shown(line: Line) -> Iterator[Callable[[], None]]:
    if not _DISPLAY.open(line):
        yield lambda: None
        return
    try:
        yield _DISPLAY.redraw
    finally:
        _DISPLAY.close(line)


class _Display:
    """The lines of this process, and the thread that lets their clocks go on."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.num_viewers = 0  # blocks of `show_progress`
        self._lines: list[Line] = []
        self._stream: TextIO = sys.stderr
        self._live: Live | None = None
        self._drawn = 0.0
        self._has_ended = threading.Event()

    def open(self, line: Line) -> bool:
        """False where nobody looks. Inner lines are shown where the outermost is."""
        with self.lock:
            if not self._lines:
                if not self.num_viewers or not _is_for_people(sys.stderr):
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
        """Draw, unless that was done a moment ago or nothing has lasted long enough."""
        with self.lock:
            if self._lines and time.monotonic() - self._drawn >= SECONDS_BETWEEN:
                self._draw()

    def erase(self) -> None:
        """Give the terminal back as it was."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _tick(self, has_ended: threading.Event) -> None:
        while not has_ended.wait(SECONDS_BETWEEN):
            with self.lock:
                if not has_ended.is_set() and self._may_wake(self._lines[-1]):
                    self._draw()

    def _may_wake(self, innermost: Line) -> bool:
        """Not during a measurement, and seldom while one is prepared."""
        if not innermost.is_timed:
            return True
        return not innermost.has_begun and time.monotonic() - self._drawn >= SECONDS_PREPARING

    def _draw(self) -> None:
        now = self._drawn = time.monotonic()
        outermost = self._lines[0]
        if now - outermost.started < SECONDS_BEFORE and not self._lines[-1].is_timed:
            return
        if self._live is None:
            self._live = _started(self._stream)
        columns = self._live.console.width
        self._live.update(_drawing(self._lines, now, columns), refresh=True)


def _is_for_people(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _started(stream: TextIO) -> Live:
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
    """Names are cut where there is no room; bars, counts and clocks never are."""
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
