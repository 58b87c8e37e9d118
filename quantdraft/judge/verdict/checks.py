"""One line of the verdict each: what was observed, against its limit."""

from __future__ import annotations

from typing import Literal

from quantdraft.judge.verdict.evidence import Evidence
from quantdraft.judge.verdict.policy import Policy
from quantdraft.judge.verdict.wording import percent, signed, times
from quantdraft.record import Check, CheckResult, Interval
from quantdraft.record.verdict import (
    IS_OTHER,
    OVER_AUTOREGRESSIVE,
    OVER_BASELINE,
    RATE,
    RATE_LOSS,
)

Kind = Literal["decides", "advises"]
Comparison = Literal[">=", ">", "<="]

NO_ALARM = "no alarm"


def all_checks(evidence: Evidence, policy: Policy) -> tuple[Check, ...]:
    """Every check, in the order they are shown."""
    return (
        *_speed_checks(evidence, policy),
        *_acceptance_checks(evidence, policy),
        _other_than_baseline(evidence),
        _no_alarm(evidence),
    )


def result_of(observed: Interval | None, comparison: Comparison, limit: float) -> CheckResult:
    """Unsure when the interval straddles the limit. Only a pass counts towards a go."""
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
    return (
        Check(
            name=OVER_BASELINE,
            kind="decides",
            result=result_of(over_draft, ">=", policy.min_speedup_over_baseline),
            observed=over_draft,
            limit=policy.min_speedup_over_baseline,
            comparison=">=",
            reason=why if over_draft is None else f"{times(over_draft)} the baseline draft's speed",
        ),
        Check(
            name=OVER_AUTOREGRESSIVE,
            kind="decides",
            result=result_of(over_target, ">", policy.min_speedup_over_autoregressive),
            observed=over_target,
            limit=policy.min_speedup_over_autoregressive,
            comparison=">",
            reason=why if over_target is None else f"{times(over_target)} the target alone",
        ),
    )


def _acceptance_checks(evidence: Evidence, policy: Policy) -> tuple[Check, Check]:
    """Loss is already inside the speedup: where speed was measured, these explain it only."""
    kind: Kind = "advises" if evidence.is_speed_measured else "decides"
    k = evidence.rates.num_speculative_tokens
    loss, rate = evidence.rates.acceptance_rate_loss, evidence.rates.candidate_rate
    return (
        Check(
            name=RATE_LOSS,
            kind=kind,
            result=result_of(loss, "<=", policy.max_acceptance_rate_loss),
            observed=loss,
            limit=policy.max_acceptance_rate_loss,
            comparison="<=",
            reason=f"{signed(loss.value)} points lost ({signed(loss.low)} to {signed(loss.high)})",
            num_speculative_tokens=k,
        ),
        Check(
            name=RATE,
            kind=kind,
            result=result_of(rate, ">=", policy.min_acceptance_rate),
            observed=rate,
            limit=policy.min_acceptance_rate,
            comparison=">=",
            reason=f"{percent(rate.value)} of the proposed tokens "
            f"({percent(rate.low)} to {percent(rate.high)})",
            num_speculative_tokens=k,
        ),
    )


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
