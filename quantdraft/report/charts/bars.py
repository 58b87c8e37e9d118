"""Charts of stacked bars: the time of a round by its parts, the bytes of a draft step by theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from quantdraft.record.wording import milliseconds, num_bytes
from quantdraft.report.blocks import Chart
from quantdraft.report.charts import style

PART_COLOURS = {
    "draft steps": style.LIGHT["orange"],
    "target pass": style.LIGHT["teal"],
    "whole round": style.LIGHT["violet"],
}
BYTE_COLOURS = ("orange", "teal", "violet", "candidate", "olive", "bad", "baseline", "good")


@dataclass(frozen=True, slots=True)
class RoundPart:
    """One part of an arm's round; parts of one arm are stacked by their order."""

    arm: str
    part: str
    ms: float
    order: int = 0


def round_chart(parts: Sequence[RoundPart], limits: Mapping[str, float]) -> Chart:
    """Return one bar an arm, and a tick at its limit where that is known.

    limits: the least ms that the bytes of an arm's round allow, by the arm's name in `parts`
    """
    alt = style.altair()

    rows = [{**asdict(part), "shown": milliseconds(part.ms)} for part in parts]
    bounds = [{"arm": arm, "ms": ms, "shown": milliseconds(ms)} for arm, ms in limits.items()]
    colours = {part.part: PART_COLOURS[part.part] for part in parts}
    # What stands after the colon goes to a line of its own: a phone has no room for both.
    labels = alt.Axis(ticks=False, labelFontSize=13, labelExpr="split(datum.label, ': ')")
    arms = alt.Y("arm:N", sort=None, title=None, axis=labels)
    drawn = (
        alt.Chart(style.inline(rows))
        .mark_bar(height=26)
        .encode(
            y=arms,
            x=alt.X("ms:Q", title="ms a round", axis=alt.Axis(tickCount=style.NUM_TICKS)),
            color=style.coloured("part", style.colour_scale(colours)),
            order=alt.Order("order:Q"),
            tooltip=style.tooltip({"arm:N": "arm", "part:N": "part", "shown:N": "time"}),
        )
    )
    if bounds:
        ticks = (
            alt.Chart(style.inline(bounds))
            .mark_tick(thickness=3, size=38, color=style.LIGHT["ink"])
            .encode(
                y=arms,
                x=alt.X("ms:Q", title="ms a round"),
                tooltip=style.tooltip({"arm:N": "arm", "shown:N": "limit by its bytes"}),
            )
        )
        drawn = alt.layer(drawn, ticks)
    cells = [*rows, *({**each, "part": "limit by its bytes"} for each in bounds)]
    words = "Black marks are the least time that the bytes of all its steps take at the copy "
    described = f"{words}bandwidth measured in the same run." if bounds else ""
    return Chart(
        name="round",
        title="One round, by its parts",
        description=f"Autoregressive is one step of the target alone. {described}".strip(),
        spec=style.finish(drawn, height=46 * len({part.arm for part in parts}), width=style.WIDE),
        data=style.rows_table(cells, {"arm": "Round", "part": "Part", "shown": "Time"}, {2}),
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
    alt = style.altair()

    names = dict.fromkeys(part.part for part in parts)
    colours = {
        name: style.LIGHT[BYTE_COLOURS[at % len(BYTE_COLOURS)]] for at, name in enumerate(names)
    }
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
        alt.Chart(style.inline(rows))
        .mark_bar(height=28)
        .encode(
            y=style.names_down("draft"),
            x=alt.X(
                "megabytes:Q",
                title="MB read per draft step",
                axis=alt.Axis(tickCount=style.NUM_TICKS),
            ),
            color=style.coloured("part", style.colour_scale(colours)),
            order=alt.Order("order:Q"),
            tooltip=style.tooltip({"draft:N": "draft", "part:N": "part", "shown:N": "bytes"}),
        )
    )
    return Chart(
        name="byte-ledger",
        title="Bytes read per draft step",
        description=f"Fewer bytes can make a draft step at most {most} as fast.",
        spec=style.finish(bars, height=46 * len({part.draft for part in parts}), width=style.WIDE),
        data=style.rows_table(rows, {"draft": "Draft", "part": "Part", "shown": "Bytes"}, {2}),
        is_wide=True,
    )
