"""The break-even plane: how much acceptance may be lost for how much faster a draft step.

At one k, with the baseline's measured draft step and verification. A round of the candidate takes
k · t_d / s + t_v, and emits 1 + k · (rate − loss) tokens: accepted / proposed gives the mean
acceptance length, up to cut last rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from quantdraft.record import AcceptanceComparison, Evaluation, Interval, SpeedPoint
from quantdraft.record.terms import nearest_to_usual

NUM_ELLIPSE_POINTS = 72
# Axes are 95 % intervals of one number each; both together hold 95 % only in an ellipse this much
# larger: sqrt(chi-squared(2, 0.95)) / 1.96.
JOINT = math.sqrt(-2 * math.log(0.05)) / 1.959964


@dataclass(frozen=True, slots=True)
class Plane:
    """What the frontier is drawn from. Times are in ms, at the operating point."""

    num_speculative_tokens: int
    draft_step_ms: float  # the baseline's
    verify_step_ms: float
    baseline_length: float

    def allowed_loss(self, draft_speedup: float, speedup: float = 1.0) -> float:
        """The acceptance rate loss at which the candidate is `speedup` times the baseline's speed.

        Negative: the candidate would have to be accepted more often than the baseline.
        """
        k = self.num_speculative_tokens
        before = k * self.draft_step_ms + self.verify_step_ms
        after = k * self.draft_step_ms / draft_speedup + self.verify_step_ms
        return self.baseline_length * (1 - speedup * after / before) / k

    def needed_draft_speedup(self, loss: float, speedup: float = 1.0) -> float | None:
        """The draft speed-up at which that loss still gives `speedup`; None where none does."""
        k = self.num_speculative_tokens
        before = k * self.draft_step_ms + self.verify_step_ms
        length = self.baseline_length - k * loss
        left = before * length / (speedup * self.baseline_length) - self.verify_step_ms
        return k * self.draft_step_ms / left if left > 0 else None


def plane_of(evaluation: Evaluation) -> Plane | None:
    """At the candidate's k, for both arms; None where a step was not timed."""
    k = evaluation.operating_point.candidate_num_speculative_tokens
    point, acceptance = point_at(evaluation, k), acceptance_at(evaluation, k)
    if point is None or acceptance is None:
        return None
    if point.baseline_draft_step_ms is None or point.baseline_verify_step_ms is None:
        return None
    return Plane(
        k,
        point.baseline_draft_step_ms,
        point.baseline_verify_step_ms,
        acceptance.baseline_length.value,
    )


def point_at(evaluation: Evaluation, k: int) -> SpeedPoint | None:
    """Both arms' speed at one k."""
    points = (p for p in evaluation.equal_k if p.candidate_num_speculative_tokens == k)
    return next(points, None)


def shown_k(evaluation: Evaluation) -> int:
    """The k at which acceptance is shown, for both arms and in every comparison of runs.

    It follows from what was replayed, and not from a best k, which the timing's noise may move.
    """
    return nearest_to_usual(evaluation.num_speculative_tokens)


def slices_k(evaluation: Evaluation) -> int:
    """The k of the record's slices and disagreements."""
    operating_k = evaluation.operating_point.candidate_num_speculative_tokens
    return operating_k if evaluation.slices_k is None else evaluation.slices_k


def acceptance_at(evaluation: Evaluation, k: int) -> AcceptanceComparison | None:
    """Both arms' acceptance at one k, or None where it was not replayed."""
    found = (row for row in evaluation.acceptance if row.num_speculative_tokens == k)
    return next(found, None)


def draft_speedup(evaluation: Evaluation) -> Interval | None:
    """Baseline over candidate draft step, from the paired saving; None where not measured."""
    saving = evaluation.operating_point.draft_latency_saving
    if saving is None or saving.high >= 1:
        return None
    return Interval(1 / (1 - saving.value), 1 / (1 - saving.low), 1 / (1 - saving.high))


def ellipse(x: Interval, y: Interval) -> list[tuple[float, float]]:
    """A closed line around the 95 % joint region of two independent numbers.

    Intervals need not be even about their values, so each quarter has its own axes.
    """
    points = []
    for at in range(NUM_ELLIPSE_POINTS + 1):
        angle = 2 * math.pi * at / NUM_ELLIPSE_POINTS
        across, up = math.cos(angle), math.sin(angle)
        width = JOINT * (x.high - x.value if across > 0 else x.value - x.low)
        height = JOINT * (y.high - y.value if up > 0 else y.value - y.low)
        points.append((x.value + across * width, y.value + up * height))
    return points


def frontier(plane: Plane, speedups: Sequence[float], speedup: float) -> list[tuple[float, float]]:
    """(loss, draft speed-up) at which the candidate is exactly `speedup` times as fast."""
    return [(plane.allowed_loss(s, speedup), s) for s in speedups]
