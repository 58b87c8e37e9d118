"""What a trace of requests asks of the timed points, and the speed over it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quantdraft.record.terms import Amount, Arm, Count, Interval, K, Milliseconds, Positive, Ratio


@dataclass(frozen=True, slots=True)
class TraceCell:
    """A timed point, and the tokens of the trace that are decoded nearest to it."""

    batch_size: Positive
    context_length: Count
    num_tokens: Amount


@dataclass(frozen=True, slots=True)
class TraceSpeed:
    """Both arms over all tokens of a trace, each at the k that is fastest there.

    Times are means over the tokens: every token counts once, at its point's measured time. A
    speedup is the ratio of two such means.
    """

    baseline_num_speculative_tokens: K
    candidate_num_speculative_tokens: K
    baseline_ms_per_token: Milliseconds
    candidate_ms_per_token: Milliseconds
    autoregressive_ms_per_token: Milliseconds
    speedup_over_baseline: Interval
    speedup_over_autoregressive: Interval
    baseline_speedup_over_autoregressive: Interval

    def of(self, arm: Arm) -> K:
        """Return one arm's k."""
        if arm == "baseline":
            return self.baseline_num_speculative_tokens
        return self.candidate_num_speculative_tokens


@dataclass(frozen=True, slots=True)
class TraceFigures:
    """A trace laid on the timed points; where they do not cover it, `speed` is None."""

    path: str
    sha256: str
    reading: dict[str, Any]
    num_servers: Positive  # that share its requests
    num_requests: Count
    num_tokens: Count  # of all responses
    # What the number in flight was found with: ms in which each request gets a token, by batch.
    ms_per_token: dict[Positive, Milliseconds]
    is_pace_given: bool  # by the user; else it is the baseline draft's, as it was timed
    mean_in_flight: Amount  # over tokens: what a token shares its batch with
    max_in_flight: Count
    cells: tuple[TraceCell, ...]
    num_uncovered_tokens: Amount  # at batches or contexts that no timed point is near to
    speed: TraceSpeed | None
    reason: str = ""  # why it is undefined

    def share(self, num_tokens: float) -> Ratio:
        """Return tokens as a share of all that are decoded."""
        return num_tokens / (
            sum(each.num_tokens for each in self.cells) + self.num_uncovered_tokens
        )
