"""Everything a verdict rests on, gathered in one place."""

from __future__ import annotations

from dataclasses import dataclass

from quantdraft.record import AcceptanceComparison, Alarm, SpeedPoint


@dataclass(frozen=True, slots=True)
class Evidence:
    """The numbers of one evaluation, as `decide` reads them."""

    candidate_name: str  # e.g. the recipe's name
    baseline_name: str  # as in "the bf16 draft"
    is_identity: bool  # a control: the candidate is the baseline's copy, nothing was quantized
    acceptance: AcceptanceComparison  # at the candidate's k of the operating point
    speed: SpeedPoint  # at the operating point
    num_prompts: int
    num_timings: int  # blocks, as many samples of each step
    alarms: tuple[Alarm, ...] = ()
    timing_seconds: float | None = None  # that the timings took; None in old records
    speed_undefined: str | None = None  # why speed was not measured, when it was not
    shown: AcceptanceComparison | None = None  # at the k where rates are shown; None: the same k

    @property
    def rates(self) -> AcceptanceComparison:
        """The rates that are shown and held to their limits."""
        return self.acceptance if self.shown is None else self.shown

    @property
    def is_speed_measured(self) -> bool:
        """True when both speedups that decide are defined."""
        return (
            self.speed.speedup_over_baseline is not None
            and self.speed.speedup_over_autoregressive is not None
        )
