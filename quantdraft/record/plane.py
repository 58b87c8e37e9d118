"""The break-even plane: how much acceptance may be lost for how much faster a draft step.

At one k, with the baseline's measured draft step and verification. A round of the candidate takes
k · t_d / s + t_v, and emits 1 + k · (rate − loss) tokens: accepted / proposed gives the mean
acceptance length, up to cut last rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from quantdraft.record.terms import Interval

NUM_ELLIPSE_POINTS = 72
# Axes are 95 % intervals of one number each; both together hold 95 % only in an ellipse this much
# larger: sqrt(chi-squared(2, 0.95)) / 1.96.
JOINT = math.sqrt(-2 * math.log(0.05)) / 1.959964


@dataclass(frozen=True, slots=True)
class Plane:
    """The numbers that the frontier is drawn from. Times are in ms, at the operating point."""

    num_speculative_tokens: int
    draft_step_ms: float  # the baseline's
    verify_step_ms: float
    baseline_length: float

    def allowed_loss(self, draft_speedup: float, speedup: float = 1.0) -> float:
        """Return the acceptance rate loss at which the candidate has `speedup` over the baseline.

        Negative: the candidate would have to be accepted more often than the baseline.
        """
        k = self.num_speculative_tokens
        before = k * self.draft_step_ms + self.verify_step_ms
        after = k * self.draft_step_ms / draft_speedup + self.verify_step_ms
        return self.baseline_length * (1 - speedup * after / before) / k

    def needed_draft_speedup(self, loss: float, speedup: float = 1.0) -> float | None:
        """Return the draft speed-up at which that loss still gives `speedup`; None: none does."""
        k = self.num_speculative_tokens
        before = k * self.draft_step_ms + self.verify_step_ms
        length = self.baseline_length - k * loss
        left = before * length / (speedup * self.baseline_length) - self.verify_step_ms
        return k * self.draft_step_ms / left if left > 0 else None

    def frontier(
        self, draft_speedups: Sequence[float], speedup: float
    ) -> list[tuple[float, float]]:
        """Return (loss, draft speed-up) where the candidate is exactly `speedup` times as fast."""
        return [(self.allowed_loss(each, speedup), each) for each in draft_speedups]


def ellipse(x: Interval, y: Interval) -> list[tuple[float, float]]:
    """Return a closed line around the 95 % joint region of two independent numbers.

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
