"""The verdict at every timed batch and context, and where speculation stops paying."""

from __future__ import annotations

from quantdraft.record import Evaluation, GridPoint
from quantdraft.record.wording import times, undefined, valued
from quantdraft.report.blocks import Block, Bullets, Chart, Paragraph, Section, Table
from quantdraft.report.charts.planes import paying_by_batch, verdict_map
from quantdraft.report.charts.style import Row
from quantdraft.report.sections.headline import missing_speed

TITLE = "Batch and context"
HOW = (
    "Only one batch and one context were timed. For the map: `quantdraft evaluate … "
    "--batch-sizes 1,4,16,64 --context-lengths 512,2048`."
)


def grid_section(evaluation: Evaluation) -> Section:
    """The map where several points were timed; else what is missing and how to measure it."""
    if evaluation.served is not None:
        text = "the engine was asked one request at a time. The native engine times batches"
        return Section(TITLE, (Paragraph(f"The verdict by batch: {undefined(text)}."),))
    points = evaluation.known_analysis.grid
    if not points:
        why = undefined(missing_speed(evaluation))
        return Section(TITLE, (Paragraph(f"The verdict by batch: {why}."), Paragraph(HOW)))
    blocks: list[Block] = [_map(evaluation, points)]
    if len(points) == 1:
        blocks = [Paragraph(HOW)]
    elif (chart := _paying(points)) is not None:
        blocks.append(chart)
    blocks.append(Bullets(tuple(_stopping(points, evaluation.known_analysis.stops_paying_at))))
    return Section(TITLE, tuple(blocks))


def _map(evaluation: Evaluation, points: tuple[GridPoint, ...]) -> Chart:
    rows = [_row(evaluation, point) for point in points]
    return Chart(
        name="verdict-map",
        title="Verdict by batch and context",
        description=(
            "The verdict's two speed checks at every timed point, each arm at its best k there: "
            "the candidate's speed over the baseline draft's and, after AR, over the target alone. "
            "Outlined: the point of the verdict above. Empty: not timed. An alarm holds everywhere."
        ),
        spec=verdict_map(rows),
        data=Table(
            ("Batch", "Context", "Verdict", "Over the baseline draft", "Over the target", "Why"),
            tuple(
                (
                    str(row["batch"]),
                    str(row["context"]),
                    str(row["verdict"]),
                    str(row["over_baseline"]),
                    str(row["over_autoregressive"]),
                    str(row["why"]) or "—",
                )
                for row in rows
            ),
            frozenset({0, 1, 3, 4}),
        ),
        is_wide=True,
    )


def place_of(evaluation: Evaluation) -> tuple[int, int]:
    """Batch and context of the verdict's own operating point."""
    return evaluation.latency.batch_size, evaluation.latency.context_length


def _row(evaluation: Evaluation, point: GridPoint) -> Row:
    speed = point.speed
    over_baseline = speed.speedup_over_baseline if speed else None
    over_target = speed.speedup_over_autoregressive if speed else None
    verdict = point.decision or "undefined"
    return {
        "batch": point.batch_size,
        "context": point.context_length,
        "verdict": verdict,
        "short": {"inconclusive": "?", "undefined": "—"}.get(verdict, verdict),
        "shown": times(over_baseline.value) if over_baseline else "",
        "shown_over_target": f"AR {over_target.value:.1f}×" if over_target else "",
        "is_here": place_of(evaluation) == (point.batch_size, point.context_length),
        "over_baseline": valued(over_baseline, "speedup"),
        "over_autoregressive": valued(over_target, "speedup"),
        "why": point.reason,
    }


def _paying(points: tuple[GridPoint, ...]) -> Chart | None:
    """The better draft over the target alone, by batch; None where one batch was timed."""
    found = [(point, ends) for point in points if (ends := point.better_speedup)]
    rows: list[Row] = [
        {
            "batch": point.batch_size,
            "context": str(point.context_length),
            "value": ends.value,
            "low": ends.low,
            "high": ends.high,
            "shown": valued(ends, "speedup"),
            "arm": point.better_arm,
        }
        for point, ends in found
    ]
    if len({row["batch"] for row in rows}) < 2:
        return None
    return Chart(
        name="paying-by-batch",
        title="Does speculation pay at all, by batch",
        description="The better of the two drafts over the target alone, with 95 % intervals.",
        spec=paying_by_batch(rows),
        data=Table(
            ("Batch", "Context", "Over the target alone", "By"),
            tuple(
                (str(row["batch"]), str(row["context"]), str(row["shown"]), str(row["arm"]))
                for row in rows
            ),
            frozenset({0, 1, 2}),
        ),
    )


def _stopping(points: tuple[GridPoint, ...], found: dict[int, int | None]) -> list[str]:
    """One line a context; one for all of them where they say the same."""
    largest: dict[int, int] = {}
    for point in points:
        if point.speed is not None:
            batch = largest.get(point.context_length, 0)
            largest[point.context_length] = max(batch, point.batch_size)
    stops = {c: batch for c, batch in found.items() if c in largest}
    if not stops:
        return ["No point has a speed."]
    if all(batch is None for batch in stops.values()):
        upto = ", ".join(f"{largest[context]} at context {context}" for context in stops)
        return [
            f"At no timed batch does speculation surely stop paying (timed up to batch {upto})."
        ]
    return [
        f"Context {context}: speculation stops paying at batch {batch}."
        if batch is not None
        else f"Context {context}: no timed batch at which speculation surely stops paying "
        f"(timed up to batch {largest[context]})."
        for context, batch in stops.items()
    ]
