"""A clock that moves only when somebody moves it: what takes how long is then known."""

from __future__ import annotations


class Clock:
    """Stands for the module `time` where a test patches it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def perf_counter(self) -> float:
        """Seconds that were slept so far."""
        return self.seconds

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.seconds += seconds
