"""The break-even plane of one evaluation, or of several recipes at one operating point."""

from __future__ import annotations

from collections.abc import Sequence

from quantdraft.record import Evaluation, Interval
from quantdraft.record.plane import Plane, ellipse
from quantdraft.record.wording import change_points, metric, times, undefined, valued
from quantdraft.report.blocks import Block, Chart, Paragraph, Section, Table
from quantdraft.report.charts.planes import break_even_plane
from quantdraft.report.charts.style import Row
from quantdraft.report.sections.headline import missing_speed

NUM_FRONTIER_POINTS = 60
Place = tuple[str, Interval, Interval]  # recipe, acceptance rate loss, draft speed-up


def plane_section(evaluation: Evaluation) -> Section:
    """The plane, or why there is none and how to get it."""
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
    """The frontier as numbers, where the candidate's own place on the plane is unknown."""
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
    """The frontier of the first evaluation that has one, and every recipe that was timed."""
    timed = [
        e
        for e in evaluations
        if e.plane is not None and e.operating_point.draft_speedup is not None
    ]
    plane = timed[0].plane if timed else None
    if plane is None:
        return None
    places = [place for each in timed if (place := _place(each, plane.num_speculative_tokens))]
    limit = timed[0].known_analysis.min_speedup_over_baseline
    domain = _domain(places)
    return Chart(
        name="break-even",
        title="Break-even plane",
        description=(
            f"The line is where both drafts are equally fast, at k = "
            f"{plane.num_speculative_tokens} and the baseline's step times; green begins at "
            f"{times(limit)}. Ellipses hold a recipe with 95 % confidence."
        ),
        spec=break_even_plane(
            _regions(plane, limit, domain),
            [row for place in places for row in _ellipse_rows(place)],
            [_point_row(place) for place in places],
            domain,
        ),
        data=_table(places, plane, limit),
        is_wide=True,
    )


def _place(evaluation: Evaluation, k: int) -> Place | None:
    acceptance, faster = evaluation.acceptance_at(k), evaluation.operating_point.draft_speedup
    if acceptance is None or faster is None:
        return None
    return evaluation.name, acceptance.acceptance_rate_loss, faster


def _domain(places: Sequence[Place]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Room for every ellipse, and for 0 loss and 1× beside it; x in points."""
    corners = [corner for place in places for corner in ellipse(place[1], place[2])]
    xs, ys = [100 * x for x, _ in corners], [y for _, y in corners]
    x = min([*xs, -2.0]), max([*xs, 6.0])
    y = min([*ys, 0.9]), max([*ys, 1.5])
    across, up = 0.06 * (x[1] - x[0]), 0.06 * (y[1] - y[0])
    return (x[0] - across, x[1] + across), (max(y[0] - up, 0.05), y[1] + up)


def _regions(
    plane: Plane, limit: float, domain: tuple[tuple[float, float], tuple[float, float]]
) -> list[Row]:
    """Three bands of loss at every draft speed-up: under the limit's line, between, beyond."""
    (left, right), (low, high) = domain
    speeds = [
        low + (high - low) * at / NUM_FRONTIER_POINTS for at in range(NUM_FRONTIER_POINTS + 1)
    ]
    go = plane.frontier(speeds, limit)
    even = plane.frontier(speeds, 1.0)
    rows: list[Row] = []
    for (at_limit, y), (at_even, _) in zip(go, even, strict=True):
        to_limit, to_even = 100 * at_limit, 100 * at_even
        rows += [
            {"region": "go", "y": y, "low": min(left, to_limit), "high": to_limit},
            {"region": "gain below the limit", "y": y, "low": to_limit, "high": to_even},
            {"region": "no-go", "y": y, "low": to_even, "high": max(right, to_even)},
        ]
    return rows


def _ellipse_rows(place: Place) -> list[Row]:
    name, lost, faster = place
    return [
        {"name": name, "order": at, "x": 100 * x, "y": y}
        for at, (x, y) in enumerate(ellipse(lost, faster))
    ]


def _point_row(place: Place) -> Row:
    name, lost, faster = place
    return {
        "name": name,
        "x": 100 * lost.value,
        "y": faster.value,
        "lost": valued(lost, "loss"),
        "faster": valued(faster, "speedup"),
    }


def _table(places: Sequence[Place], plane: Plane, limit: float) -> Table:
    rows = tuple(
        (
            name,
            valued(lost, "loss"),
            valued(faster, "speedup"),
            metric(plane.allowed_loss(faster.value), "loss"),
            metric(plane.allowed_loss(faster.value, limit), "loss"),
        )
        for name, lost, faster in places
    )
    return Table(
        (
            "Recipe",
            "Acceptance lost",
            "Draft step, times faster",
            "May lose, to break even",
            f"May lose, for {times(limit)}",
        ),
        rows,
        frozenset({1, 2, 3, 4}),
    )
