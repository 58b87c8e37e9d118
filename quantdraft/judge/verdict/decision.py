"""The decision from checks and alarms: go, no-go or inconclusive.

All deciding checks pass: go. Any fails: no-go. Otherwise inconclusive. An alarm stops that: the
numbers are not what they seem, so it is inconclusive; only acceptance that has surely collapsed is
itself a no-go.
Acceptance alone never gives a go, and neither does a draft that was not quantized.
"""

from __future__ import annotations

from collections.abc import Sequence

from quantdraft.judge.verdict.alarms import (
    ACCEPTANCE_COLLAPSED,
    ENGINE_DISAGREES,
    LIVE_DIVERGENT,
    OTHER_TARGET,
    REPLAY_DISAGREES,
    has_surely_collapsed,
)
from quantdraft.judge.verdict.checks import NO_ALARM, Evidence, all_checks
from quantdraft.judge.verdict.doubt import what_to_add
from quantdraft.judge.verdict.policy import Policy
from quantdraft.judge.verdict.summary import summarize
from quantdraft.record import Check, Decision, Verdict

DEFAULT = Policy()


def decide(evidence: Evidence, policy: Policy = DEFAULT) -> Verdict:
    """Return the verdict, with every check that led there and what would settle a doubt."""
    checks = all_checks(evidence, policy)
    decision = _decision(evidence, policy, checks)
    return Verdict(
        decision=decision,
        summary=summarize(evidence, policy, checks, decision),
        checks=checks,
        alarms=evidence.alarms,
        advice=(),  # from the whole record, see `quantdraft.judge.advice`
        to_settle=what_to_add(evidence, policy, checks) if decision == "inconclusive" else None,
    )


def _decision(evidence: Evidence, policy: Policy, checks: Sequence[Check]) -> Decision:
    results = {c.result for c in checks if c.kind == "decides" and c.name != NO_ALARM}
    if evidence.alarms:
        return "no-go" if _is_useless(evidence, policy, "fail" in results) else "inconclusive"
    if "fail" in results:
        return "no-go"
    return "go" if results == {"pass"} else "inconclusive"


def _is_useless(evidence: Evidence, policy: Policy, has_failed: bool) -> bool:
    """Return True where acceptance collapsed and nothing says that it was measured wrongly.

    Where it may have collapsed by chance, what else was measured decides, if that is not in doubt.
    """
    codes = {alarm.code for alarm in evidence.alarms}
    doubts = {LIVE_DIVERGENT, OTHER_TARGET, REPLAY_DISAGREES, ENGINE_DISAGREES}
    if ACCEPTANCE_COLLAPSED not in codes or codes & doubts:
        return False
    is_sure = has_surely_collapsed(evidence.acceptance, policy)
    return is_sure or (has_failed and codes == {ACCEPTANCE_COLLAPSED})
