"""Where the time of a round goes, for each arm, beside what its bytes would take at best."""

from __future__ import annotations

from quantdraft.judge.comparison import step_figures
from quantdraft.record import Evaluation
from quantdraft.record.plane import acceptance_at
from quantdraft.record.wording import UNDEFINED, length, undefined
from quantdraft.report.blocks import Block, Paragraph, Section
from quantdraft.report.charts.bars import RoundLimit, RoundPart, round_chart
from quantdraft.report.sections.headline import missing_speed
from quantdraft.report.sections.speed import break_even, equations, projection

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
    """The stacked bars, the equation they come from, and where both drafts break even."""
    parts = _served_parts(evaluation) if evaluation.served else _step_parts(evaluation)
    blocks: list[Block] = []
    if not parts:
        why = undefined(missing_speed(evaluation))
        blocks.append(Paragraph(f"The time of a round: {why}."))
    else:
        limits = [] if evaluation.served else _limits(evaluation)
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
        name = "autoregressive: 1 token"
        parts.append(RoundPart(name, "target pass", point.autoregressive_step_ms))
    for arm in ("baseline", "candidate"):
        k = getattr(point, f"{arm}_num_speculative_tokens")
        step = getattr(point, f"{arm}_draft_step_ms")
        verify = getattr(point, f"{arm}_verify_step_ms")
        if step is None or verify is None:
            continue
        name = _arm_name(evaluation, arm, k)
        parts += [
            RoundPart(name, "draft steps", k * step),
            RoundPart(name, "target pass", verify, order=1),
        ]
    return parts


def _served_parts(evaluation: Evaluation) -> list[RoundPart]:
    point = evaluation.operating_point
    parts: list[RoundPart] = []
    for arm in ("baseline", "candidate"):
        k = getattr(point, f"{arm}_num_speculative_tokens")
        per_token, acceptance = getattr(point, f"{arm}_ms_per_token"), acceptance_at(evaluation, k)
        if per_token is None or acceptance is None:
            continue
        tau = getattr(acceptance, f"{arm}_length").value
        parts.append(RoundPart(_arm_name(evaluation, arm, k), "whole round", per_token * tau))
    return parts


def _arm_name(evaluation: Evaluation, arm: str, k: int) -> str:
    acceptance = acceptance_at(evaluation, k)
    tau = length(getattr(acceptance, f"{arm}_length").value) if acceptance else UNDEFINED
    return f"{arm}, k = {k}: {tau} tokens"


def _limits(evaluation: Evaluation) -> list[RoundLimit]:
    """k draft steps and one pass of the target over its weights, at the copy bandwidth."""
    latency, point = evaluation.latency, evaluation.operating_point
    if "target" not in latency.arms:
        return []
    target = step_figures(latency, "target").limit_ms
    if target is None:
        return []
    found = [RoundLimit("autoregressive: 1 token", target)] if point.autoregressive_step_ms else []
    for arm in ("baseline", "candidate"):
        k = getattr(point, f"{arm}_num_speculative_tokens")
        step = step_figures(latency, arm).limit_ms if arm in latency.arms else None
        if step is not None and getattr(point, f"{arm}_draft_step_ms") is not None:
            found.append(RoundLimit(_arm_name(evaluation, arm, k), k * step + target))
    return found
