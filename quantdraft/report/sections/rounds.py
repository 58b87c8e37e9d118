"""The time of a round for each arm, beside what its bytes would take at best."""

from __future__ import annotations

from quantdraft.record import ARMS, Arm, Evaluation
from quantdraft.record.wording import UNDEFINED, length, undefined
from quantdraft.report.blocks import Block, Paragraph, Section
from quantdraft.report.charts.bars import RoundPart, round_chart
from quantdraft.report.sections.headline import missing_speed
from quantdraft.report.sections.speed import break_even, equations, projection

ALONE = "autoregressive: 1 token"
OVERHEAD = (
    "Steps are timed one by one: what lies between them (choosing tokens, bookkeeping) is in no "
    "part. An engine's own overhead was not measured; `--engine vllm` measures whole rounds."
)
SYMBOLS = (
    "t_d: a draft step; t_v(m): a target pass over m new tokens; τ: tokens a round. All measured "
    "above, medians in ms."
)
SERVED = (
    "A serving engine shows no steps, so a round is one part: its tokens times the measured time "
    "of a token. How it splits was not measured; the native engine (`--engine native`) times it."
)


def time_section(evaluation: Evaluation) -> Section:
    """Return the stacked bars, the equation they come from, and where both drafts break even."""
    parts = _served_parts(evaluation) if evaluation.served else _step_parts(evaluation)
    blocks: list[Block] = []
    if not parts:
        why = undefined(missing_speed(evaluation))
        blocks.append(Paragraph(f"The time of a round: {why}."))
    else:
        limits = {} if evaluation.served else _limits(evaluation)
        blocks += [round_chart(parts, limits), Paragraph(SERVED if evaluation.served else OVERHEAD)]
    if not evaluation.served:
        blocks += [equations(evaluation), Paragraph(SYMBOLS)]
    blocks.append(Paragraph(break_even(evaluation)))
    if evaluation.projection is not None:
        blocks.append(Paragraph(projection(evaluation.projection)))
    return Section("Where the time goes", tuple(blocks))


def _step_parts(evaluation: Evaluation) -> list[RoundPart]:
    """Return every part that was timed; an arm without a draft step is left out."""
    point = evaluation.operating_point
    parts: list[RoundPart] = []
    if point.autoregressive_step_ms is not None:
        parts.append(RoundPart(ALONE, "target pass", point.autoregressive_step_ms))
    for arm in ARMS:
        drafting, verify = point.of(arm).drafting_ms, point.of(arm).verify_step_ms
        if drafting is None or verify is None:
            continue
        name = _arm_name(evaluation, arm)
        parts += [
            RoundPart(name, "draft steps", drafting),
            RoundPart(name, "target pass", verify, order=1),
        ]
    return parts


def _served_parts(evaluation: Evaluation) -> list[RoundPart]:
    point = evaluation.operating_point
    parts: list[RoundPart] = []
    for arm in ARMS:
        per_token = point.of(arm).ms_per_token
        acceptance = evaluation.acceptance_at(point.of(arm).num_speculative_tokens)
        if per_token is None or acceptance is None:
            continue
        tau = acceptance.of(arm).length.value
        parts.append(RoundPart(_arm_name(evaluation, arm), "whole round", per_token * tau))
    return parts


def _arm_name(evaluation: Evaluation, arm: Arm) -> str:
    k = evaluation.operating_point.of(arm).num_speculative_tokens
    acceptance = evaluation.acceptance_at(k)
    tau = length(acceptance.of(arm).length.value) if acceptance else UNDEFINED
    return f"{arm}, k = {k}: {tau} tokens"


def _limits(evaluation: Evaluation) -> dict[str, float]:
    """Return k draft steps and one pass of the target over its weights, at the copy bandwidth."""
    latency, point = evaluation.latency, evaluation.operating_point
    target = latency.figures("target").limit_ms if "target" in latency.arms else None
    if target is None:
        return {}
    found = {ALONE: target} if point.autoregressive_step_ms else {}
    for arm in ARMS:
        step = latency.figures(arm).limit_ms if arm in latency.arms else None
        if step is not None and point.of(arm).draft_step_ms is not None:
            k = point.of(arm).num_speculative_tokens
            found[_arm_name(evaluation, arm)] = k * step + target
    return found
