"""Step times: each draft's against the baseline's, and the target's by its new tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantdraft.report.charts.style import Row, against_one, finish, inline, name_scale


def draft_steps(rows: Sequence[Row], arms: Sequence[str]) -> dict[str, Any]:
    """name, arm, value, low, high, limit, shown, shown_limit; in the order given.

    A diamond is the ratio of the bytes: what the ratio comes to where memory alone decides.
    """
    import altair as alt

    title = "draft step: baseline over arm"
    base = alt.Chart(inline(rows)).encode(
        y=alt.Y("name:N", sort=None, title=None, axis=alt.Axis(labelFontSize=13, ticks=False)),
        color=alt.Color("arm:N", scale=name_scale(arms), legend=None),
        tooltip=[
            alt.Tooltip("name:N", title="arm"),
            alt.Tooltip("shown:N", title="measured"),
            alt.Tooltip("shown_limit:N", title="ratio of the bytes"),
        ],
    )
    drawn = against_one(base, title, one="baseline", by_bytes="limit")
    return finish(drawn, height=30 * max(len(rows), 2))


def target_steps(rows: Sequence[Row], places: Sequence[str]) -> dict[str, Any]:
    """place, m, value, shown: a line a batch and context, of the target's time over that of m = 1.

    Flat: to verify m tokens costs what one costs.
    """
    import altair as alt

    chart = (
        alt.Chart(inline(rows))
        .mark_line(point=alt.OverlayMarkDef(size=50), strokeWidth=2)
        .encode(
            x=alt.X("m:Q", title="new tokens m", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("value:Q", title="time over that of one token", scale=alt.Scale(zero=True)),
            color=alt.Color(
                "place:N",
                sort=None,
                scale=name_scale(places),
                legend=alt.Legend(title=None) if len(places) > 1 else None,
            ),
            tooltip=[
                alt.Tooltip("place:N", title="batch × context"),
                alt.Tooltip("m:Q", title="new tokens"),
                alt.Tooltip("shown:N", title="target pass"),
            ],
        )
    )
    return finish(chart, height=220)
