"""What would change the answer, and what keeps a candidate from a go, in sentences."""

from __future__ import annotations

from quantdraft.judge.verdict.policy import Policy
from quantdraft.record import Evaluation
from quantdraft.record.wording import (
    change_points,
    metric,
    milliseconds,
    percent,
    shorter,
    significant,
    step_change,
    times,
    valued,
)

# Of the copy bandwidth: a step far below it does not wait for its bytes, so fewer gain little.
MEMORY_BOUND = 0.70


def turning_points(evaluation: Evaluation, policy: Policy) -> tuple[str, ...]:
    """Return a sentence each for draft step and acceptance; none where the speed is undefined."""
    if evaluation.trace is not None:  # no single draft step or acceptance turns many points
        return ()
    limit = policy.min_speedup_over_baseline
    lines = (_other_draft_step(evaluation, limit), _other_acceptance(evaluation, limit))
    return tuple(line for line in lines if line is not None)


def _other_draft_step(evaluation: Evaluation, limit: float) -> str | None:
    """Return the draft step at which the estimate meets the limit, at the measured acceptance."""
    plane, acceptance = evaluation.plane, evaluation.acceptance_at_its_k
    if plane is None or acceptance is None:
        return None
    k, now = plane.num_speculative_tokens, evaluation.operating_point.draft_speedup
    needed = plane.needed_draft_speedup(acceptance.acceptance_rate_loss.value, limit)
    if needed is None:
        return (
            f"At the measured acceptance no draft step, however short, gives {times(limit)} over "
            f"the baseline, both at k = {k}: verification alone takes too long."
        )
    measured = "its own was not measured" if now is None else f"measured {times(now.value)}"
    return (
        f"At the measured acceptance, {times(limit)} over the baseline, both at k = {k}, needs a "
        f"draft step {times(needed)} as fast as the baseline's, "
        f"{milliseconds(plane.draft_step_ms / needed)} ({measured})."
    )


def _other_acceptance(evaluation: Evaluation, limit: float) -> str | None:
    """Return the acceptance at which the estimate meets the limit, at the measured draft step."""
    plane, acceptance = evaluation.plane, evaluation.acceptance_at_its_k
    now = evaluation.operating_point.draft_speedup
    if plane is None or acceptance is None or now is None:
        return None
    k = plane.num_speculative_tokens
    allowed = plane.allowed_loss(now.value, limit)
    measured = change_points(-acceptance.acceptance_rate_loss.value)
    if acceptance.baseline_rate.value - allowed > 1:
        return (
            "At the measured draft step no acceptance, not even of every token, gives "
            f"{times(limit)} over the baseline, both at k = {k}."
        )
    return (
        f"At the measured draft step, {times(limit)} over the baseline, both at k = {k}, needs an "
        f"acceptance rate of at least {percent(acceptance.baseline_rate.value - allowed)}: "
        f"{change_points(-allowed)} against the baseline (measured {measured})."
    )


def obstacle(evaluation: Evaluation, policy: Policy) -> str | None:
    """Return what keeps it from a go, e.g. a step that memory does not bound; None for a go."""
    verdict = evaluation.verdict
    if verdict.decision == "go":
        return None
    if verdict.alarms:
        return verdict.alarms[0].message
    if "candidate" in evaluation.latency.undefined:
        return f"its draft step was not timed: {evaluation.latency.undefined['candidate']}."
    if verdict.decision == "inconclusive" and (doubt := _doubt(evaluation)):
        return f"{doubt}."
    of_baseline = (
        _needed(evaluation, policy.min_speedup_over_baseline)
        if evaluation.trace is None
        else _over_baseline(evaluation, policy.min_speedup_over_baseline)
    )
    parts = (
        _step(evaluation),
        of_baseline,
        _over_target(evaluation, policy.min_speedup_over_autoregressive),
    )
    text = "; ".join(part for part in parts if part)
    return f"{text}." if text else "speed was not measured."


def _doubt(evaluation: Evaluation) -> str:
    """Return the speed check whose limit lies inside the interval, and what would settle it."""
    lines = [
        f"its {check.name}, {valued(check.observed, check.name)}, is not told apart from the limit "
        f"of {metric(check.limit, check.name)}"
        for check in evaluation.verdict.checks
        if check.kind == "decides" and check.result == "unsure" and check.limit is not None
    ]
    settle = evaluation.verdict.to_settle
    if lines and settle:
        lines.append(f"to settle it: {settle}")
    return "; ".join(lines)


def _step(evaluation: Evaluation) -> str:
    """Return how long the candidate's step is, beside what its bytes would allow."""
    saving, latency = evaluation.operating_point.draft_latency_saving, evaluation.latency
    if saving is None or "candidate" not in latency.arms:
        return ""
    text = f"beside the baseline's its draft step is {step_change(saving)}"
    byte_ratio = latency.byte_ratio("candidate")
    if byte_ratio is None or byte_ratio <= 1 or saving.value >= 1 - 1 / byte_ratio:
        return text
    text += f", where its bytes alone would make it {shorter(1 - 1 / byte_ratio)}"
    fraction = latency.bandwidth_fraction("baseline")
    if fraction is not None and fraction < MEMORY_BOUND:
        text += (
            " (a draft step of this size is not bound by memory: the baseline's reads at "
            f"{percent(fraction, 0)} of the copy bandwidth)"
        )
    return text


def _needed(evaluation: Evaluation, limit: float) -> str:
    """Return the step that the speedup asked for would need, at the measured acceptance."""
    plane, acceptance = evaluation.plane, evaluation.acceptance_at_its_k
    now = evaluation.operating_point.draft_speedup
    if plane is None or acceptance is None or now is None:
        return ""
    loss = acceptance.acceptance_rate_loss.value
    needed = plane.needed_draft_speedup(loss, limit)
    k, change = plane.num_speculative_tokens, change_points(-loss)
    lost = f"at k = {k} the acceptance rate changes by {change}"
    if needed is None:
        return f"{lost}, and no draft step, however short, would give {times(limit)}"
    return f"{lost}, and {times(limit)} would need a step {shorter(1 - 1 / needed)}"


def _over_baseline(evaluation: Evaluation, limit: float) -> str:
    """Return the speed over a trace, where it is not surely what was asked for."""
    ends = evaluation.speedup_over_baseline
    if ends is None or ends.low >= limit:
        return ""
    return (
        f"over the trace it runs at {valued(ends, 'speedup')} of the baseline draft's speed, where "
        f"{times(limit)} is asked for"
    )


def _over_target(evaluation: Evaluation, limit: float) -> str:
    ends = evaluation.speedup_over_autoregressive
    if ends is None or ends.low > limit:
        return ""
    return (
        f"with it speculation runs at {significant(ends.value)} times the target's own speed "
        f"({significant(ends.low)} to {significant(ends.high)})"
    )
