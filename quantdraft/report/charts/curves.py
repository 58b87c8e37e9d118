"""Charts of lines over k with bands: speedup over the target alone, tokens a round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quantdraft.record import Interval
from quantdraft.record.wording import valued
from quantdraft.report.blocks import Table
from quantdraft.report.charts import style

K_TITLE = "k, tokens proposed a round"


@dataclass(frozen=True, slots=True)
class LineByK:
    """One line: a value with its interval at every k, and the k to ring."""

    name: str
    points: Sequence[tuple[int, Interval]]
    best_k: int | None


def curve_table(curves: Sequence[LineByK], measure: str, metric: str) -> Table:
    """Return the numbers of the lines. measure: their column's name; metric: how they are said"""
    return Table(
        ("Draft", "k", f"{measure} (95 % interval)"),
        tuple((c.name, str(k), valued(value, metric)) for c in curves for k, value in c.points),
        frozenset({1, 2}),
    )


def curves_spec(
    curves: Sequence[LineByK],
    y_title: str,
    metric: str,
    *,
    reference: tuple[float, str] | None = None,
    is_by_recipe: bool = False,
    height: int = 270,
) -> dict[str, Any]:
    """Return one line a name with its 95 % band and a ring at its best k.

    is_by_recipe: a click on a name in the legend shows it alone; else baseline and candidate
    """
    alt = style.altair()

    rows = [
        {
            "name": curve.name,
            "k": k,
            **style.ends(value),
            "shown": valued(value, metric),
            "best": "best k" if k == curve.best_k else "",
        }
        for curve in curves
        for k, value in curve.points
    ]
    names = [curve.name for curve in curves]
    scale = style.name_scale(names, "baseline") if is_by_recipe else style.arm_scale()
    ks = sorted({k for curve in curves for k, _ in curve.points})
    base = alt.Chart(style.inline(rows)).encode(
        x=alt.X(
            "k:Q",
            title=K_TITLE,
            axis=alt.Axis(values=ks, format="d", grid=False),
            scale=alt.Scale(domain=[min(ks), max(ks)], nice=False, padding=14),
        ),
        color=style.coloured("name", scale, symbolType="stroke", symbolOpacity=1),
    )
    y = alt.Y("value:Q", title=y_title, scale=alt.Scale(zero=False))
    shade: dict[str, Any] = {"opacity": alt.value(0.14)}
    line: dict[str, Any] = {"opacity": alt.value(1)}
    chosen = alt.selection_point(name="recipe", fields=["name"], bind="legend")
    if is_by_recipe:
        shade = {"opacity": alt.condition(chosen, alt.value(0.14), alt.value(0.0), empty=False)}
        line = {"opacity": alt.condition(chosen, alt.value(1), alt.value(0.12))}
    band = base.mark_area().encode(y=alt.Y("low:Q", title=y_title), y2="high:Q", **shade)
    drawn = base.mark_line(strokeWidth=2).encode(y=y, **line)
    dots = base.mark_point(filled=True, size=36).encode(
        y=y,
        tooltip=style.tooltip(
            {"name:N": "draft", "k:Q": "k", "shown:N": y_title, "best:N": "note"}
        ),
        **line,
    )
    ring = (
        base.transform_filter("datum.best !== ''")
        .mark_point(size=190, filled=False, strokeWidth=1.8, fillOpacity=0)
        .encode(y=y, **line)
    )
    rule = [] if reference is None else [style.level(*reference)]
    chart = alt.layer(*rule, band, drawn, dots, ring)
    return style.finish(chart.add_params(chosen) if is_by_recipe else chart, height=height)
