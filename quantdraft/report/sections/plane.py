"""The break-even plane of one evaluation, or of several recipes at one operating point."""

from __future__ import annotations

from collections.abc import Sequence

from quantdraft.record import Evaluation
from quantdraft.record.plane import Plane
from quantdraft.record.wording import change_points, times, undefined
from quantdraft.report.blocks import Block, Chart, Paragraph, Section, Table
from quantdraft.report.charts.planes import PlanePlace, break_even_chart
from quantdraft.report.sections.headline import missing_speed


def plane_section(evaluation: Evaluation) -> Section:
    """Return the plane, or why there is none and how to get it."""
    chart = plane_chart([evaluation])
    if chart is not None:
        return Section("What acceptance may be lost for what speed", (chart,))
    why = undefined(missing_speed(evaluation))
    blocks: tuple[Block, ...] = (Paragraph(f"The break-even plane: {why}."),)
    plane = evaluation.plane
    if plane is not None:
        blocks += (_allowed_table(plane, evaluation.known_analysis.min_speedup_over_baseline),)
    return Section("What acceptance may be lost for what speed", blocks)


def _allowed_table(plane: Plane, limit: float) -> Table:
    """Return the frontier as numbers, where the candidate's own place is unknown."""
    rows = tuple(
        (times(speed), change_points(-plane.allowed_loss(speed, limit)))
        for speed in (1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
    )
    return Table(
        ("If a draft step were so much faster", f"acceptance may change by, for {times(limit)}"),
        rows,
        frozenset({0, 1}),
        caption=f"Arithmetic on the baseline's measured steps, at k = "
        f"{plane.num_speculative_tokens}; no measurement of the candidate.",
    )


def plane_chart(evaluations: Sequence[Evaluation]) -> Chart | None:
    """Return the frontier of the first evaluation that has one, and every recipe that was timed."""
    timed = [e for e in evaluations if e.plane and e.operating_point.draft_speedup]
    plane = timed[0].plane if timed else None
    if plane is None:
        return None
    places = [place for each in timed if (place := _place(each, plane.num_speculative_tokens))]
    return break_even_chart(plane, timed[0].known_analysis.min_speedup_over_baseline, places)


def _place(evaluation: Evaluation, k: int) -> PlanePlace | None:
    acceptance, faster = evaluation.acceptance_at(k), evaluation.operating_point.draft_speedup
    if acceptance is None or faster is None:
        return None
    return PlanePlace(evaluation.name, acceptance.acceptance_rate_loss, faster)
