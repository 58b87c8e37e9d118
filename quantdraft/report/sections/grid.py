"""The verdict at every timed batch and context, and where speculation stops paying."""

from __future__ import annotations

from quantdraft.record import Evaluation, GridPoint
from quantdraft.record.wording import undefined
from quantdraft.report.blocks import Block, Bullets, Paragraph, Section
from quantdraft.report.charts.planes import paying_chart, verdict_map
from quantdraft.report.sections.headline import missing_speed

TITLE = "Batch and context"
HOW = (
    "Only one batch and one context were timed. For the map: `quantdraft evaluate … "
    "--batch-sizes 1,4,16,64 --context-lengths 512,2048`."
)


def grid_section(evaluation: Evaluation) -> Section:
    """Return the map where several points were timed; else how to measure it."""
    if evaluation.served is not None:
        text = "the engine was asked one request at a time. The native engine times batches"
        return Section(TITLE, (Paragraph(f"The verdict by batch: {undefined(text)}."),))
    points = evaluation.known_analysis.grid
    if not points:
        why = undefined(missing_speed(evaluation))
        return Section(TITLE, (Paragraph(f"The verdict by batch: {why}."), Paragraph(HOW)))
    own = evaluation.latency.batch_size, evaluation.latency.context_length
    blocks: list[Block] = [verdict_map(points, own)]
    if len(points) == 1:
        blocks = [Paragraph(HOW)]
    elif (chart := paying_chart(points)) is not None:
        blocks.append(chart)
    blocks.append(Bullets(tuple(_stopping(points, evaluation.known_analysis.stops_paying_at))))
    return Section(TITLE, tuple(blocks))


def _stopping(points: tuple[GridPoint, ...], found: dict[int, int | None]) -> list[str]:
    """Return a line for each context; one line for all of them where they say the same."""
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
