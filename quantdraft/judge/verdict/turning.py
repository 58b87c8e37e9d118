"""What would change the answer: the numbers at which the verdict's speed check turns over."""

from __future__ import annotations

from quantdraft.judge.verdict.policy import policy_of
from quantdraft.record import Evaluation
from quantdraft.record.plane import acceptance_at, draft_speedup, plane_of
from quantdraft.record.wording import change_points, milliseconds, percent, times


def speed_limit(evaluation: Evaluation) -> float:
    """The least speedup over the baseline that the verdict asked for."""
    return policy_of(evaluation).min_speedup_over_baseline


def turning_points(evaluation: Evaluation) -> tuple[str, ...]:
    """One line each for draft step and acceptance; none where the speed is undefined."""
    lines = (_other_draft_step(evaluation), _other_acceptance(evaluation))
    return tuple(line for line in lines if line is not None)


def _other_draft_step(evaluation: Evaluation) -> str | None:
    """The draft step at which the estimate meets the limit, at the measured acceptance."""
    plane, limit = plane_of(evaluation), speed_limit(evaluation)
    k = evaluation.operating_point.candidate_num_speculative_tokens
    acceptance, now = acceptance_at(evaluation, k), draft_speedup(evaluation)
    if plane is None or acceptance is None:
        return None
    needed = plane.needed_draft_speedup(acceptance.acceptance_rate_loss.value, limit)
    if needed is None:
        return (
            f"At the measured acceptance no draft step, however short, gives {times(limit)} over "
            f"the baseline, both at k = {k}: verification alone takes too long."
        )
    measured = "its own was not measured" if now is None else f"measured {times(now.value)}"
    return (
        f"At the measured acceptance, {times(limit)} over the baseline, both at k = {k}, needs a "
        "draft step "
        f"{times(needed)} as fast as the baseline's, {milliseconds(plane.draft_step_ms / needed)} "
        f"({measured})."
    )


def _other_acceptance(evaluation: Evaluation) -> str | None:
    """The acceptance loss at which the estimate meets the limit, at the measured draft step."""
    plane, limit = plane_of(evaluation), speed_limit(evaluation)
    k = evaluation.operating_point.candidate_num_speculative_tokens
    acceptance, now = acceptance_at(evaluation, k), draft_speedup(evaluation)
    if plane is None or acceptance is None or now is None:
        return None
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
