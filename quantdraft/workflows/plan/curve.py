"""Speedup over the target alone by k, for one acceptance per token and one cost of a draft step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantdraft.errors import OptionError, UndefinedMetricError
from quantdraft.judge import speedup
from quantdraft.judge.acceptance import alpha_from_length, closed_form_length, rate_from_length


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One k. Both speedups are over the target alone; only Leviathan et al.'s is a theorem."""

    num_speculative_tokens: int
    mean_acceptance_length: float
    acceptance_rate: float  # accepted / proposed, which engines print: it falls with k
    leviathan: float
    rule_of_thumb: float
    operations: float  # arithmetic of speculation over that of the target alone
    break_even_alpha: float | None  # from which speculation pays at this k; None where none does


@dataclass(frozen=True, slots=True)
class Curve:
    """All the k that were asked for, in order."""

    alpha: float  # acceptance per token asked for, independent: Leviathan et al.'s α
    draft_cost: float  # a draft step over a step of the target: their c
    points: tuple[CurvePoint, ...]

    @property
    def best(self) -> CurvePoint:
        """The k of the highest speedup, of equal ones the smallest; it may still be under 1."""
        return max(self.points, key=lambda point: point.leviathan)

    @property
    def best_by_rule_of_thumb(self) -> CurvePoint:
        """The k that the rule of thumb would choose: it grows with k, so nearly always the last."""
        return max(self.points, key=lambda point: point.rule_of_thumb)

    @property
    def ends_at_best(self) -> bool:
        """True when the best k is the highest: a higher one may be better still."""
        return self.best is self.points[-1]


def plan_curve(alpha: float, draft_cost: float, ks: Sequence[int]) -> Curve:
    """Return a point for every k. Raises OptionError for an α outside [0, 1] or a cost below 0.

    draft_cost: 0 is a proposal that costs no time, as one looked up in the text (n-grams)
    """
    if not 0 <= alpha <= 1:
        raise OptionError(
            f"--alpha {alpha:g}: it is a share of the tokens asked for, in 0..1. Write 0.75 for "
            "75 %."
        )
    if not 0 <= draft_cost < float("inf"):
        raise OptionError(
            f"--draft-cost {draft_cost:g}: it is a draft step over a step of the target, at least "
            "0. Write 0.05 where the target takes 20 times as long, 0 for proposals without a "
            "model (n-grams)."
        )
    return Curve(alpha, draft_cost, tuple(_point(alpha, draft_cost, k) for k in ks))


def _point(alpha: float, cost: float, k: int) -> CurvePoint:
    length = closed_form_length(alpha, k)
    return CurvePoint(
        num_speculative_tokens=k,
        mean_acceptance_length=length,
        acceptance_rate=rate_from_length(length, k),
        leviathan=speedup.leviathan(alpha, k, cost),
        rule_of_thumb=speedup.rule_of_thumb(alpha, k, cost),
        operations=speedup.operations_factor(alpha, k, cost),
        break_even_alpha=_break_even(k, cost),
    )


def _break_even(k: int, cost: float) -> float | None:
    """Return the α at which a round emits as many tokens as it costs steps of the target."""
    try:
        return alpha_from_length(k * cost + 1, k)
    except UndefinedMetricError:
        return None
