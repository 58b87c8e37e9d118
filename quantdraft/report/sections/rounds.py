"""Where the time of a round goes, for each arm, beside what its bytes would take at best."""

from __future__ import annotations

from quantdraft.record import ARMS, Arm, Evaluation
from quantdraft.record.wording import UNDEFINED, length, milliseconds, undefined
from quantdraft.report.blocks import Block, Chart, Paragraph, Section, Table
from quantdraft.report.charts.bars import round_bars
from quantdraft.report.charts.style import Row
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
    chart = round_chart(evaluation)
    blocks: list[Block] = []
    if chart is None:
        why = undefined(missing_speed(evaluation))
        blocks.append(Paragraph(f"The time of a round: {why}."))
    else:
        blocks += [chart, Paragraph(SERVED if evaluation.served else OVERHEAD)]
    if not evaluation.served:
        blocks += [equations(evaluation), Paragraph(SYMBOLS)]
    blocks.append(Paragraph(break_even(evaluation)))
    if evaluation.projection is not None:
        blocks.append(Paragraph(projection(evaluation.projection)))
    return Section("Where the time goes", tuple(blocks))


def round_chart(evaluation: Evaluation) -> Chart | None:
    """One bar an arm; None where no arm has a time."""
    rows = _served_rows(evaluation) if evaluation.served else _step_rows(evaluation)
    if not rows:
        return None
    limits = [] if evaluation.served else _limits(evaluation)
    words = "Black marks are the least time that the bytes of all its steps take at the copy "
    described = f"{words}bandwidth measured in the same run." if limits else ""
    return Chart(
        name="round",
        title="One round, by its parts",
        description=f"Autoregressive is one step of the target alone. {described}".strip(),
        spec=round_bars(rows, limits),
        data=_table(rows, limits),
        is_wide=True,
    )


def _step_rows(evaluation: Evaluation) -> list[Row]:
    """Rows of every part that was timed; an arm without a draft step is left out."""
    point = evaluation.operating_point
    rows: list[Row] = []
    if point.autoregressive_step_ms is not None:
        name = "autoregressive: 1 token"
        rows.append(_row(name, "target pass", point.autoregressive_step_ms, 0))
    for arm in ARMS:
        drafting, verify = point.of(arm).drafting_ms, point.of(arm).verify_step_ms
        if drafting is None or verify is None:
            continue
        name = _arm_name(evaluation, arm)
        rows += [_row(name, "draft steps", drafting, 0), _row(name, "target pass", verify, 1)]
    return rows


def _served_rows(evaluation: Evaluation) -> list[Row]:
    point = evaluation.operating_point
    rows: list[Row] = []
    for arm in ARMS:
        per_token = point.of(arm).ms_per_token
        acceptance = evaluation.acceptance_at(point.of(arm).num_speculative_tokens)
        if per_token is None or acceptance is None:
            continue
        whole = per_token * acceptance.of(arm).length.value
        rows.append(_row(_arm_name(evaluation, arm), "whole round", whole, 0))
    return rows


def _arm_name(evaluation: Evaluation, arm: Arm) -> str:
    k = evaluation.operating_point.of(arm).num_speculative_tokens
    acceptance = evaluation.acceptance_at(k)
    tau = length(acceptance.of(arm).length.value) if acceptance else UNDEFINED
    return f"{arm}, k = {k}: {tau} tokens"


def _row(arm: str, part: str, ms: float, order: int) -> Row:
    return {"arm": arm, "part": part, "ms": ms, "order": order, "shown": milliseconds(ms)}


def _limits(evaluation: Evaluation) -> list[Row]:
    """k draft steps and one pass of the target over its weights, at the copy bandwidth."""
    latency, point = evaluation.latency, evaluation.operating_point
    if "target" not in latency.arms:
        return []
    target = latency.figures("target").limit_ms
    if target is None:
        return []
    found = [("autoregressive: 1 token", target)] if point.autoregressive_step_ms else []
    for arm in ARMS:
        step = latency.figures(arm).limit_ms if arm in latency.arms else None
        if step is not None and point.of(arm).draft_step_ms is not None:
            k = point.of(arm).num_speculative_tokens
            found.append((_arm_name(evaluation, arm), k * step + target))
    return [{"arm": arm, "ms": ms, "shown": milliseconds(ms)} for arm, ms in found]


def _table(rows: list[Row], limits: list[Row]) -> Table:
    cells = [(str(row["arm"]), str(row["part"]), str(row["shown"])) for row in rows]
    cells += [(str(row["arm"]), "limit by its bytes", str(row["shown"])) for row in limits]
    return Table(("Round", "Part", "Time"), tuple(cells), frozenset({2}))
