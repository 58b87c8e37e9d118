"""Acceptance per position, and losses as paired differences with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantdraft.report.charts.palette import LIGHT
from quantdraft.report.charts.style import NUM_TICKS, Row, arm_scale, finish, inline, level


def position_bars(rows: Sequence[Row]) -> dict[str, Any]:
    """Share of rounds that kept each position: position, arm, value, shown."""
    import altair as alt

    base = alt.Chart(inline(rows)).encode(
        x=alt.X("position:O", title="position in the round", axis=alt.Axis(labelAngle=0)),
        xOffset=alt.XOffset("arm:N", sort=None),
        y=alt.Y(
            "value:Q",
            title="kept, share of rounds",
            axis=alt.Axis(format=".0%", tickCount=5),
            scale=alt.Scale(domain=[0, 1]),
        ),
        tooltip=[
            alt.Tooltip("arm:N", title="draft"),
            alt.Tooltip("position:O", title="position"),
            alt.Tooltip("shown:N", title="kept"),
        ],
    )
    bars = base.mark_bar(cornerRadiusEnd=2).encode(
        color=alt.Color("arm:N", scale=arm_scale(), legend=alt.Legend(title=None))
    )
    return finish(bars, height=240)


def losses(rows: Sequence[Row], y_title: str) -> dict[str, Any]:
    """One paired loss a part, in points: part, value, low, high, shown. Right of 0 is worse."""
    import altair as alt

    base = alt.Chart(inline(rows)).encode(
        y=alt.Y(
            "part:N",
            sort=None,
            title=y_title,
            axis=alt.Axis(ticks=False, titleAngle=-90, titlePadding=10),
        ),
        tooltip=[
            alt.Tooltip("part:N", title=y_title),
            alt.Tooltip("shown:N", title="loss"),
            alt.Tooltip("arms:N", title="baseline → candidate"),
        ],
    )
    title = "points lost (right: candidate worse)"
    x = alt.X("low:Q", title=title, axis=alt.Axis(tickCount=NUM_TICKS))
    whisker = base.mark_rule(strokeWidth=2.5, color=LIGHT["candidate"]).encode(x=x, x2="high:Q")
    dot = base.mark_point(filled=True, size=80, color=LIGHT["candidate"], opacity=1).encode(
        x=alt.X("value:Q", title=title)
    )
    zero = level(0.0, "no loss", axis="x")
    return finish(alt.layer(zero, whisker, dot), height=30 * max(len(rows), 2))


def prompts_scatter(rows: Sequence[Row], domains: Sequence[str]) -> dict[str, Any]:
    """Tokens a round of every prompt, both arms; a menu shows one domain."""
    import altair as alt

    menu = alt.binding_select(
        options=[None, *domains], labels=["all domains", *domains], name="Domain: "
    )
    chosen = alt.selection_point(name="domain", fields=["domain"], bind=menu)
    titles = "tokens a round, baseline", "tokens a round, candidate"
    scale = alt.Scale(zero=False, padding=8)
    ends = [value for row in rows for value in (row["baseline"], row["candidate"])]
    low, high = min(ends), max(ends)
    equal = (
        alt.Chart(inline([{"a": low, "b": low}, {"a": high, "b": high}]))
        .mark_line(color=LIGHT["quiet"], strokeDash=[4, 3], strokeWidth=1)
        .encode(x=alt.X("a:Q", title=titles[0]), y=alt.Y("b:Q", title=titles[1]))
    )
    dots = (
        alt.Chart(inline(rows))
        .mark_point(filled=True, size=70, color=LIGHT["candidate"])
        .encode(
            x=alt.X("baseline:Q", title=titles[0], scale=scale),
            y=alt.Y("candidate:Q", title=titles[1], scale=scale),
            opacity=alt.condition(chosen, alt.value(0.75), alt.value(0.06)),
            tooltip=[
                alt.Tooltip("prompt:N", title="prompt"),
                alt.Tooltip("domain:N", title="domain"),
                alt.Tooltip("shown:N", title="tokens a round"),
                alt.Tooltip("rounds:N", title="rounds"),
            ],
        )
    )
    return finish(alt.layer(equal, dots.add_params(chosen)), height=280)
