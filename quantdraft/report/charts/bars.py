"""Charts of stacked bars: the time of a round by its parts, the bytes of a draft step by theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from quantdraft.record.wording import milliseconds, num_bytes
from quantdraft.report.blocks import Chart, Table
from quantdraft.report.charts.style import LIGHT, NUM_TICKS, WIDE, finish, inline

PART_COLOURS = {
    "draft steps": LIGHT["orange"],
    "target pass": LIGHT["teal"],
    "whole round": LIGHT["violet"],
}
BYTE_COLOURS = ("orange", "teal", "violet", "candidate", "olive", "bad", "baseline", "good")


@dataclass(frozen=True, slots=True)
class RoundPart:
    """One part of an arm's round; parts of one arm are stacked by their order."""

    arm: str
    part: str
    ms: float
    order: int = 0


@dataclass(frozen=True, slots=True)
class RoundLimit:
    """The least time that the bytes of an arm's round allow."""

    arm: str
    ms: float


def round_chart(parts: Sequence[RoundPart], limits: Sequence[RoundLimit]) -> Chart:
    """Return one bar an arm, and a tick at its limit where that is known."""
    import altair as alt

    names = list(dict.fromkeys(part.part for part in parts))
    # What stands after the colon goes to a line of its own: a phone has no room for both.
    labels = alt.Axis(ticks=False, labelFontSize=13, labelExpr="split(datum.label, ': ')")
    arms = alt.Y("arm:N", sort=None, title=None, axis=labels)
    drawn = (
        alt.Chart(inline({**asdict(part), "shown": milliseconds(part.ms)} for part in parts))
        .mark_bar(height=26)
        .encode(
            y=arms,
            x=alt.X("ms:Q", title="ms a round", axis=alt.Axis(tickCount=NUM_TICKS)),
            color=alt.Color(
                "part:N",
                scale=alt.Scale(domain=names, range=[PART_COLOURS[name] for name in names]),
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
    if limits:
        ticks = (
            alt.Chart(inline({**asdict(each), "shown": milliseconds(each.ms)} for each in limits))
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
        drawn = alt.layer(drawn, ticks)
    words = "Black marks are the least time that the bytes of all its steps take at the copy "
    described = f"{words}bandwidth measured in the same run." if limits else ""
    cells = [(part.arm, part.part, milliseconds(part.ms)) for part in parts]
    cells += [(limit.arm, "limit by its bytes", milliseconds(limit.ms)) for limit in limits]
    return Chart(
        name="round",
        title="One round, by its parts",
        description=f"Autoregressive is one step of the target alone. {described}".strip(),
        spec=finish(drawn, height=46 * len({part.arm for part in parts}), width=WIDE),
        data=Table(("Round", "Part", "Time"), tuple(cells), frozenset({2})),
        is_wide=True,
    )


@dataclass(frozen=True, slots=True)
class BytesPart:
    """What a draft reads of one part in a step; parts of one draft are stacked by their order."""

    draft: str
    part: str
    size: float  # bytes
    order: int


def ledger_chart(parts: Sequence[BytesPart], most: str) -> Chart:
    """Return both drafts' bytes of a step, stacked. most: the speed that fewer bytes can give."""
    import altair as alt

    names = list(dict.fromkeys(part.part for part in parts))
    colours = [LIGHT[BYTE_COLOURS[at % len(BYTE_COLOURS)]] for at in range(len(names))]
    rows = [
        {
            "draft": each.draft,
            "part": each.part,
            "megabytes": each.size / 1e6,
            "order": each.order,
            "shown": num_bytes(each.size),
        }
        for each in parts
    ]
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
                scale=alt.Scale(domain=names, range=colours),
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
    return Chart(
        name="byte-ledger",
        title="Bytes read per draft step",
        description=f"Fewer bytes can make a draft step at most {most} as fast.",
        spec=finish(bars, height=46 * len({part.draft for part in parts}), width=WIDE),
        data=Table(
            ("Draft", "Part", "Bytes"),
            tuple((each.draft, each.part, num_bytes(each.size)) for each in parts),
            frozenset({2}),
        ),
        is_wide=True,
    )
