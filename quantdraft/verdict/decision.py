"""From checks and alarms to go, no-go or inconclusive.

All deciding checks pass: go. Any fails: no-go. Otherwise inconclusive. An alarm stops that: the
numbers are not what they seem, so it is inconclusive; only collapsed acceptance is itself a no-go.
Acceptance alone never gives a go, and neither does a draft that was not quantized.
"""

from __future__ import annotations

from collections.abc import Sequence

from quantdraft.results import Check, Decision, Verdict
from quantdraft.verdict.advice import all_advice
from quantdraft.verdict.alarms import (
    ACCEPTANCE_COLLAPSED,
    ENGINE_DISAGREES,
    LIVE_DIVERGENT,
    REPLAY_DISAGREES,
)
from quantdraft.verdict.checks import all_checks
from quantdraft.verdict.doubt import what_to_add
from quantdraft.verdict.evidence import Evidence
from quantdraft.verdict.policy import Policy
from quantdraft.verdict.summary import summarize

DEFAULT = Policy()


def decide(evidence: Evidence, policy: Policy = DEFAULT) -> Verdict:
    """The verdict, with every check that led there and what would settle a doubt."""
    checks = all_checks(evidence, policy)
    decision = _decision(evidence, checks)
    return Verdict(
        decision=decision,
        summary=summarize(evidence, policy, checks, decision),
        checks=checks,
        alarms=evidence.alarms,
        advice=all_advice(evidence, policy),
        to_settle=what_to_add(evidence, checks) if decision == "inconclusive" else None,
    )


def _decision(evidence: Evidence, checks: Sequence[Check]) -> Decision:
    if evidence.alarms:
        return "no-go" if _is_useless(evidence) else "inconclusive"
    results = {check.result for check in checks if check.kind == "decides"}
    if "fail" in results:
        return "no-go"
    return "go" if results == {"pass"} else "inconclusive"


def _is_useless(evidence: Evidence) -> bool:
    """Acceptance collapsed, and nothing says that acceptance was measured wrongly."""
    codes = {alarm.code for alarm in evidence.alarms}
    doubts = {LIVE_DIVERGENT, REPLAY_DISAGREES, ENGINE_DISAGREES}
    return ACCEPTANCE_COLLAPSED in codes and not codes & doubts
