"""Two-dimensional verdicts: the break-even plane, batch by context, acceptance by draft latency."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantdraft.report.charts.palette import LIGHT
from quantdraft.report.charts.style import (
    NUM_TICKS,
    RATE,
    WIDE,
    Row,
    crosses,
    finish,
    inline,
    level,
    name_scale,
)

LOST = "acceptance lost, points (right: worse)"
STEP = "draft step, ms (left: faster)"
MIN_WORD_WIDTH = 100  # of a cell that has room for "inconclusive"
VERDICT_COLOURS = {
    "go": LIGHT["good"],
    "no-go": LIGHT["bad"],
    "inconclusive": LIGHT["doubt"],
    "undefined": LIGHT["none"],
}


def break_even_plane(
    regions: Sequence[Row],
    ellipses: Sequence[Row],
    points: Sequence[Row],
    domain: tuple[tuple[float, float], tuple[float, float]],
) -> dict[str, Any]:
    """regions: region, y, low, high (x ends); ellipses: name, order, x, y; points: name, x, y.

    x: acceptance lost, points; y: how many times faster a draft step is
    """
    import altair as alt

    x = alt.X(
        "low:Q",
        title=LOST,
        axis=alt.Axis(tickCount=NUM_TICKS, grid=False),
        scale=alt.Scale(domain=list(domain[0]), nice=False, zero=False),
    )
    y = alt.Y(
        "y:Q",
        title="draft step, times faster",
        scale=alt.Scale(domain=list(domain[1]), nice=False, zero=False),
    )
    names = ["go", "gain below the limit", "no-go"]
    areas = (
        alt.Chart(inline(regions))
        .mark_area(orient="horizontal", clip=True, fillOpacity=0.16, strokeWidth=0)
        .encode(
            x=x,
            x2="high:Q",
            y=y,
            color=alt.Color(
                "region:N",
                scale=alt.Scale(domain=names, range=[LIGHT["good"], LIGHT["doubt"], LIGHT["bad"]]),
                legend=alt.Legend(title=None, symbolType="square"),
            ),
        )
    )
    frontier = (
        alt.Chart(inline([row for row in regions if row["region"] == "no-go"]))
        .mark_line(clip=True, color=LIGHT["ink"], strokeWidth=1.6)
        .encode(x=x, y=y, order="y:Q")
    )
    recipes = list(dict.fromkeys(row["name"] for row in points))
    named = alt.Color(
        "name:N", scale=name_scale(recipes), legend=alt.Legend(title=None, symbolOpacity=1)
    )
    rings = (
        alt.Chart(inline(ellipses))
        .mark_line(clip=True, strokeWidth=1.8, fillOpacity=0)
        .encode(x=alt.X("x:Q", title=LOST), y=y, order="order:Q", color=named)
    )
    dots = (
        alt.Chart(inline(points))
        .mark_point(filled=True, size=90, opacity=1)
        .encode(
            x=alt.X("x:Q", title=LOST),
            y=y,
            color=named,
            tooltip=[
                alt.Tooltip("name:N", title="recipe"),
                alt.Tooltip("lost:N", title="acceptance lost"),
                alt.Tooltip("faster:N", title="draft step"),
            ],
        )
    )
    plane = alt.layer(areas, frontier)
    drawn = alt.layer(plane, alt.layer(rings, dots)).resolve_scale(color="independent")
    return finish(drawn, height=340, width=WIDE)


def verdict_map(rows: Sequence[Row]) -> dict[str, Any]:
    """batch, context, verdict, short, shown, shown_over_target, is_here, why: a cell a point."""
    import altair as alt

    base = alt.Chart(inline(rows)).encode(
        x=alt.X("batch:O", title="batch", axis=alt.Axis(labelAngle=0, ticks=False)),
        y=alt.Y(
            "context:O", title="context, tokens", sort="descending", axis=alt.Axis(ticks=False)
        ),
    )
    cells = base.mark_rect(cornerRadius=3, stroke=LIGHT["paper"], strokeWidth=3).encode(
        color=alt.Color(
            "verdict:N",
            scale=alt.Scale(domain=list(VERDICT_COLOURS), range=list(VERDICT_COLOURS.values())),
            legend=alt.Legend(title=None, symbolType="square"),
        ),
        tooltip=[
            alt.Tooltip("batch:O", title="batch"),
            alt.Tooltip("context:O", title="context"),
            alt.Tooltip("verdict:N", title="verdict"),
            alt.Tooltip("over_baseline:N", title="over the baseline draft"),
            alt.Tooltip("over_autoregressive:N", title="over the target alone"),
            alt.Tooltip("why:N", title="why"),
        ],
    )
    ink = alt.condition(
        "datum.verdict === 'undefined'", alt.value(LIGHT["quiet"]), alt.value(LIGHT["paper"])
    )
    num_batches = len({row["batch"] for row in rows})
    word = f"width / {num_batches} < {MIN_WORD_WIDTH} ? datum.short : datum.verdict"
    worded = base.transform_calculate(word=word)
    lines = [
        worded.mark_text(fontSize=13, fontWeight="bold", dy=-17).encode(text="word:N", color=ink),
        base.mark_text(fontSize=13, dy=1).encode(text="shown:N", color=ink),
        base.mark_text(fontSize=12, dy=18).encode(text="shown_over_target:N", color=ink),
    ]
    here = base.transform_filter("datum.is_here").mark_rect(
        cornerRadius=3, filled=False, stroke=LIGHT["ink"], strokeWidth=3
    )
    height = 72 * len({row["context"] for row in rows})
    return finish(alt.layer(cells, here, *lines), height=height, width=WIDE)


def paying_by_batch(rows: Sequence[Row]) -> dict[str, Any]:
    """context, batch, value, low, high, shown, arm: the better draft over the target alone."""
    import altair as alt

    contexts = list(dict.fromkeys(str(row["context"]) for row in rows))
    title = "speedup over the target alone"
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("batch:O", title="batch", axis=alt.Axis(labelAngle=0)),
        color=alt.Color(
            "context:N",
            scale=name_scale(contexts),
            legend=alt.Legend(title="context", symbolType="stroke", symbolOpacity=1),
        ),
        tooltip=[
            alt.Tooltip("context:N", title="context"),
            alt.Tooltip("batch:O", title="batch"),
            alt.Tooltip("shown:N", title=title),
            alt.Tooltip("arm:N", title="the better draft"),
        ],
    )
    y = alt.Y("value:Q", title=title, scale=alt.Scale(zero=False))
    whisker = base.mark_rule(strokeWidth=2, opacity=0.5).encode(
        y=alt.Y("low:Q", title=title), y2="high:Q"
    )
    line = base.mark_line(strokeWidth=2).encode(y=y)
    dot = base.mark_point(filled=True, size=60, opacity=1).encode(y=y)
    return finish(alt.layer(level(1.0, "target alone"), whisker, line, dot), height=250)


def pareto(rows: Sequence[Row], front: Sequence[Row]) -> dict[str, Any]:
    """rows: name, x (draft step, ms), y (acceptance rate), their ends; front: x, y, by rising x."""
    import altair as alt

    names = [row["name"] for row in rows]
    base = alt.Chart(inline(rows)).encode(
        color=alt.Color(
            "name:N",
            scale=name_scale(names, "baseline"),
            legend=alt.Legend(title=None, symbolOpacity=1),
        ),
    )
    middle, rules = crosses(base, STEP, RATE)
    dots = base.mark_point(filled=True, size=100, opacity=1).encode(
        **middle,
        tooltip=[
            alt.Tooltip("name:N", title="recipe"),
            alt.Tooltip("step:N", title="draft step"),
            alt.Tooltip("rate:N", title="acceptance rate"),
        ],
    )
    line = (
        alt.Chart(inline(front))
        .mark_line(color=LIGHT["quiet"], strokeDash=[3, 3], interpolate="step-after")
        .encode(x=alt.X("x:Q", title=STEP), y=alt.Y("y:Q", title=RATE))
    )
    return finish(alt.layer(line, *rules, dots), height=320, width=WIDE)
