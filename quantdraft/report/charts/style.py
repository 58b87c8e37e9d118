"""What all charts share: colours, fonts, axes, scales, and how a specification is finished.

Specifications hold the light colours. The page and every SVG file map each of them to its dark
colour in a style sheet, by the value of the attribute: one picture serves both, and a viewer
without style sheets shows the light one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

from quantdraft.record import ARMS, Interval
from quantdraft.report.blocks import Table
from quantdraft.report.safety import shown_values

P = ParamSpec("P")
T = TypeVar("T")

# The colours by what they mean.
LIGHT = {
    "paper": "#ffffff",
    "raised": "#f6f7f8",
    "ink": "#16191d",
    "quiet": "#5c6670",
    "rule": "#dfe3e7",
    "baseline": "#7d8894",
    "candidate": "#1f5fbf",
    "good": "#17713f",
    "bad": "#b02a25",
    "doubt": "#8a5a00",
    "orange": "#b8590b",
    "violet": "#8a3ea3",
    "teal": "#0f7c86",
    "olive": "#6b6f00",
    "none": "#e9ecef",
}
DARK = {
    "paper": "#14171a",
    "raised": "#1c2024",
    "ink": "#e6e9ec",
    "quiet": "#a3adb7",
    "rule": "#30363c",
    "baseline": "#98a3af",
    "candidate": "#6ea8fe",
    "good": "#56c288",
    "bad": "#f27d76",
    "doubt": "#e0ac4a",
    "orange": "#f0a160",
    "violet": "#cf94e4",
    "teal": "#55c4cf",
    "olive": "#c5c95b",
    "none": "#262b30",
}
VERDICT_COLOURS = {"go": LIGHT["good"], "no-go": LIGHT["bad"], "inconclusive": LIGHT["doubt"]}
# Of names side by side, in turn; the baseline has a colour of its own.
HUES = ("candidate", "orange", "good", "violet", "bad", "teal", "olive", "doubt")

WIDTH = 520
WIDE = 960
NUM_TICKS = 8  # about so many along a long axis: more are not read, and touch on a phone
RATE = "acceptance rate (up: better)"  # along y
FONT = "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', Arial, sans-serif"

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


class Undrawn:
    """Stands in for Altair where it cannot be imported: every part of a chart is this again."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __getattr__(self, name: str) -> Undrawn:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *_: Any, **__: Any) -> Undrawn:
        """Return itself."""
        return self

    def __add__(self, _: Any) -> Undrawn:
        return self


@cache
def altair() -> Any:
    """Return Altair, or `Undrawn` where it cannot be imported: texts and tables need no picture."""
    try:
        import altair as alt
    except (ImportError, MemoryError, OSError) as error:
        return Undrawn(f"the package 'altair' cannot be imported ({error}): pip install altair")
    return alt


def finish(chart: Any, *, height: int, width: int = WIDTH) -> dict[str, Any]:
    """Return the specification of a chart; {} without Altair.

    It is checked against Vega-Lite's schema, except under `unchecked`.
    """
    alt = altair()
    if isinstance(alt, Undrawn):
        return {}
    # Inline data under a name of its hash would be written twice, and change with it.
    with alt.data_transformers.enable(consolidate_datasets=False):
        sized = chart.properties(width=width, height=height)
        spec: dict[str, Any] = sized.to_dict(validate=_schema().DEBUG_MODE)
    return {**spec, "config": CONFIG}


def _schema() -> Any:
    """Return the module of Altair that checks against the schema, and knows whether it does."""
    from altair.utils import schemapi

    return schemapi


def unchecked(build: Callable[P, T]) -> Callable[P, T]:
    """Return a function that builds a page without checking its charts against the schema.

    What the charts are made of does not depend on the record's values, so tests check them once;
    the checks are half of the time that a page takes.
    """

    @wraps(build)
    def built(*args: P.args, **kwargs: P.kwargs) -> T:
        if isinstance(altair(), Undrawn):
            return build(*args, **kwargs)
        with _schema().debug_mode(False):
            return build(*args, **kwargs)

    return built


def inline(rows: Iterable[Mapping[str, Any]]) -> Any:
    """Return rows as data inside the specification, every text in them made harmless."""
    alt = altair()

    return alt.InlineData(values=shown_values([dict(row) for row in rows]))


def ends(interval: Interval | None, scale: float = 1.0) -> dict[str, float | None]:
    """Return an interval as the fields `value`, `low` and `high` that `whiskers` draws."""
    if interval is None:
        return {"value": None, "low": None, "high": None}
    return {
        "value": scale * interval.value,
        "low": scale * interval.low,
        "high": scale * interval.high,
    }


def cross(x: Interval, y: Interval) -> dict[str, float]:
    """Return two intervals as the fields that `crosses` draws: `x`, `x_low`, … `y_high`."""
    return {
        **{"x": x.value, "x_low": x.low, "x_high": x.high},
        **{"y": y.value, "y_low": y.low, "y_high": y.high},
    }


def rows_table(
    rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str], numeric: Iterable[int]
) -> Table:
    """Return some fields of a chart's rows as its table. columns: their titles by field"""
    cells = tuple(tuple(str(row[field]) for field in columns) for row in rows)
    return Table(tuple(columns.values()), cells, frozenset(numeric))


def tooltip(titles: Mapping[str, str]) -> Any:
    """Return what a mark says under the pointer: its fields with their types, and their titles."""
    alt = altair()

    return [alt.Tooltip(field, title=title) for field, title in titles.items()]


def names_down(field: str) -> Any:
    """Return one row for every name, in the order given."""
    alt = altair()

    axis = alt.Axis(ticks=False, labelFontSize=13)
    return alt.Y(f"{field}:N", sort=None, title=None, axis=axis)


def coloured(field: str, scale: Any, **legend: Any) -> Any:
    """Return a field's colours and their legend, which has no title unless one is given."""
    alt = altair()

    return alt.Color(f"{field}:N", scale=scale, legend=alt.Legend(**{"title": None, **legend}))


def colour_scale(colours: Mapping[str, str]) -> Any:
    """Return a scale of these colours by name, in the legend's order."""
    alt = altair()

    return alt.Scale(domain=list(colours), range=list(colours.values()))


def arm_scale() -> Any:
    """Return the colours of baseline and candidate, the same in every chart."""
    return colour_scale({arm: LIGHT[arm] for arm in ARMS})


def name_scale(names: Sequence[str], first: str | None = None) -> Any:
    """Return a colour for each name in turn; `first` has the baseline's."""
    alt = altair()

    others = [name for name in shown_values(list(names)) if name != first]
    colours = [LIGHT[HUES[at % len(HUES)]] for at in range(len(others))]
    if first is not None:
        others, colours = [first, *others], [LIGHT["baseline"], *colours]
    return alt.Scale(domain=others, range=colours)


def near_range(values: Iterable[float], low: float, high: float) -> tuple[float, float]:
    """Return `low` to `high` (above 0) with every value that does not lie far from the others.

    Far: more than twice as far away as the others span, in ratios, and more than a factor of two.
    Where most values are far, all of them count as near: one chart must hold them.
    """
    near = low, high
    known = sorted(values, key=lambda value: max(low / value, value / high))
    for value in known:
        reach = max((near[1] / near[0]) ** 2, 2.0)
        if max(near[0] / value, value / near[1]) <= reach:
            near = min(near[0], value), max(near[1], value)
    num_far = sum(not near[0] <= value <= near[1] for value in known)
    return near if 2 * num_far <= len(known) else (min(low, *known), max(high, *known))


def level(
    value: float, text: str, *, axis: str = "y", dash: bool = True, is_before: bool = False
) -> Any:
    """Return a rule across the chart at a value worth comparing with, and its name at its end.

    is_before: the name stands left of an upright rule, where another stands right of its own
    """
    alt = altair()

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
    """Return a rule along x from `low` to `high`, and a dot of that size at `value`."""
    alt = altair()

    labels: dict[str, Any] = {"format": ".0%"} if is_share else {}
    axis = alt.Axis(tickCount=NUM_TICKS, **labels)
    x = alt.X("low:Q", title=title, scale=alt.Scale(zero=False, padding=12), axis=axis)
    rule = base.mark_rule(strokeWidth=2.5).encode(x=x, x2="high:Q")
    dot = base.mark_point(filled=True, size=size, opacity=1)
    return rule, dot.encode(x=alt.X("value:Q", title=title))


def against_one(base: Any, title: str, *, one: str, by_bytes: str) -> Any:
    """Return ratios along x: whiskers, a level at 1 of that name, and open diamonds.

    by_bytes: the field with the place of a diamond, the ratio that bytes alone would give
    """
    alt = altair()

    whisker, dot = whiskers(base, title, size=90)
    diamond = base.mark_point(shape="diamond", size=80, strokeWidth=1.6, fillOpacity=0)
    beside = diamond.encode(x=alt.X(f"{by_bytes}:Q", title=title))
    return alt.layer(level(1.0, one, axis="x"), whisker, beside, dot)


def crosses(base: Any, x_title: str, y_title: str) -> tuple[dict[str, Any], list[Any]]:
    """Return the places x, y (a share) of marks at their middle, and both intervals' rules."""
    alt = altair()

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


def variables(colours: dict[str, str]) -> str:
    """Return colours as CSS custom properties, `--ink: #16191d; …`."""
    return " ".join(f"--{name}: {value};" for name, value in colours.items())


def page_rules() -> str:
    """Return CSS rules that give every drawn light colour the page's own of that meaning."""
    return "\n".join(
        f'svg [{what}="{value}"] {{ {what}: var(--{name}); }}'
        for name, value in LIGHT.items()
        for what in ("fill", "stroke")
    )


def file_rules() -> str:
    """Return the same rules for an SVG file that stands alone."""
    rules = " ".join(
        f'[{what}="{value}"] {{ {what}: {DARK[name]}; }}'
        for name, value in LIGHT.items()
        for what in ("fill", "stroke")
    )
    return f"@media (prefers-color-scheme: dark) {{ {rules} }}"
