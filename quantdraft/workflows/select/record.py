"""The record of a choice: its rows, its recommendation, and what was left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from quantdraft.record import Interval
from quantdraft.workflows.select.traits import Traits

SELECTION_SCHEMA_VERSION = 1
SELECTION_FILE = "selection.json"

Basis = Literal["measured", "predicted"]


@dataclass(frozen=True, slots=True)
class DomainRate:
    """Accepted / proposed on the prompts of one domain."""

    domain: str
    num_prompts: int  # those with a round
    acceptance_rate: Interval


@dataclass(frozen=True, slots=True)
class Ranked:
    """One draft under one recipe. Speedups are over the target alone, at the row's own best k."""

    draft: str
    recipe: str  # "none": the draft as it is
    num_speculative_tokens: int  # its best k, by the speed that the ranking goes by
    measured: Interval | None
    predicted: Interval  # by bytes: a bound, and labelled as one
    acceptance_rate: Interval  # at the common k
    mean_acceptance_length: float  # at its own k
    draft_step_ms: float | None
    step_bytes: int
    draft_cost: float  # by the bytes
    size_ratio: float
    # Against the first row, in the same resamples; None in the first row itself.
    speed_ratio: Interval | None
    acceptance_gap: Interval | None
    length_ratio: float  # tokens a round over the first row's
    round_ratio: float  # time of a round over the first row's, in steps of the target
    traits: Traits
    decision: str | None  # the verdict on the recipe; None for a draft as it is
    alarms: tuple[str, ...]
    # A draft step over a step of the target, of the same block; None where one was not timed.
    step_cost: Interval | None = None
    by_domain: tuple[DomainRate, ...] = ()  # at the common k

    @property
    def is_slower(self) -> bool | None:
        """True when it is surely slower than the first row; None when the interval cannot tell."""
        if self.speed_ratio is None or self.speed_ratio.high >= 1:
            return None
        return True


@dataclass(frozen=True, slots=True)
class Selection:
    """A choice: rows, fastest first; `refused` has the reason for each draft that was left out."""

    schema_version: int
    target: str
    traffic: str
    acceptance_rule: str
    num_prompts: int
    common_k: int  # of the acceptance rates
    basis: Basis  # what the order goes by
    basis_reason: str  # why not by measured speed, or ""
    rows: tuple[Ranked, ...]
    refused: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # draft + recipe -> why
    # What `quantdraft check` warns of, by the draft's name.
    warnings: dict[str, tuple[str, ...]] = field(default_factory=dict)
    min_speedup: float = 1.0  # over the target alone, by the policy: under it nothing is taken

    @property
    def recommended(self) -> Ranked:
        """The fastest draft as it is, or recipe with a go: a recipe has to earn its place.

        In an order by prediction no recipe can have a go, so it is the first row.
        """
        if self.basis == "predicted":
            return self.rows[0]
        earned = [
            r for r in self.rows if r.recipe == "none" or (r.decision == "go" and not r.alarms)
        ]
        return earned[0] if earned else self.rows[0]

    @property
    def deciding_speed(self) -> Interval:
        """The recommended row's speed, of the kind that the order goes by."""
        best = self.recommended
        return best.measured if best.measured and self.basis == "measured" else best.predicted

    @property
    def pays(self) -> bool:
        """False when the recommended row is surely not faster than the policy asks."""
        return self.deciding_speed.high > self.min_speedup

    @property
    def passed_over(self) -> tuple[Ranked, ...]:
        """Rows that are faster than the recommended one by the estimate, and have no go."""
        return self.rows[: self.rows.index(self.recommended)]

    @property
    def undecided(self) -> tuple[Ranked, ...]:
        """Rows that the intervals cannot tell from the first."""
        return tuple(row for row in self.rows[1:] if not row.is_slower)

    def short_name(self, draft: str) -> str:
        """Return a draft's last name where no other has the same, else all that the user gave."""
        names = [Path(each).name for each in {row.draft for row in self.rows}]
        last = Path(draft).name
        return last if names.count(last) == 1 else draft

    def row_name(self, row: Ranked) -> str:
        """Return `draft` or `draft + recipe`."""
        draft = self.short_name(row.draft)
        return draft if row.recipe == "none" else f"{draft} + {row.recipe}"
