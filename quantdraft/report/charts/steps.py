"""Charts of step times: each draft's against the baseline's, and the target's by new tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantdraft.record import Interval
from quantdraft.record.wording import bare_ms, times, valued
from quantdraft.report.blocks import Chart
from quantdraft.report.charts import style


@dataclass(frozen=True, slots=True)
class DraftStep:
    """A draft's step against the baseline's. byte_ratio: what their bytes alone would give."""

    name: str
    arm: str
    ratio: Interval
    byte_ratio: float | None


def draft_steps_chart(steps: Sequence[DraftStep]) -> Chart:
    """Return one ratio a row, in the order given.

    A diamond is the ratio of the bytes: what the ratio comes to where memory alone decides.
    """
    alt = style.altair()

    rows = [
        {
            "name": step.name,
            "arm": step.arm,
            **style.ends(step.ratio),
            "limit": step.byte_ratio,
            "shown": valued(step.ratio, "ratio"),
            "shown_limit": times(step.byte_ratio),
        }
        for step in steps
    ]
    arms = list(dict.fromkeys(step.arm for step in steps))
    base = alt.Chart(style.inline(rows)).encode(
        y=style.names_down("name"),
        color=alt.Color("arm:N", scale=style.name_scale(arms), legend=None),
        tooltip=style.tooltip(
            {"name:N": "arm", "shown:N": "measured", "shown_limit:N": "ratio of the bytes"}
        ),
    )
    drawn = style.against_one(
        base, "draft step: baseline over arm", one="baseline", by_bytes="limit"
    )
    return Chart(
        name="draft-steps",
        title="Draft steps against the baseline's",
        description="Baseline over arm with 95 % interval, right of 1: faster. Diamond: the "
        "ratio of the bytes, which is the limit where memory alone decides.",
        spec=style.finish(drawn, height=30 * max(len(rows), 2)),
        data=style.rows_table(
            rows, {"name": "Arm", "shown": "Measured", "shown_limit": "Ratio of the bytes"}, {1, 2}
        ),
    )


@dataclass(frozen=True, slots=True)
class TargetStep:
    """One pass of the target over m new tokens. place: batch and context; ratio: over m = 1"""

    place: str
    m: int
    ms: float
    ratio: float


def target_steps_chart(steps: Sequence[TargetStep]) -> Chart:
    """Return a line a batch and context, of the target's time over that of one new token.

    Flat: to verify m tokens costs what one costs.
    """
    alt = style.altair()

    rows = [
        {
            "place": step.place,
            "m": step.m,
            "value": step.ratio,
            "shown": f"{bare_ms(step.ms)} ms ({times(step.ratio)})",
        }
        for step in steps
    ]
    places = list(dict.fromkeys(step.place for step in steps))
    drawn = (
        alt.Chart(style.inline(rows))
        .mark_line(point=alt.OverlayMarkDef(size=50), strokeWidth=2)
        .encode(
            x=alt.X("m:Q", title="new tokens m", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("value:Q", title="time over that of one token", scale=alt.Scale(zero=True)),
            color=alt.Color(
                "place:N",
                sort=None,
                scale=style.name_scale(places),
                legend=alt.Legend(title=None) if len(places) > 1 else None,
            ),
            tooltip=style.tooltip(
                {"place:N": "batch × context", "m:Q": "new tokens", "shown:N": "target pass"}
            ),
        )
    )
    return Chart(
        name="target-steps",
        title="What more tokens cost the target",
        description="One target pass over m new tokens, over one of a single token. Flat is "
        "what speculation lives on.",
        spec=style.finish(drawn, height=220),
        data=style.rows_table(
            rows, {"place": "Batch × context", "m": "m", "shown": "Target pass"}, {1, 2}
        ),
    )
