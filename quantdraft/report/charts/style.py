"""What every picture shares: fonts, axes, colour scales, and how a specification is finished."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from quantdraft.report.charts.palette import HUES, LIGHT
from quantdraft.report.safety import shown_values

if TYPE_CHECKING:
    import altair as alt

WIDTH = 520
WIDE = 960
NUM_TICKS = 8  # about so many along a long axis: more are not read, and touch on a phone
RATE = "acceptance rate (up: better)"  # along y
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


def whiskers(base: Any, title: str, *, size: int, is_share: bool = False) -> tuple[Any, Any]:
    """A rule along x from `low` to `high`, and a dot of that size at `value`."""
    import altair as alt

    labels: dict[str, Any] = {"format": ".0%"} if is_share else {}
    axis = alt.Axis(tickCount=NUM_TICKS, **labels)
    x = alt.X("low:Q", title=title, scale=alt.Scale(zero=False, padding=12), axis=axis)
    rule = base.mark_rule(strokeWidth=2.5).encode(x=x, x2="high:Q")
    dot = base.mark_point(filled=True, size=size, opacity=1)
    return rule, dot.encode(x=alt.X("value:Q", title=title))


def against_one(base: Any, title: str, *, one: str, by_bytes: str) -> Any:
    """Ratios along x: whiskers, a level at 1 of that name, and open diamonds at a field's values.

    by_bytes: the field of what bytes alone would give
    """
    import altair as alt

    whisker, dot = whiskers(base, title, size=90)
    diamond = base.mark_point(shape="diamond", size=80, strokeWidth=1.6, fillOpacity=0)
    beside = diamond.encode(x=alt.X(f"{by_bytes}:Q", title=title))
    return alt.layer(level(1.0, one, axis="x"), whisker, beside, dot)


def crosses(base: Any, x_title: str, y_title: str) -> tuple[dict[str, Any], list[Any]]:
    """Places x, y (a share) for the marks at their middle, and the rules between their ends."""
    import altair as alt

    x = alt.X(
        "x:Q",
        title=x_title,
        axis=alt.Axis(tickCount=NUM_TICKS),
        scale=alt.Scale(zero=False, padding=24),
    )
    y = alt.Y(
        "y:Q", title=y_title, axis=alt.Axis(format=".0%"), scale=alt.Scale(zero=False, padding=18)
    )
    rule = base.mark_rule(strokeWidth=1.4, opacity=0.6)
    across = rule.encode(x=alt.X("x_low:Q", title=x_title), x2="x_high:Q", y=y)
    up = rule.encode(x=x, y=alt.Y("y_low:Q", title=y_title), y2="y_high:Q")
    return {"x": x, "y": y}, [across, up]
