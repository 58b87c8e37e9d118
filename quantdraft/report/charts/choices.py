"""Several drafts under several recipes: speeds in order, acceptance against cost, by domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantdraft.report.charts.palette import LIGHT
from quantdraft.report.charts.style import (
    RATE,
    WIDE,
    Row,
    against_one,
    crosses,
    finish,
    inline,
    name_scale,
    whiskers,
)
from quantdraft.report.safety import shown_values

STANDING = {
    "recommended": LIGHT["good"],
    "faster, no go": LIGHT["orange"],
    "not told apart": LIGHT["doubt"],
    "slower": LIGHT["baseline"],
}


def speeds(rows: Sequence[Row]) -> dict[str, Any]:
    """name, standing, value, low, high, shown, predicted, shown_predicted; fastest first.

    A diamond is the prediction by bytes; a row without a measured value has the diamond alone.
    """
    import altair as alt

    title = "speed over the target alone"
    found = [each for each in STANDING if any(row["standing"] == each for row in rows)]
    names = alt.Y("name:N", sort=None, title=None, axis=alt.Axis(labelFontSize=13, ticks=False))
    base = alt.Chart(inline(rows)).encode(
        y=names,
        color=alt.Color(
            "standing:N",
            scale=alt.Scale(domain=found, range=[STANDING[each] for each in found]),
            legend=alt.Legend(title=None),
        ),
        tooltip=[
            alt.Tooltip("name:N", title="draft and recipe"),
            alt.Tooltip("shown:N", title="measured"),
            alt.Tooltip("shown_predicted:N", title="predicted by bytes"),
            alt.Tooltip("standing:N", title="standing"),
        ],
    )
    drawn = against_one(base, title, one="target alone", by_bytes="predicted")
    return finish(drawn, height=32 * max(len(rows), 2))


def kept_for_cost(rows: Sequence[Row], drafts: Sequence[str], x_title: str) -> dict[str, Any]:
    """name, draft, recipe, standing, x, x_low, x_high, y, y_low, y_high, cost, rate.

    A colour a draft, in this order, a shape a recipe, a ring around what is recommended.
    """
    import altair as alt

    base = alt.Chart(inline(rows)).encode(
        color=alt.Color(
            "draft:N",
            scale=name_scale(drafts),
            legend=alt.Legend(title="draft", symbolType="square", symbolOpacity=1),
        )
    )
    middle, rules = crosses(base, x_title, RATE)
    dots = base.mark_point(filled=True, size=130, opacity=1).encode(
        **middle,
        shape=alt.Shape(
            "recipe:N",
            sort=None,
            legend=alt.Legend(
                title="recipe", symbolFillColor=LIGHT["quiet"], symbolStrokeColor=LIGHT["quiet"]
            ),
        ),
        tooltip=[
            alt.Tooltip("name:N", title="draft and recipe"),
            alt.Tooltip("cost:N", title="draft step"),
            alt.Tooltip("rate:N", title="acceptance rate"),
        ],
    )
    ring = (
        base.transform_filter("datum.standing === 'recommended'")
        .mark_point(size=420, filled=False, strokeWidth=1.8, fillOpacity=0)
        .encode(**middle)
    )
    return finish(alt.layer(*rules, dots, ring), height=340, width=WIDE)


def rates_by_domain(rows: Sequence[Row], drafts: Sequence[str]) -> dict[str, Any]:
    """domain, draft, value, low, high, shown, num_prompts: one mark a draft in every domain."""
    import altair as alt

    title = "acceptance rate (right: better)"
    base = alt.Chart(inline(rows)).encode(
        y=alt.Y("domain:N", title=None, axis=alt.Axis(labelFontSize=13, ticks=False, grid=True)),
        yOffset=alt.YOffset(
            "draft:N", sort=shown_values(list(drafts)), scale=alt.Scale(paddingOuter=0.4)
        ),
        color=alt.Color("draft:N", scale=name_scale(drafts), legend=alt.Legend(title=None)),
        tooltip=[
            alt.Tooltip("draft:N", title="draft"),
            alt.Tooltip("domain:N", title="domain"),
            alt.Tooltip("shown:N", title="acceptance rate"),
            alt.Tooltip("num_prompts:Q", title="prompts"),
        ],
    )
    whisker, dot = whiskers(base, title, size=80, is_share=True)
    num_domains = len({row["domain"] for row in rows})
    height = max(26 * len(drafts) * num_domains, 60)
    return finish(alt.layer(whisker, dot), height=height)
