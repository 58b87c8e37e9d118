"""The verdict in one sentence, which opens with the decision and holds its number."""

from __future__ import annotations

from collections.abc import Sequence

from quantdraft.judge.verdict.alarms import ACCEPTANCE_COLLAPSED
from quantdraft.judge.verdict.checks import Evidence
from quantdraft.judge.verdict.policy import Policy
from quantdraft.record import Check, Decision
from quantdraft.record.verdict import OVER_AUTOREGRESSIVE, OVER_BASELINE
from quantdraft.record.wording import change_percent, faster, loss_words, percent, valued


def summarize(
    evidence: Evidence, policy: Policy, checks: Sequence[Check], decision: Decision
) -> str:
    """Return e.g. "no-go: int4 is 3.1 % slower than the draft (95 % interval −4.0 to −2.2 %)"."""
    if evidence.alarms:
        return f"{decision}: {_alarm(evidence, decision)}"
    if evidence.is_identity:
        return f"{decision}: control: nothing was quantized{_control(evidence)}"
    if evidence.is_speed_measured:
        return f"{decision}: {_with_speed(evidence, policy, checks)}"
    if decision == "inconclusive":
        why = evidence.speed_undefined or "its latency was not asked for"
        return f"{decision}: speed was not measured ({why}). {_acceptance(evidence)}"
    failed = next(check.name for check in checks if check.result == "fail")
    return f"{decision}: the {failed} alone is enough to refuse it. {_acceptance(evidence)}"


def _alarm(evidence: Evidence, decision: Decision) -> str:
    collapsed = [alarm for alarm in evidence.alarms if alarm.code == ACCEPTANCE_COLLAPSED]
    others = [alarm for alarm in evidence.alarms if alarm.code != ACCEPTANCE_COLLAPSED]
    in_order = collapsed + others if decision == "no-go" else others + collapsed
    return in_order[0].message


def _control(evidence: Evidence) -> str:
    speedup = evidence.speed.speedup_over_baseline
    return "" if speedup is None else f"; it is {faster(speedup, f'the {evidence.baseline_name}')}"


def _with_speed(evidence: Evidence, policy: Policy, checks: Sequence[Check]) -> str:
    over_draft = evidence.speed.speedup_over_baseline
    over_target = evidence.speed.speedup_over_autoregressive
    assert over_draft is not None
    assert over_target is not None
    result = {check.name: check.result for check in checks}
    asked = change_percent(policy.min_speedup_over_baseline - 1)
    gain = f"{evidence.candidate_name} is {faster(over_draft, f'the {evidence.baseline_name}')}"
    if evidence.where:
        gain = f"{gain} {evidence.where}"
    if result[OVER_BASELINE] == "fail":
        return gain if over_draft.value < 1 else f"{gain}, less than the {asked} asked for"
    if result[OVER_AUTOREGRESSIVE] == "fail":
        return (
            f"speculation with {gain}, but only {valued(over_target, 'speedup')} as fast as "
            "the target alone"
        )
    if result[OVER_BASELINE] == "unsure":
        return f"{gain}, and the limit of {asked} lies inside that interval"
    if result[OVER_AUTOREGRESSIVE] == "unsure":
        return (
            f"{gain}, but whether it beats the target alone is open: it is "
            f"{valued(over_target, 'speedup')} as fast"
        )
    k = evidence.speed.candidate_num_speculative_tokens
    return f"{gain} and {valued(over_target, 'speedup')} as fast as the target alone, at k = {k}"


def _acceptance(evidence: Evidence) -> str:
    """Return both rates and their difference, all at one k."""
    acceptance = evidence.rates
    return (
        f"At k = {acceptance.num_speculative_tokens} {evidence.candidate_name} has an acceptance "
        f"rate of {percent(acceptance.candidate_rate.value)} where the {evidence.baseline_name} "
        f"has {percent(acceptance.baseline_rate.value)}, "
        f"{loss_words(acceptance.acceptance_rate_loss)}"
    )
