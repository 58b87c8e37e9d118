"""Two-dimensional verdicts: the break-even plane, batch by context, acceptance by draft latency."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantdraft.report.charts.style import NUM_TICKS, WIDE, Row, finish, inline, name_scale
from quantdraft.report.palette import LIGHT

LOST = "acceptance lost, points (right: candidate worse)"
STEP = "draft step, ms (left: faster)"
RATE = "acceptance rate (up: better)"
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
    scale = name_scale(recipes)
    colours = dict(zip(scale.domain, scale.range, strict=True))
    layers = [areas, frontier]
    for name in recipes:
        ring = (
            alt.Chart(inline([row for row in ellipses if row["name"] == name]))
            .mark_line(clip=True, color=colours[name], strokeWidth=1.8, fillOpacity=0)
            .encode(x=alt.X("x:Q", title=LOST), y=y, order="order:Q")
        )
        base = alt.Chart(inline([row for row in points if row["name"] == name])).encode(
            x=alt.X("x:Q", title=LOST),
            y=y,
            tooltip=[
                alt.Tooltip("name:N", title="recipe"),
                alt.Tooltip("lost:N", title="acceptance lost"),
                alt.Tooltip("faster:N", title="draft step"),
            ],
        )
        dot = base.mark_point(filled=True, size=90, color=colours[name], opacity=1)
        label = base.mark_text(
            align="left", dx=9, dy=-8, fontWeight="bold", color=colours[name], clip=True
        ).encode(text="name:N")
        layers += [ring, dot, label]
    return finish(alt.layer(*layers), height=340, width=WIDE)


def verdict_map(rows: Sequence[Row]) -> dict[str, Any]:
    """batch, context, verdict, shown (the speedup), why: one cell a timed point."""
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
    words = base.mark_text(fontWeight="bold", fontSize=13).encode(
        text="shown:N",
        color=alt.condition(
            "datum.verdict === 'undefined'", alt.value(LIGHT["quiet"]), alt.value(LIGHT["paper"])
        ),
    )
    return finish(alt.layer(cells, words), height=52 * len({row["context"] for row in rows}))


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
    x = alt.X(
        "x:Q",
        title=STEP,
        axis=alt.Axis(tickCount=NUM_TICKS),
        scale=alt.Scale(zero=False, padding=24),
    )
    y = alt.Y(
        "y:Q",
        title=RATE,
        axis=alt.Axis(format=".0%"),
        scale=alt.Scale(zero=False, padding=18),
    )
    across = base.mark_rule(strokeWidth=1.4, opacity=0.6).encode(
        x=alt.X("x_low:Q", title=STEP), x2="x_high:Q", y=y
    )
    up = base.mark_rule(strokeWidth=1.4, opacity=0.6).encode(
        x=x, y=alt.Y("y_low:Q", title=RATE), y2="y_high:Q"
    )
    dots = base.mark_point(filled=True, size=100, opacity=1).encode(
        x=x,
        y=y,
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
    return finish(alt.layer(line, across, up, dots), height=320, width=WIDE)
