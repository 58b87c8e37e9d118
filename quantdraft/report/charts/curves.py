"""Lines over k with bands: speedup over the target alone, tokens a round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantdraft.report.charts.palette import LIGHT
from quantdraft.report.charts.style import (
    Row,
    arm_scale,
    finish,
    inline,
    level,
    name_scale,
    whiskers,
)
from quantdraft.report.safety import shown_text

CurvePoint = tuple[int, float, float, float, str]  # k, value, low, high, words
K_TITLE = "k, tokens proposed a round"


def curve_rows(name: str, points: Sequence[CurvePoint], best: int | None) -> list[Row]:
    """Of one line; `best` is the k to ring."""
    return [
        {
            "name": name,
            "k": k,
            "value": value,
            "low": low,
            "high": high,
            "shown": words,
            "best": "best k" if k == best else "",
        }
        for k, value, low, high, words in points
    ]


def curves(
    rows: Sequence[Row],
    y_title: str,
    *,
    reference: tuple[float, str] | None = None,
    recipes: Sequence[str] = (),
    height: int = 270,
) -> dict[str, Any]:
    """One line a name, its 95 % band, a ring at its best k.

    recipes: names that a click in the legend shows alone; empty: baseline and candidate
    """
    import altair as alt

    scale = name_scale(recipes, "baseline") if recipes else arm_scale()
    ks = sorted({row["k"] for row in rows})
    base = alt.Chart(inline(rows)).encode(
        x=alt.X(
            "k:Q",
            title=K_TITLE,
            axis=alt.Axis(values=ks, format="d", grid=False),
            scale=alt.Scale(domain=[min(ks), max(ks)], nice=False, padding=14),
        ),
        color=alt.Color(
            "name:N",
            scale=scale,
            legend=alt.Legend(title=None, symbolType="stroke", symbolOpacity=1),
        ),
    )
    y = alt.Y("value:Q", title=y_title, scale=alt.Scale(zero=False))
    shade: dict[str, Any] = {"opacity": alt.value(0.14)}
    line: dict[str, Any] = {"opacity": alt.value(1)}
    if recipes:
        chosen = alt.selection_point(name="recipe", fields=["name"], bind="legend")
        shade = {"opacity": alt.condition(chosen, alt.value(0.14), alt.value(0.0), empty=False)}
        line = {"opacity": alt.condition(chosen, alt.value(1), alt.value(0.12))}
    band = base.mark_area().encode(y=alt.Y("low:Q", title=y_title), y2="high:Q", **shade)
    drawn = base.mark_line(strokeWidth=2).encode(y=y, **line)
    dots = base.mark_point(filled=True, size=36).encode(
        y=y,
        tooltip=[
            alt.Tooltip("name:N", title="draft"),
            alt.Tooltip("k:Q", title="k"),
            alt.Tooltip("shown:N", title=y_title),
            alt.Tooltip("best:N", title="note"),
        ],
        **line,
    )
    ring = (
        base.transform_filter("datum.best !== ''")
        .mark_point(size=190, filled=False, strokeWidth=1.8, fillOpacity=0)
        .encode(y=y, **line)
    )
    layers = [band, drawn, dots, ring]
    if reference is not None:
        layers.insert(0, level(*reference))
    chart = alt.layer(*layers)
    if recipes:
        chart = chart.add_params(chosen)
    return finish(chart, height=height)


def forest(rows: Sequence[Row], limits: Sequence[tuple[float, str]]) -> dict[str, Any]:
    """One interval a recipe against the limits: name, value, low, high, tone, shown."""
    import altair as alt

    names = alt.Y(
        "name:N",
        sort=None,
        title=None,
        axis=alt.Axis(labelFontSize=13, ticks=False),
        scale=alt.Scale(domain=[shown_text(row["name"], 120) for row in rows]),
    )
    base = alt.Chart(inline(rows)).encode(
        y=names,
        color=alt.Color(
            "decision:N",
            scale=alt.Scale(
                domain=["go", "no-go", "inconclusive"],
                range=[LIGHT["good"], LIGHT["bad"], LIGHT["doubt"]],
            ),
            legend=alt.Legend(title=None),
        ),
        tooltip=[
            alt.Tooltip("name:N", title="recipe"),
            alt.Tooltip("shown:N", title="speedup"),
            alt.Tooltip("decision:N", title="verdict"),
        ],
    )
    title = "speedup over the baseline draft"
    whisker, dot = whiskers(base, title, size=90)
    missing = (
        alt.Chart(inline([row for row in rows if row["value"] is None]))
        .mark_text(align="left", dx=6, color=LIGHT["quiet"], text="undefined")
        .encode(y=names, x=alt.value(0))
    )
    rules = [
        level(value, text, axis="x", dash=at == 0, is_before=at == 0)
        for at, (value, text) in enumerate(limits)
    ]
    return finish(alt.layer(*rules, whisker, dot, missing), height=34 * len(rows))
