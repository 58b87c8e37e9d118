"""What a diagnosis is: something seen, the limit it was held to, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quantdraft.record import Interval

State = Literal["found", "cannot tell"]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One line of advice with the numbers it rests on; every text is without a final stop.

    The interval decides: wholly beyond the limit is "found", across it "cannot tell", and wholly
    within it is no diagnosis at all.
    """

    code: str  # stable, e.g. "wrong-draft"
    state: State
    finding: str  # what it means, e.g. "this is probably the wrong draft"
    seen: str  # what was measured, with its 95 % interval
    limit: str  # what that was held to
    source: str  # where the limit comes from
    action: str  # what to do next
    command: str | None = None  # the command that does it, where there is one
    observed: Interval | None = None  # None: not measured, or not recorded
    threshold: float | None = None

    @property
    def sentence(self) -> str:
        """All of it in one paragraph, for a terminal or a Markdown page."""
        opening = self.finding if self.state == "found" else f"cannot tell whether {self.finding}"
        text = f"{opening}: {self.seen}; {self.limit} ({self.source}). Next: {self.action}"
        return f"{text}: `{self.command}`" if self.command else f"{text}."
