"""A choice as pictures: how fast each is, what it keeps for what cost, and in which domain."""

from __future__ import annotations

from typing import Any

from quantdraft.record import Interval
from quantdraft.record.wording import UNDEFINED, valued
from quantdraft.report.blocks import Chart, Table
from quantdraft.report.charts.choices import kept_for_cost, rates_by_domain, speeds
from quantdraft.workflows.select.names import name_of, short
from quantdraft.workflows.select.ranking import Ranked
from quantdraft.workflows.select.record import Selection


def speeds_chart(selection: Selection) -> Chart:
    """Every row's speed over the target alone, in the order of the choice."""
    rows = [_speed_row(row, selection) for row in selection.rows]
    return Chart(
        name="speeds",
        title="Speed over the target alone",
        description=(
            "Each at its own best k. Dots are measured, with 95 % intervals; diamonds are what "
            "the bytes alone would allow."
        ),
        spec=speeds(rows),
        data=Table(
            ("Draft and recipe", "Measured", "Predicted by bytes", "Standing"),
            tuple(
                tuple(str(r[key]) for key in ("name", "shown", "shown_predicted", "standing"))
                for r in rows
            ),
            frozenset({1, 2}),
        ),
        is_wide=True,
    )


def _speed_row(row: Ranked, selection: Selection) -> dict[str, Any]:
    ends = row.measured
    return {
        "name": name_of(row, selection),
        "standing": standing(row, selection),
        "value": ends.value if ends else None,
        "low": ends.low if ends else None,
        "high": ends.high if ends else None,
        "shown": valued(ends, "speedup"),
        "predicted": row.predicted.value,
        "shown_predicted": valued(row.predicted, "speedup"),
    }


def standing(row: Ranked, selection: Selection) -> str:
    """Of a row against the first, and whether it is the one to take."""
    if row is selection.recommended:
        return "recommended"
    if row in selection.passed_over:
        return "faster, no go"
    return "slower" if row.is_slower else "not told apart"


def plane_chart(selection: Selection) -> Chart:
    """Acceptance at one k against c: measured where every row was timed, else by the bytes."""
    is_timed = all(row.step_cost is not None for row in selection.rows)
    rows = [_plane_row(row, selection, is_timed) for row in selection.rows]
    how = "measured in the same blocks" if is_timed else "by their bytes: a prediction"
    return Chart(
        name="kept-for-cost",
        title="What is kept for what cost",
        description=(
            f"Acceptance rate at k = {selection.common_k} against c, a draft step over a step of "
            f"the target, {how}; 95 % intervals. Left and up is better; the ring marks the "
            "recommended. The intervals are each row's own: differences are paired and narrower, "
            "see the table."
        ),
        spec=kept_for_cost(
            rows, _drafts(selection), "c, draft step over target step (left: cheaper)"
        ),
        data=Table(
            ("Draft", "Recipe", "c", "Acceptance rate"),
            tuple(tuple(str(r[key]) for key in ("draft", "recipe", "cost", "rate")) for r in rows),
            frozenset({2, 3}),
        ),
        is_wide=True,
    )


def _plane_row(row: Ranked, selection: Selection, is_timed: bool) -> dict[str, Any]:
    cost = row.step_cost if is_timed and row.step_cost else _exactly(row.draft_cost)
    rate = row.acceptance_rate
    return {
        "name": name_of(row, selection),
        "draft": short(row.draft, selection),
        "recipe": row.recipe,
        "standing": standing(row, selection),
        **{"x": cost.value, "x_low": cost.low, "x_high": cost.high},
        **{"y": rate.value, "y_low": rate.low, "y_high": rate.high},
        "cost": f"{cost.value:.3f} ({cost.low:.3f} to {cost.high:.3f})"
        if is_timed
        else f"{cost.value:.3f}",
        "rate": valued(rate, "rate"),
    }


def _drafts(selection: Selection) -> list[str]:
    """By the best row of each: a draft has one colour in every picture."""
    return list(dict.fromkeys(short(row.draft, selection) for row in selection.rows))


def _exactly(value: float) -> Interval:
    return Interval(value, value, value)


def domains_chart(selection: Selection) -> Chart | None:
    """Every draft as it is, in every domain; None where there is one domain, or none recorded."""
    rows = [
        {
            "domain": found.domain,
            "draft": short(row.draft, selection),
            "value": found.acceptance_rate.value,
            "low": found.acceptance_rate.low,
            "high": found.acceptance_rate.high,
            "shown": valued(found.acceptance_rate, "rate"),
            "num_prompts": found.num_prompts,
        }
        for row in selection.rows
        if row.recipe == "none"
        for found in row.by_domain
    ]
    if len({row["domain"] for row in rows}) < 2:
        return None
    return Chart(
        name="rates-by-domain",
        title="Acceptance by domain",
        description=(
            f"Accepted / proposed at k = {selection.common_k}, each draft as it is, with 95 % "
            "intervals. Drafts that were trained on other text differ by domain; the mean hides it."
        ),
        spec=rates_by_domain(rows, _drafts(selection)),
        data=_domains_table(selection, rows),
    )


def _domains_table(selection: Selection, rows: list[dict[str, Any]]) -> Table:
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
