"""Charts of a choice: how fast each row is, what it keeps for what cost, and in which domain."""

from __future__ import annotations

from typing import Any

from quantdraft.record import Interval
from quantdraft.record.wording import UNDEFINED, valued
from quantdraft.report.blocks import Chart, Table
from quantdraft.report.charts import style
from quantdraft.report.safety import shown_values
from quantdraft.workflows.select.record import Ranked, Selection

STANDING = {
    "recommended": style.LIGHT["good"],
    "faster, no go": style.LIGHT["orange"],
    "not told apart": style.LIGHT["doubt"],
    "slower": style.LIGHT["baseline"],
}


def standing(row: Ranked, selection: Selection) -> str:
    """Return how a row stands against the first, or that it is the one to take."""
    if row is selection.recommended:
        return "recommended"
    if row in selection.passed_over:
        return "faster, no go"
    return "slower" if row.is_slower else "not told apart"


def speeds_chart(selection: Selection) -> Chart:
    """Return every row's speed over the target alone, in the order of the choice.

    A diamond is the prediction by bytes; a row without a measured value has the diamond alone.
    """
    alt = style.altair()

    rows = [
        {
            "name": selection.row_name(row),
            "standing": standing(row, selection),
            **style.ends(row.measured),
            "shown": valued(row.measured, "speedup"),
            "predicted": row.predicted.value,
            "shown_predicted": valued(row.predicted, "speedup"),
        }
        for row in selection.rows
    ]
    seen = {row["standing"] for row in rows}
    colours = {each: colour for each, colour in STANDING.items() if each in seen}
    base = alt.Chart(style.inline(rows)).encode(
        y=style.names_down("name"),
        color=style.coloured("standing", style.colour_scale(colours)),
        tooltip=style.tooltip(
            {
                "name:N": "draft and recipe",
                "shown:N": "measured",
                "shown_predicted:N": "predicted by bytes",
                "standing:N": "standing",
            }
        ),
    )
    title = "speed over the target alone"
    drawn = style.against_one(base, title, one="target alone", by_bytes="predicted")
    return Chart(
        name="speeds",
        title="Speed over the target alone",
        description=(
            "Each at its own best k. Dots are measured, with 95 % intervals; diamonds are what "
            "the bytes alone would allow."
        ),
        spec=style.finish(drawn, height=32 * max(len(rows), 2)),
        data=style.rows_table(
            rows,
            {
                "name": "Draft and recipe",
                "shown": "Measured",
                "shown_predicted": "Predicted by bytes",
                "standing": "Standing",
            },
            {1, 2},
        ),
        is_wide=True,
    )


def cost_chart(selection: Selection) -> Chart:
    """Return acceptance at one k against c: measured if every row was timed, else by the bytes.

    A colour a draft, a shape a recipe, a ring around what is recommended.
    """
    alt = style.altair()

    is_timed = all(row.step_cost is not None for row in selection.rows)
    rows = [_plane_row(row, selection, is_timed) for row in selection.rows]
    base = alt.Chart(style.inline(rows)).encode(
        color=style.coloured(
            "draft",
            style.name_scale(_drafts(selection)),
            title="draft",
            symbolType="square",
            symbolOpacity=1,
        )
    )
    middle, rules = style.crosses(
        base, "c, draft step over target step (left: cheaper)", style.RATE
    )
    dots = base.mark_point(filled=True, size=130, opacity=1).encode(
        **middle,
        shape=alt.Shape(
            "recipe:N",
            sort=None,
            legend=alt.Legend(
                title="recipe",
                symbolFillColor=style.LIGHT["quiet"],
                symbolStrokeColor=style.LIGHT["quiet"],
            ),
        ),
        tooltip=style.tooltip(
            {"name:N": "draft and recipe", "cost:N": "draft step", "rate:N": "acceptance rate"}
        ),
    )
    ring = (
        base.transform_filter("datum.standing === 'recommended'")
        .mark_point(size=420, filled=False, strokeWidth=1.8, fillOpacity=0)
        .encode(**middle)
    )
    how = "measured in the same blocks" if is_timed else "by their bytes: a prediction"
    titles = {"draft": "Draft", "recipe": "Recipe", "cost": "c", "rate": "Acceptance rate"}
    return Chart(
        name="kept-for-cost",
        title="What is kept for what cost",
        description=(
            f"Acceptance rate at k = {selection.common_k} against c, a draft step over a step of "
            f"the target, {how}; 95 % intervals. Left and up is better; the ring marks the "
            "recommended. The intervals are each row's own: differences are paired and narrower, "
            "see the table."
        ),
        spec=style.finish(alt.layer(*rules, dots, ring), height=340, width=style.WIDE),
        data=style.rows_table(rows, titles, {2, 3}),
        is_wide=True,
    )


def _plane_row(row: Ranked, selection: Selection, is_timed: bool) -> dict[str, Any]:
    exact = Interval(row.draft_cost, row.draft_cost, row.draft_cost)
    cost = row.step_cost if is_timed and row.step_cost else exact
    interval = f" ({cost.low:.3f} to {cost.high:.3f})" if is_timed else ""
    return {
        "name": selection.row_name(row),
        "draft": selection.short_name(row.draft),
        "recipe": row.recipe,
        "standing": standing(row, selection),
        **style.cross(cost, row.acceptance_rate),
        "cost": f"{cost.value:.3f}{interval}",
        "rate": valued(row.acceptance_rate, "rate"),
    }


def _drafts(selection: Selection) -> list[str]:
    """Return the drafts by the best row of each: a draft has one colour in every chart."""
    return list(dict.fromkeys(selection.short_name(row.draft) for row in selection.rows))


def domains_chart(selection: Selection) -> Chart | None:
    """Return every draft as it is, in every domain; None for one domain, or none recorded."""
    alt = style.altair()

    rows: list[dict[str, Any]] = [
        {
            "domain": found.domain,
            "draft": selection.short_name(row.draft),
            **style.ends(found.acceptance_rate),
            "shown": valued(found.acceptance_rate, "rate"),
            "num_prompts": found.num_prompts,
        }
        for row in selection.rows
        if row.recipe == "none"
        for found in row.by_domain
    ]
    num_domains, drafts = len({row["domain"] for row in rows}), _drafts(selection)
    if num_domains < 2:
        return None
    base = alt.Chart(style.inline(rows)).encode(
        y=alt.Y("domain:N", title=None, axis=alt.Axis(labelFontSize=13, ticks=False, grid=True)),
        yOffset=alt.YOffset(
            "draft:N", sort=shown_values(drafts), scale=alt.Scale(paddingOuter=0.4)
        ),
        color=style.coloured("draft", style.name_scale(drafts)),
        tooltip=style.tooltip(
            {
                "draft:N": "draft",
                "domain:N": "domain",
                "shown:N": "acceptance rate",
                "num_prompts:Q": "prompts",
            }
        ),
    )
    whisker, dot = style.whiskers(base, "acceptance rate (right: better)", size=80, is_share=True)
    height = max(26 * len(drafts) * num_domains, 60)
    return Chart(
        name="rates-by-domain",
        title="Acceptance by domain",
        description=(
            f"Accepted / proposed at k = {selection.common_k}, each draft as it is, with 95 % "
            "intervals. Drafts that were trained on other text differ by domain; the mean hides it."
        ),
        spec=style.finish(alt.layer(whisker, dot), height=height),
        data=_domains_table(rows),
    )


def _domains_table(rows: list[dict[str, Any]]) -> Table:
    drafts = list(dict.fromkeys(str(row["draft"]) for row in rows))
    domains = list(dict.fromkeys(str(row["domain"]) for row in rows))
    shown = {(row["domain"], row["draft"]): str(row["shown"]) for row in rows}
    sizes = {row["domain"]: str(row["num_prompts"]) for row in rows}
    return Table(
        ("Domain", "Prompts", *drafts),
        tuple(
            (domain, sizes[domain], *(shown.get((domain, draft), UNDEFINED) for draft in drafts))
            for domain in domains
        ),
        frozenset(range(1, len(drafts) + 2)),
    )
