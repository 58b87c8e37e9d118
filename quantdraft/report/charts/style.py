"""What every picture shares: fonts, axes, colour scales, and how a specification is finished."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from quantdraft.report.palette import HUES, LIGHT
from quantdraft.report.safety import shown_values

if TYPE_CHECKING:
    import altair as alt

WIDTH = 520
WIDE = 960
NUM_TICKS = 8  # about so many along a long axis: more are not read, and touch on a phone
FONT = "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', Arial, sans-serif"
ARMS = ("baseline", "candidate")
Row = dict[str, Any]

CONFIG: dict[str, Any] = {
    "aria": False,  # the page describes the picture and has its numbers in a table
    "background": None,
    "font": FONT,
    "view": {"stroke": None},
    "axis": {
        "labelColor": LIGHT["quiet"],
        "titleColor": LIGHT["quiet"],
        "gridColor": LIGHT["rule"],
        "domainColor": LIGHT["rule"],
        "tickColor": LIGHT["rule"],
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "labelLimit": 170,
        "labelPadding": 5,
        "labelFlush": False,
    },
    "legend": {
        "labelColor": LIGHT["ink"],
        "titleColor": LIGHT["quiet"],
        "labelFontSize": 12,
        "orient": "top",
        "labelLimit": 220,
        "symbolStrokeWidth": 2,
        "columnPadding": 16,
    },
    "text": {"color": LIGHT["ink"], "fontSize": 12},
}


def finish(chart: Any, *, height: int, width: int = WIDTH) -> dict[str, Any]:
    """The specification of a chart, checked against Vega-Lite's schema."""
    import altair as alt

    # Inline data under a name of its hash would be written twice, and change with it.
    with alt.data_transformers.enable(consolidate_datasets=False):
        spec: dict[str, Any] = chart.properties(width=width, height=height).to_dict()
    return {**spec, "config": CONFIG}


def inline(rows: Iterable[Row]) -> alt.InlineData:
    """Rows as data inside the specification."""
    import altair as alt

    return alt.InlineData(values=shown_values(list(rows)))


def arm_scale() -> alt.Scale:
    """Baseline and candidate always look the same."""
    import altair as alt

    return alt.Scale(domain=list(ARMS), range=[LIGHT[arm] for arm in ARMS])


def name_scale(names: Sequence[str], first: str | None = None) -> alt.Scale:
    """A colour for each name in turn; `first` has the baseline's. Names as `inline` has them."""
    import altair as alt

    others = [name for name in shown_values(list(names)) if name != first]
    colours = [LIGHT[HUES[at % len(HUES)]] for at in range(len(others))]
    if first is not None:
        others, colours = [first, *others], [LIGHT["baseline"], *colours]
    return alt.Scale(domain=others, range=colours)


def level(
    value: float, text: str, *, axis: str = "y", dash: bool = True, is_before: bool = False
) -> Any:
    """A rule across the picture at a level worth comparing with, and its name at its end.

    is_before: the name stands left of an upright rule, where another stands right of its own
    """
    import altair as alt

    one = alt.Chart(inline([{}]))
    at: dict[str, Any] = {axis: alt.datum(value)}
    rule = one.mark_rule(
        color=LIGHT["ink"], strokeDash=[4, 3] if dash else [1, 0], strokeWidth=1
    ).encode(**at)
    across = "x" if axis == "y" else "y"
    start: dict[str, Any] = {across: alt.value(0)}
    side: dict[str, Any] = {"align": "right", "dx": -4} if is_before else {"align": "left", "dx": 4}
    name = one.mark_text(text=text, **side, dy=-6, color=LIGHT["quiet"])
    return rule + name.encode(**at, **start)
