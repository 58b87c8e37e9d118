"""The checks of a verdict: what was observed, held to its limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quantdraft.judge.verdict.policy import Policy
from quantdraft.record import AcceptanceComparison, Alarm, Check, CheckResult, Interval, SpeedPoint
from quantdraft.record.verdict import (
    IS_OTHER,
    OVER_AUTOREGRESSIVE,
    OVER_BASELINE,
    RATE,
    RATE_LOSS,
)
from quantdraft.record.wording import loss_words, valued

Kind = Literal["decides", "advises"]
Comparison = Literal[">=", ">", "<="]

NO_ALARM = "no alarm"


@dataclass(frozen=True, slots=True)
class Evidence:
    """The numbers of one evaluation, as `decide` reads them."""

    candidate_name: str  # e.g. the recipe's name
    baseline_name: str  # as in "the bf16 draft"
    is_identity: bool  # a control: the candidate is the baseline's copy, nothing was quantized
    acceptance: AcceptanceComparison  # at the candidate's k of the operating point
    speed: SpeedPoint  # at the operating point
    num_prompts: int  # or of conversations, where these are resampled
    num_timings: int  # blocks, as many samples of each step
    alarms: tuple[Alarm, ...] = ()
    timing_seconds: float | None = None  # that the timings took; None in old records
    speed_undefined: str | None = None  # why speed was not measured, when it was not
    resampled: str = "prompts"  # what intervals resample: "prompts" or "conversations"
    where: str = ""  # what the speeds are of: "over the trace 'x.csv'"; "": the operating point
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


def all_checks(evidence: Evidence, policy: Policy) -> tuple[Check, ...]:
    """Return every check, in the order they are shown."""
    return (
        *_speed_checks(evidence, policy),
        *_acceptance_checks(evidence, policy),
        _other_than_baseline(evidence),
        _no_alarm(evidence),
    )


def result_of(observed: Interval | None, comparison: Comparison, limit: float) -> CheckResult:
    """Return the result of a check; unsure when the interval straddles the limit."""
    if observed is None:
        return "undefined"
    ends = {_allows(observed.low, comparison, limit), _allows(observed.high, comparison, limit)}
    if len(ends) == 2:
        return "unsure"
    return "pass" if ends == {True} else "fail"


def _allows(value: float, comparison: Comparison, limit: float) -> bool:
    return {">=": value >= limit, ">": value > limit, "<=": value <= limit}[comparison]


def _speed_checks(evidence: Evidence, policy: Policy) -> tuple[Check, Check]:
    speed = evidence.speed
    over_draft, over_target = speed.speedup_over_baseline, speed.speedup_over_autoregressive
    why = evidence.speed_undefined or "latency was not measured"
    of_draft = f"{valued(over_draft, 'speedup')} of the baseline draft's speed"
    of_target = f"{valued(over_target, 'speedup')} of the target's own speed"
    return (
        _against_limit(
            OVER_BASELINE,
            "decides",
            over_draft,
            ">=",
            policy.min_speedup_over_baseline,
            of_draft if over_draft else why,
        ),
        _against_limit(
            OVER_AUTOREGRESSIVE,
            "decides",
            over_target,
            ">",
            policy.min_speedup_over_autoregressive,
            of_target if over_target else why,
        ),
    )


def _acceptance_checks(evidence: Evidence, policy: Policy) -> tuple[Check, Check]:
    """Return the checks of acceptance; where speed was measured they decide nothing."""
    kind: Kind = "advises" if evidence.is_speed_measured else "decides"
    k = evidence.rates.num_speculative_tokens
    loss, rate = evidence.rates.acceptance_rate_loss, evidence.rates.candidate_rate
    most_lost, least = policy.max_acceptance_rate_loss, policy.min_acceptance_rate
    kept = f"{valued(rate, 'rate')} of the proposed tokens"
    return (
        _against_limit(RATE_LOSS, kind, loss, "<=", most_lost, loss_words(loss), k),
        _against_limit(RATE, kind, rate, ">=", least, kept, k),
    )


def _against_limit(
    name: str,
    kind: Kind,
    observed: Interval | None,
    comparison: Comparison,
    limit: float,
    reason: str,
    k: int | None = None,
) -> Check:
    result = result_of(observed, comparison, limit)
    return Check(name, kind, result, observed, limit, comparison, reason, k)


def _other_than_baseline(evidence: Evidence) -> Check:
    is_other = not evidence.is_identity
    reason = "it is not the baseline's copy" if is_other else "control: nothing was quantized"
    return _yes_or_no(IS_OTHER, is_other, reason)


def _no_alarm(evidence: Evidence) -> Check:
    codes = ", ".join(alarm.code for alarm in evidence.alarms)
    return _yes_or_no(NO_ALARM, not evidence.alarms, codes or "none was raised")


def _yes_or_no(name: str, is_pass: bool, reason: str) -> Check:
    result: CheckResult = "pass" if is_pass else "fail"
    return Check(name, "decides", result, None, None, None, reason)
