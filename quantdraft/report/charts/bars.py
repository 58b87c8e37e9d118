"""Stacked bars: the time of one round by its parts, the bytes of a draft step by theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantdraft.report.charts.palette import LIGHT
from quantdraft.report.charts.style import NUM_TICKS, WIDE, Row, finish, inline

PART_COLOURS = {
    "draft steps": LIGHT["orange"],
    "target pass": LIGHT["teal"],
    "whole round": LIGHT["violet"],
}
BYTE_COLOURS = ("orange", "teal", "violet", "candidate", "olive", "bad", "baseline", "good")


def round_bars(rows: Sequence[Row], limits: Sequence[Row]) -> dict[str, Any]:
    """rows: arm, part, ms, shown; limits: arm, ms, shown (the least time its bytes allow)."""
    import altair as alt

    parts = list(dict.fromkeys(row["part"] for row in rows))
    arms = alt.Y("arm:N", sort=None, title=None, axis=alt.Axis(ticks=False, labelFontSize=13))
    bars = (
        alt.Chart(inline(rows))
        .mark_bar(height=26)
        .encode(
            y=arms,
            x=alt.X("ms:Q", title="ms a round", axis=alt.Axis(tickCount=NUM_TICKS)),
            color=alt.Color(
                "part:N",
                scale=alt.Scale(domain=parts, range=[PART_COLOURS[part] for part in parts]),
                legend=alt.Legend(title=None),
            ),
            order=alt.Order("order:Q"),
            tooltip=[
                alt.Tooltip("arm:N", title="arm"),
                alt.Tooltip("part:N", title="part"),
                alt.Tooltip("shown:N", title="time"),
            ],
        )
    )
    height = 46 * len({row["arm"] for row in rows})
    if not limits:
        return finish(bars, height=height, width=WIDE)
    ticks = (
        alt.Chart(inline(limits))
        .mark_tick(thickness=3, size=38, color=LIGHT["ink"])
        .encode(
            y=arms,
            x=alt.X("ms:Q", title="ms a round"),
            tooltip=[
                alt.Tooltip("arm:N", title="arm"),
                alt.Tooltip("shown:N", title="limit by its bytes"),
            ],
        )
    )
    return finish(alt.layer(bars, ticks), height=height, width=WIDE)


def ledger_bars(rows: Sequence[Row]) -> dict[str, Any]:
    """Bytes of a draft step: draft, part, megabytes, shown."""
    import altair as alt

    parts = list(dict.fromkeys(row["part"] for row in rows))
    colours = [LIGHT[BYTE_COLOURS[at % len(BYTE_COLOURS)]] for at in range(len(parts))]
    bars = (
        alt.Chart(inline(rows))
        .mark_bar(height=28)
        .encode(
            y=alt.Y("draft:N", sort=None, title=None, axis=alt.Axis(ticks=False, labelFontSize=13)),
            x=alt.X(
                "megabytes:Q", title="MB read per draft step", axis=alt.Axis(tickCount=NUM_TICKS)
            ),
            color=alt.Color(
                "part:N",
                scale=alt.Scale(domain=parts, range=colours),
                legend=alt.Legend(title=None),
            ),
            order=alt.Order("order:Q"),
            tooltip=[
                alt.Tooltip("draft:N", title="draft"),
                alt.Tooltip("part:N", title="part"),
                alt.Tooltip("shown:N", title="bytes"),
            ],
        )
    )
    return finish(bars, height=46 * len({row["draft"] for row in rows}), width=WIDE)
