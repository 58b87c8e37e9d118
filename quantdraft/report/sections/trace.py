"""The verdict over a trace: what its tokens weigh of the timed points, and the speed there."""

from __future__ import annotations

from quantdraft.record import Evaluation, GridPoint
from quantdraft.record.trace import TraceCell, TraceFigures, TraceSpeed
from quantdraft.record.wording import (
    count,
    counted,
    milliseconds,
    percent,
    significant,
    undefined,
    valued,
)
from quantdraft.report.blocks import Block, Paragraph, Section, Table

TITLE = "Over the trace"
HOW = (
    "Requests are in flight from their arrival until their last token, and all share one batch; "
    "prefill and queues take no time here. Every token counts once, at the timed point nearest to "
    "its batch and context, within twice or half of both."
)


def trace_sections(evaluation: Evaluation) -> tuple[Section, ...]:
    """Return the section of a run that a trace was given to."""
    trace = evaluation.trace
    if trace is None:
        return ()
    blocks: list[Block] = [Paragraph(_served(trace))]
    if trace.speed is None:
        blocks.append(Paragraph(f"Speed over the trace: {undefined(trace.reason)}."))
    else:
        blocks.append(_arms(trace.speed))
    if trace.cells:
        blocks.append(_cells(trace, evaluation.known_analysis.grid))
    blocks.append(Paragraph(HOW))
    return (Section(TITLE, tuple(blocks)),)


def _served(trace: TraceFigures) -> str:
    """Return what the trace holds, and how many of its requests are in flight."""
    paces = [milliseconds(each) for each in trace.ms_per_token.values()]
    whose = "as it was given" if trace.is_pace_given else "the baseline draft's, as it was timed"
    pace = paces[0] if len(set(paces)) == 1 else f"{paces[0]} to {paces[-1]}" if paces else ""
    servers = f", on {counted(trace.num_servers, 'server')}" if trace.num_servers > 1 else ""
    text = (
        f"{counted(trace.num_requests, 'request')} of {trace.path}, "
        f"{count(trace.num_tokens)} response tokens{servers}."
    )
    if not pace:
        return text
    return (
        f"{text} At {pace} per token ({whose}) a token shares its batch with "
        f"{significant(trace.mean_in_flight)} requests in the mean, {trace.max_in_flight:,} at "
        "most."
    )


def _arms(speed: TraceSpeed) -> Table:
    rows = (
        ("target alone", "—", milliseconds(speed.autoregressive_ms_per_token), "—"),
        (
            "baseline",
            str(speed.baseline_num_speculative_tokens),
            milliseconds(speed.baseline_ms_per_token),
            valued(speed.baseline_speedup_over_autoregressive, "speedup"),
        ),
        (
            "candidate",
            str(speed.candidate_num_speculative_tokens),
            milliseconds(speed.candidate_ms_per_token),
            valued(speed.speedup_over_autoregressive, "speedup"),
        ),
    )
    columns = ("Arm", "k", "Time per token", "Speedup over AR (95 % interval)")
    return Table(columns, rows, frozenset({1, 2, 3}))


def _cells(trace: TraceFigures, points: tuple[GridPoint, ...]) -> Table:
    """Return a row for each timed point with tokens, its own verdict beside its share of them."""
    known = {(point.batch_size, point.context_length): point for point in points}
    rows = [
        _cell(trace, cell, known.get((cell.batch_size, cell.context_length)))
        for cell in trace.cells
    ]
    if trace.num_uncovered_tokens:
        share = percent(trace.share(trace.num_uncovered_tokens))
        rows.append(("far from every point", "", share, "", ""))
    columns = ("Batch", "Context", "Of the tokens", "Speedup over baseline there", "Verdict there")
    return Table(columns, tuple(rows), frozenset({0, 1, 2, 3}))


def _cell(trace: TraceFigures, cell: TraceCell, point: GridPoint | None) -> tuple[str, ...]:
    speed = None if point is None or point.speed is None else point.speed.speedup_over_baseline
    return (
        str(cell.batch_size),
        str(cell.context_length),
        percent(trace.share(cell.num_tokens)),
        valued(speed, "speedup"),
        (point.decision if point else None) or undefined(),
    )
