"""Several evaluations of one question side by side: which recipe, and which really differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from quantdraft.record.evaluation import Evaluation
from quantdraft.record.terms import Interval
from quantdraft.record.verdict import Decision

COMPARISON_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class RecipePair:
    """Two runs by name. An interval is None where what it needs was not measured.

    Both intervals hold together over all pairs with 95 % confidence (Bonferroni).
    """

    one: str
    other: str
    acceptance_rate_gap: Interval | None  # one minus other, at the common k
    speed_ratio: Interval | None  # speedup over the baseline of one, over that of the other

    @property
    def is_different(self) -> bool | None:
        """In speed where it was measured for both, in acceptance where not; None unknown."""
        if self.speed_ratio is not None:
            return not self.speed_ratio.low <= 1 <= self.speed_ratio.high
        if self.acceptance_rate_gap is not None:
            return not self.acceptance_rate_gap.low <= 0 <= self.acceptance_rate_gap.high
        return None


@dataclass(frozen=True, slots=True)
class ParetoPoint:
    """One draft's acceptance rate against its step, on the scale of the first run's baseline."""

    name: str
    draft_step_ms: Interval
    acceptance_rate: Interval
    is_on_front: bool  # no other draft keeps as much in a shorter step


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """One run's place in a comparison."""

    name: str  # its own: the second run of one name is "name (2)"
    decision: Decision
    is_control: bool  # the baseline's copy, and no recipe
    best_k: dict[str, int | None]  # "baseline", "candidate"
    speedup_over_baseline: Interval | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the runs of one question say together. Recipes without a speed come last."""

    schema_version: int
    runs: tuple[ComparedRun, ...]  # fastest first
    num_speculative_tokens: int | None  # k of every acceptance here; None: the runs share none
    min_speedup_over_baseline: float  # that a go needs
    pairs: tuple[RecipePair, ...]
    pareto: tuple[ParetoPoint, ...]  # the baseline first; () where there is nothing to compare
    recommended: str | None  # the fastest recipe with a go
    rivals: tuple[str, ...]  # recipes with a go that cannot be told apart from it

    @property
    def recipes(self) -> tuple[ComparedRun, ...]:
        """Every run but the control."""
        return tuple(run for run in self.runs if not run.is_control)


class ComparedRuns(NamedTuple):
    """The runs of a comparison, named and in its order, and what they say together."""

    evaluations: tuple[Evaluation, ...]
    comparison: Comparison
