"""Charts of the break-even plane, and of the verdict by batch and context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantdraft.record import GridPoint, Interval
from quantdraft.record.plane import Plane, ellipse
from quantdraft.record.wording import metric, times, valued
from quantdraft.report.blocks import Chart, Table
from quantdraft.report.charts import style

if TYPE_CHECKING:
    import altair as alt

LOST = "acceptance lost, points (right: worse)"
MIN_WORD_WIDTH = 100  # of a cell that has room for "inconclusive"
NUM_FRONTIER_POINTS = 60
REGIONS = {
    "go": style.LIGHT["good"],
    "gain below the limit": style.LIGHT["doubt"],
    "no-go": style.LIGHT["bad"],
}

Domain = tuple[tuple[float, float], tuple[float, float]]  # of x, in points, and of y


@dataclass(frozen=True, slots=True)
class PlanePlace:
    """Where a recipe lies: the acceptance that it lost, and how much faster its draft step is."""

    name: str
    loss: Interval
    draft_speedup: Interval


def break_even_chart(plane: Plane, limit: float, places: Sequence[PlanePlace]) -> Chart:
    """Return the regions of the verdict, and every recipe with its 95 % ellipse.

    x: acceptance lost, in points; y: how many times faster a draft step is
    """
    alt = style.altair()

    speedups = [place.draft_speedup.value for place in places]
    low, high = style.near_range(speedups, 1.0, 1.0)
    near = [place for place in places if low <= place.draft_speedup.value <= high]
    far = ", ".join(place.name for place in places if place not in near)
    (left, right), (bottom, top) = domain = _domain(near)
    x = alt.X(
        "low:Q",
        title=LOST,
        axis=alt.Axis(tickCount=style.NUM_TICKS, grid=False),
        scale=alt.Scale(domain=[left, right], nice=False, zero=False),
    )
    y = alt.Y(
        "y:Q",
        title="draft step, times faster",
        scale=alt.Scale(domain=[bottom, top], nice=False, zero=False),
    )
    ground = _ground(_regions(plane, limit, domain), x, y)
    drawn = alt.layer(ground, _recipes(near, y)).resolve_scale(color="independent")
    return Chart(
        name="break-even",
        title="Break-even plane",
        description=(
            f"The line is where both drafts are equally fast, at k = "
            f"{plane.num_speculative_tokens} and the baseline's step times; green begins at "
            f"{times(limit)}. Ellipses hold a recipe with 95 % confidence."
            + (f" Too far up or down to be drawn, see the numbers: {far}." if far else "")
        ),
        spec=style.finish(drawn, height=340, width=style.WIDE),
        data=_plane_table(places, plane, limit),
        is_wide=True,
    )


def _ground(regions: Sequence[Mapping[str, Any]], x: alt.X, y: alt.Y) -> Any:
    """Return the coloured regions, and the line between gain and loss."""
    alt = style.altair()

    areas = (
        alt.Chart(style.inline(regions))
        .mark_area(orient="horizontal", clip=True, fillOpacity=0.16, strokeWidth=0)
        .encode(
            x=x,
            x2="high:Q",
            y=y,
            color=style.coloured("region", style.colour_scale(REGIONS), symbolType="square"),
        )
    )
    even = (
        alt.Chart(style.inline(row for row in regions if row["region"] == "no-go"))
        .mark_line(clip=True, color=style.LIGHT["ink"], strokeWidth=1.6)
        .encode(x=x, y=y, order="y:Q")
    )
    return alt.layer(areas, even)


def _recipes(places: Sequence[PlanePlace], y: alt.Y) -> Any:
    """Return a dot and an ellipse for each recipe."""
    alt = style.altair()

    points = [
        {
            "name": place.name,
            "x": 100 * place.loss.value,
            "y": place.draft_speedup.value,
            "lost": valued(place.loss, "loss"),
            "faster": valued(place.draft_speedup, "speedup"),
        }
        for place in places
    ]
    ellipses = [
        {"name": place.name, "order": at, "x": 100 * x, "y": y}
        for place in places
        for at, (x, y) in enumerate(ellipse(place.loss, place.draft_speedup))
    ]
    names = list(dict.fromkeys(place.name for place in places))
    named = style.coloured("name", style.name_scale(names), symbolOpacity=1)
    rings = (
        alt.Chart(style.inline(ellipses))
        .mark_line(clip=True, strokeWidth=1.8, fillOpacity=0)
        .encode(x=alt.X("x:Q", title=LOST), y=y, order="order:Q", color=named)
    )
    dots = (
        alt.Chart(style.inline(points))
        .mark_point(filled=True, size=90, opacity=1)
        .encode(
            x=alt.X("x:Q", title=LOST),
            y=y,
            color=named,
            tooltip=style.tooltip(
                {"name:N": "recipe", "lost:N": "acceptance lost", "faster:N": "draft step"}
            ),
        )
    )
    return alt.layer(rings, dots)


def _domain(places: Sequence[PlanePlace]) -> Domain:
    """Return room for every ellipse, and for 0 loss and 1× beside it; x in points."""
    corners = [corner for place in places for corner in ellipse(place.loss, place.draft_speedup)]
    xs, ys = [100 * x for x, _ in corners], [y for _, y in corners]
    x = min([*xs, -2.0]), max([*xs, 6.0])
    y = min([*ys, 0.9]), max([*ys, 1.5])
    across, up = 0.06 * (x[1] - x[0]), 0.06 * (y[1] - y[0])
    return (x[0] - across, x[1] + across), (max(y[0] - up, 0.05), y[1] + up)


def _regions(plane: Plane, limit: float, domain: Domain) -> list[dict[str, Any]]:
    """Return three bands of loss, in points, at every draft speed-up: which verdict holds where."""
    (left, right), (low, high) = domain
    speeds = [
        low + (high - low) * at / NUM_FRONTIER_POINTS for at in range(NUM_FRONTIER_POINTS + 1)
    ]
    bands: list[dict[str, Any]] = []
    lines = plane.frontier(speeds, limit), plane.frontier(speeds, 1.0)
    for (at_limit, y), (at_even, _) in zip(*lines, strict=True):
        to_limit, to_even = 100 * at_limit, 100 * at_even
        ends_of = (min(left, to_limit), to_limit, to_even, max(right, to_even))
        bands += [
            {"region": region, "y": y, "low": ends_of[at], "high": ends_of[at + 1]}
            for at, region in enumerate(REGIONS)
        ]
    return bands


def _plane_table(places: Sequence[PlanePlace], plane: Plane, limit: float) -> Table:
    rows = []
    for place in places:
        speed = place.draft_speedup.value
        rows.append(
            {
                "Recipe": place.name,
                "Acceptance lost": valued(place.loss, "loss"),
                "Draft step, times faster": valued(place.draft_speedup, "speedup"),
                "May lose, to break even": metric(plane.allowed_loss(speed), "loss"),
                f"May lose, for {times(limit)}": metric(plane.allowed_loss(speed, limit), "loss"),
            }
        )
    return Table.of(rows, range(1, 5))


def verdict_map(points: Sequence[GridPoint], own: tuple[int, int]) -> Chart:
    """Return a cell a point with its verdict and its two speeds.

    own: batch and context of the run's own verdict, which is outlined
    """
    alt = style.altair()

    rows = [_cell_row(point, own) for point in points]
    base = alt.Chart(style.inline(rows)).encode(
        x=alt.X("batch:O", title="batch", axis=alt.Axis(labelAngle=0, ticks=False)),
        y=alt.Y(
            "context:O", title="context, tokens", sort="descending", axis=alt.Axis(ticks=False)
        ),
    )
    colours = {**style.VERDICT_COLOURS, "undefined": style.LIGHT["none"]}
    squares = base.mark_rect(cornerRadius=3, stroke=style.LIGHT["paper"], strokeWidth=3).encode(
        color=style.coloured("verdict", style.colour_scale(colours), symbolType="square"),
        tooltip=style.tooltip(
            {
                "batch:O": "batch",
                "context:O": "context",
                "verdict:N": "verdict",
                "over_baseline:N": "over the baseline draft",
                "over_autoregressive:N": "over the target alone",
                "why:N": "why",
            }
        ),
    )
    ink = alt.condition(
        "datum.verdict === 'undefined'",
        alt.value(style.LIGHT["quiet"]),
        alt.value(style.LIGHT["paper"]),
    )
    num_batches = len({point.batch_size for point in points})
    word = f"width / {num_batches} < {MIN_WORD_WIDTH} ? datum.short : datum.verdict"
    worded = base.transform_calculate(word=word)
    lines = [
        worded.mark_text(fontSize=13, fontWeight="bold", dy=-17).encode(text="word:N", color=ink),
        base.mark_text(fontSize=13, dy=1).encode(text="shown:N", color=ink),
        base.mark_text(fontSize=12, dy=18).encode(text="shown_over_target:N", color=ink),
    ]
    here = base.transform_filter("datum.is_here").mark_rect(
        cornerRadius=3, filled=False, stroke=style.LIGHT["ink"], strokeWidth=3
    )
    height = 72 * len({point.context_length for point in points})
    shown = "batch", "context", "verdict", "over_baseline", "over_autoregressive"
    return Chart(
        name="verdict-map",
        title="Verdict by batch and context",
        description=(
            "The verdict's two speed checks at every timed point, each arm at its best k there: "
            "the candidate's speed over the baseline draft's and, after AR, over the target alone. "
            "Outlined: the point of the verdict above. Empty: not timed. An alarm holds everywhere."
        ),
        spec=style.finish(alt.layer(squares, here, *lines), height=height, width=style.WIDE),
        data=Table(
            ("Batch", "Context", "Verdict", "Over the baseline draft", "Over the target", "Why"),
            tuple((*(str(row[key]) for key in shown), str(row["why"]) or "—") for row in rows),
            frozenset({0, 1, 3, 4}),
        ),
        is_wide=True,
    )


def _cell_row(point: GridPoint, own: tuple[int, int]) -> dict[str, Any]:
    speed, verdict = point.speed, point.decision or "undefined"
    over_baseline = speed.speedup_over_baseline if speed else None
    over_target = speed.speedup_over_autoregressive if speed else None
    return {
        "batch": point.batch_size,
        "context": point.context_length,
        "verdict": verdict,
        "short": {"inconclusive": "?", "undefined": "—"}.get(verdict, verdict),
        "shown": times(over_baseline.value) if over_baseline else "",
        "shown_over_target": f"AR {over_target.value:.1f}×" if over_target else "",
        "is_here": own == (point.batch_size, point.context_length),
        "over_baseline": valued(over_baseline, "speedup"),
        "over_autoregressive": valued(over_target, "speedup"),
        "why": point.reason,
    }


def paying_chart(points: Sequence[GridPoint]) -> Chart | None:
    """Return the better draft over the target alone, by batch; None where one batch was timed."""
    alt = style.altair()

    rows = [_paying_row(each, over) for each in points if (over := each.better_speedup)]
    if len({row["batch"] for row in rows}) < 2:
        return None
    contexts = list(dict.fromkeys(row["context"] for row in rows))
    title = "speedup over the target alone"
    base = alt.Chart(style.inline(rows)).encode(
        x=alt.X("batch:O", title="batch", axis=alt.Axis(labelAngle=0)),
        color=style.coloured(
            "context",
            style.name_scale(contexts),
            title="context",
            symbolType="stroke",
            symbolOpacity=1,
        ),
        tooltip=style.tooltip(
            {
                "context:N": "context",
                "batch:O": "batch",
                "shown:N": title,
                "arm:N": "the better draft",
            }
        ),
    )
    y = alt.Y("value:Q", title=title, scale=alt.Scale(zero=False))
    whisker = base.mark_rule(strokeWidth=2, opacity=0.5).encode(
        y=alt.Y("low:Q", title=title), y2="high:Q"
    )
    line = base.mark_line(strokeWidth=2).encode(y=y)
    dot = base.mark_point(filled=True, size=60, opacity=1).encode(y=y)
    drawn = alt.layer(style.level(1.0, "target alone"), whisker, line, dot)
    return Chart(
        name="paying-by-batch",
        title="Does speculation pay at all, by batch",
        description="The better of the two drafts over the target alone, with 95 % intervals.",
        spec=style.finish(drawn, height=250),
        data=style.rows_table(
            rows,
            {"batch": "Batch", "context": "Context", "shown": "Over the target alone", "arm": "By"},
            {0, 1, 2},
        ),
    )


def _paying_row(point: GridPoint, over: Interval) -> dict[str, Any]:
    return {
        "batch": point.batch_size,
        "context": str(point.context_length),
        **style.ends(over),
        "shown": valued(over, "speedup"),
        "arm": point.better_arm,
    }
