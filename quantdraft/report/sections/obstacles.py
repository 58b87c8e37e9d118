"""What keeps a recipe from a go on this machine: one sentence, with the numbers it rests on."""

from __future__ import annotations

from collections.abc import Sequence

from quantdraft.judge.comparison import step_figures
from quantdraft.judge.verdict.checks import is_control
from quantdraft.judge.verdict.turning import speed_limit
from quantdraft.record import Evaluation
from quantdraft.record.plane import acceptance_at, draft_speedup, plane_of
from quantdraft.record.wording import (
    change_points,
    metric,
    percent,
    shorter,
    significant,
    step_change,
    times,
    valued,
)
from quantdraft.report.blocks import Block, Notice

# Of the copy bandwidth: a step far below it does not wait for its bytes, so fewer gain little.
MEMORY_BOUND = 0.70


def obstacles_notice(evaluations: Sequence[Evaluation]) -> tuple[Block, ...]:
    """What keeps each recipe from a go; nothing where one has a go."""
    if any(evaluation.verdict.decision == "go" for evaluation in evaluations):
        return ()
    found = [obstacle(evaluation) for evaluation in evaluations if not is_control(evaluation)]
    lines = tuple(line for line in found if line is not None)
    return (Notice("What keeps each recipe from a go here", lines, "doubt"),) if lines else ()


def obstacle(evaluation: Evaluation) -> str | None:
    """The limit that it meets, e.g. a step that memory does not bound; None for a go."""
    verdict, name = evaluation.verdict, evaluation.name
    if verdict.decision == "go":
        return None
    if verdict.alarms:
        return f"{name}: {verdict.alarms[0].message}"
    if "candidate" in evaluation.latency.undefined:
        return f"{name}: its draft step was not timed: {evaluation.latency.undefined['candidate']}."
    if verdict.decision == "inconclusive" and (doubt := _doubt(evaluation)):
        return f"{name}: {doubt}."
    parts = [_step(evaluation), _needed(evaluation), _over_target(evaluation)]
    said = "; ".join(part for part in parts if part)
    return f"{name}: {said}." if said else f"{name}: speed was not measured."


def _doubt(evaluation: Evaluation) -> str:
    """The speed check whose limit lies inside the interval, and what would settle it."""
    unsure = [
        check
        for check in evaluation.verdict.checks
        if check.kind == "decides" and check.result == "unsure" and check.limit is not None
    ]
    said = [
        f"its {check.name}, {valued(check.observed, check.name)}, is not told apart from the limit "
        f"of {metric(check.limit, check.name)}"
        for check in unsure
    ]
    settle = evaluation.verdict.to_settle
    return "; ".join([*said, *([f"to settle it: {settle}"] if settle else [])]) if said else ""


def _step(evaluation: Evaluation) -> str:
    """How long the candidate's step is, beside what its bytes would allow."""
    saving, latency = evaluation.operating_point.draft_latency_saving, evaluation.latency
    if saving is None or "candidate" not in latency.arms:
        return ""
    said = f"beside the baseline's its draft step is {step_change(saving)}"
    byte_ratio = step_figures(latency, "candidate").byte_ratio
    if byte_ratio is None or byte_ratio <= 1 or saving.value >= 1 - 1 / byte_ratio:
        return said
    said += f", where its bytes alone would make it {shorter(1 - 1 / byte_ratio)}"
    return said + _not_bound_by_memory(evaluation)


def _not_bound_by_memory(evaluation: Evaluation) -> str:
    """Where the baseline's step is far from the memory's limit already."""
    latency = evaluation.latency
    if "baseline" not in latency.arms:
        return ""
    fraction = step_figures(latency, "baseline").bandwidth_fraction
    if fraction is None or fraction >= MEMORY_BOUND:
        return ""
    return (
        f" (a draft step of this size is not bound by memory: the baseline's reads at "
        f"{percent(fraction, 0)} of the copy bandwidth)"
    )


def _needed(evaluation: Evaluation) -> str:
    """The step that the speedup asked for would need, at the measured acceptance and one k."""
    plane, limit = plane_of(evaluation), speed_limit(evaluation)
    now = draft_speedup(evaluation)
    k = evaluation.operating_point.candidate_num_speculative_tokens
    acceptance = acceptance_at(evaluation, k)
    if plane is None or acceptance is None or now is None:
        return ""
    loss = acceptance.acceptance_rate_loss.value
    needed = plane.needed_draft_speedup(loss, limit)
    lost = f"at k = {k} the acceptance rate changes by {change_points(-loss)}"
    if needed is None:
        return f"{lost}, and no draft step, however short, would give {times(limit)}"
    return f"{lost}, and {times(limit)} would need a step {shorter(1 - 1 / needed)}"


def _over_target(evaluation: Evaluation) -> str:
    ends = evaluation.operating_point.speedup_over_autoregressive
    if ends is None or ends.low > 1:
        return ""
    return (
        f"with it speculation runs at {significant(ends.value)} times the target's own speed "
        f"({significant(ends.low)} to {significant(ends.high)})"
    )
