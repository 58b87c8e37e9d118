"""What the judge makes of the measurements: every number and sentence that a page shows.

It follows from the measured parts of the record, so a record without it can be filled in again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quantdraft.record.terms import ARMS, Amount, Arm, Count, Finite, Interval, Positive, Ratio
from quantdraft.record.timing import SpeedPoint
from quantdraft.record.verdict import Decision

State = Literal["found", "cannot tell"]
# Of a proposed token; a token after a rejection, or the bonus token, was never proposed.
TokenFate = Literal["accepted", "rejected", "not proposed"]
FATES: dict[str, TokenFate] = {"+": "accepted", "x": "rejected", ".": "not proposed"}


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
    threshold: Finite | None = None

    @property
    def sentence(self) -> str:
        """All of it in one paragraph, for a terminal or a Markdown page."""
        opening = self.finding if self.state == "found" else f"cannot tell whether {self.finding}"
        text = f"{opening}: {self.seen}; {self.limit} ({self.source}). Next: {self.action}"
        return f"{text}: `{self.command}`" if self.command else f"{text}."


@dataclass(frozen=True, slots=True)
class GridPoint:
    """One batch and context, each arm at its best k there. `speed` None: undefined."""

    batch_size: Positive
    context_length: Count
    speed: SpeedPoint | None
    reason: str  # why it is undefined, or ""
    # By the two speed checks at this point, and the run's checks that hold at every point.
    decision: Decision | None = None

    @property
    def better_arm(self) -> Arm | None:
        """The arm of the larger speedup over the target alone; None where neither was timed."""
        if self.speed is None:
            return None
        over = {arm: self.speed.of(arm).speedup_over_autoregressive for arm in ARMS[::-1]}
        known = {arm: ends.value for arm, ends in over.items() if ends is not None}
        best = max(known.items(), key=lambda each: each[1], default=None)
        return None if best is None else best[0]

    @property
    def better_speedup(self) -> Interval | None:
        """The better arm's speedup over the target alone; None where neither was timed."""
        arm = self.better_arm
        if self.speed is None or arm is None:
            return None
        return self.speed.of(arm).speedup_over_autoregressive


@dataclass(frozen=True, slots=True)
class TokenFates:
    """What most likely happened to each token of a `Disagreement`, one character of FATES each."""

    baseline: str
    candidate: str

    def of(self, arm: Arm) -> tuple[TokenFate, ...]:
        """Return one arm's fates in words, (tokens,)."""
        return tuple(
            FATES[mark] for mark in (self.baseline if arm == "baseline" else self.candidate)
        )


@dataclass(frozen=True, slots=True)
class Analysis:
    """What follows from one evaluation's measurements, by the limits that it was judged by."""

    min_speedup_over_baseline: Ratio  # that the verdict asked for
    min_speedup_over_autoregressive: Ratio
    num_resamples: Positive  # of every interval
    # Acceptance per token asked for, at the k where rates are shown; None: it was not replayed.
    baseline_alpha: Interval | None
    candidate_alpha: Interval | None
    grid: tuple[GridPoint, ...]  # every timed batch and context, by batch
    # By context, the smallest batch at which the better draft is surely no faster than the target
    # alone; None: no timed one is.
    stops_paying_at: dict[Count, Positive | None]
    diagnoses: tuple[Diagnosis, ...]  # what was found first, then what cannot be told
    turning_points: tuple[str, ...]  # what would change the answer, a sentence each
    obstacle: str | None  # what keeps it from a go, as the rest of a sentence; None for a go
    fates: tuple[TokenFates, ...]  # of each of `Evaluation.disagreements`
    # One load's standard deviation of the log of a served arm's time per token; None: not known.
    served_load_error: Amount | None = None
