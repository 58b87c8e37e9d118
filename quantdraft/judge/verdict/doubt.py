"""What would settle an inconclusive verdict, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from quantdraft.judge.statistics.settling import Needed, num_prompts_to_settle, what_would_settle
from quantdraft.judge.verdict.alarms import ACCEPTANCE_COLLAPSED, collapse_limits
from quantdraft.judge.verdict.checks import Evidence
from quantdraft.judge.verdict.policy import Policy
from quantdraft.record import Check
from quantdraft.record.verdict import OVER_AUTOREGRESSIVE, OVER_BASELINE

# Beyond this many times the data there is, the honest answer is that the limit is met exactly.
MAX_FACTOR = 1000


def what_to_add(evidence: Evidence, policy: Policy, checks: Sequence[Check]) -> str:
    """Return the sample sizes in all that would settle it, e.g. "about 130 prompts (now 32)"."""
    if evidence.alarms:
        if {alarm.code for alarm in evidence.alarms} == {ACCEPTANCE_COLLAPSED}:
            return _in_words(evidence, [_to_be_sure_of_a_collapse(evidence, policy)])
        return f"clear the alarm first: {', '.join(alarm.code for alarm in evidence.alarms)}"
    if not evidence.is_speed_measured:
        why = evidence.speed_undefined or "time the draft and the target"
        return f"a measured speed, which is missing here: {why}"
    needed = [_needed(evidence, check) for check in checks if check.result == "unsure"]
    return _in_words(evidence, [each for each in needed if each is not None])


def _needed(evidence: Evidence, check: Check) -> Needed | None:
    """Return what would settle a check; None where more data would not, or it does not decide."""
    from_prompts = {
        OVER_BASELINE: evidence.acceptance.length_ratio,
        OVER_AUTOREGRESSIVE: evidence.acceptance.candidate_length,
    }
    if check.name not in from_prompts or check.observed is None or check.limit is None:
        return None
    if not evidence.num_timings:  # a served speed: its interval comes from the prompts alone
        prompts = num_prompts_to_settle(check.observed, check.limit, evidence.num_prompts)
        return None if prompts is None else Needed(prompts, None)
    return what_would_settle(
        check.observed,
        from_prompts[check.name],
        check.limit,
        evidence.num_prompts,
        evidence.num_timings,
    )


def _to_be_sure_of_a_collapse(evidence: Evidence, policy: Policy) -> Needed:
    needed = [
        num_prompts_to_settle(interval, limit, evidence.num_prompts)
        for interval, limit in collapse_limits(evidence.acceptance, policy)
        if interval.value < limit
    ]
    return Needed(min((each for each in needed if each is not None), default=None), None)


def _in_words(evidence: Evidence, needed: Sequence[Needed]) -> str:
    prompts = max((each.num_prompts or 0 for each in needed), default=0)
    timings = max((each.num_timings or 0 for each in needed), default=0)
    is_hopeless = (
        prompts > MAX_FACTOR * evidence.num_prompts or timings > MAX_FACTOR * evidence.num_timings
    )
    if is_hopeless or not (prompts or timings):
        return "more data would not soon settle it: the estimate lies at the limit"
    parts = []
    if prompts:
        parts.append(
            f"about {_rounded_up(prompts)} {evidence.resampled} (now {evidence.num_prompts})"
        )
    if timings:
        parts.append(_more_timing(evidence, timings))
    return " and ".join(parts)


def _more_timing(evidence: Evidence, timings: int) -> str:
    """Return the seconds of timing in all: more of it is more loads, whence the interval comes."""
    if evidence.timing_seconds is None:
        return f"about {_rounded_up(timings)} timing samples (now {evidence.num_timings})"
    seconds = math.ceil(evidence.timing_seconds * timings / evidence.num_timings)
    return (
        f"about {_rounded_up(seconds)} s of timing (now {evidence.timing_seconds:.0f}: "
        "--latency-seconds)"
    )


def _rounded_up(num: int) -> int:
    """Round up to two significant digits: 126 is 130."""
    step = int(10 ** max(math.floor(math.log10(num)) - 1, 0))
    return math.ceil(num / step) * step
