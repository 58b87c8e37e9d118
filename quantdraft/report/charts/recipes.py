"""Charts of recipes side by side: speedups against the limit, the Pareto front, lengths by k."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantdraft.record import Comparison, Evaluation
from quantdraft.record.wording import UNDEFINED, milliseconds, times, valued
from quantdraft.report.blocks import Chart
from quantdraft.report.charts import style
from quantdraft.report.charts.curves import LineByK, curve_table, curves_spec
from quantdraft.report.safety import shown_text

STEP = "draft step, ms (left: faster)"


def forest_chart(ordered: Sequence[Evaluation]) -> Chart:
    """Return speedups over the baseline draft, one interval a recipe, against 1 and the limit.

    A recipe that lies far from the others does not rule the scale: it is named at the edge.
    """
    alt = style.altair()

    limit = ordered[0].known_analysis.min_speedup_over_baseline
    speeds = [each.speedup_over_baseline for each in ordered]
    low, high = style.near_range([speed.value for speed in speeds if speed], 1.0, limit)
    rows = [
        {
            "name": each.name,
            **style.ends(speed if speed and low <= speed.value <= high else None),
            "decision": each.verdict.decision,
            "shown": valued(speed, "speedup"),
        }
        for each, speed in zip(ordered, speeds, strict=True)
    ]
    names = style.names_down("name").scale(domain=[shown_text(each.name, 120) for each in ordered])
    base = alt.Chart(style.inline(rows)).encode(
        y=names,
        color=style.coloured("decision", style.colour_scale(style.VERDICT_COLOURS)),
        tooltip=style.tooltip({"name:N": "recipe", "shown:N": "speedup", "decision:N": "verdict"}),
    )
    whisker, dot = style.whiskers(base, "speedup over the baseline draft", size=90)
    missing = (
        alt.Chart(style.inline(row for row in rows if row["shown"] == UNDEFINED))
        .mark_text(align="left", dx=6, color=style.LIGHT["quiet"], text=UNDEFINED)
        .encode(y=names, x=alt.value(0))
    )
    below = [f"◂ {times(speed.value)}" if speed and speed.value < low else "" for speed in speeds]
    above = [f"{times(speed.value)} ▸" if speed and speed.value > high else "" for speed in speeds]
    far = [
        alt.Chart(style.inline({**row, "far": text} for row, text in zip(rows, texts, strict=True)))
        .mark_text(align="left" if is_below else "right", dx=6 if is_below else -6)
        .encode(y=names, x=alt.value(0 if is_below else "width"), text="far:N")
        for texts, is_below in ((below, True), (above, False))
        if any(texts)
    ]
    no_gain = style.level(1.0, "no gain", axis="x", is_before=True)
    go = style.level(limit, f"go from {times(limit)}", axis="x", dash=False)
    drawn = alt.layer(no_gain, go, whisker, dot, missing, *far)
    return Chart(
        name="speedups",
        title="Speedup over the baseline draft",
        description="95 % intervals, each draft at its own best k; no mark: undefined.",
        spec=style.finish(drawn, height=34 * len(rows)),
        data=style.rows_table(
            rows, {"name": "Recipe", "shown": "Speedup (95 % interval)", "decision": "Verdict"}, {1}
        ),
        is_wide=True,
    )


def pareto_chart(compared: Comparison) -> Chart | None:
    """Return acceptance rates against draft steps; None where no recipe has both."""
    alt = style.altair()

    places = compared.pareto
    if not places:
        return None
    steps = [each.draft_step_ms.value for each in places]
    low, high = style.near_range(steps, steps[0], steps[0])
    near = [each for each in places if low <= each.draft_step_ms.value <= high]
    far = ", ".join(each.name for each in places if each not in near)
    front = sorted(
        (each.draft_step_ms.value, each.acceptance_rate.value) for each in near if each.is_on_front
    )
    rows: list[dict[str, Any]] = [
        {
            "name": each.name,
            **style.cross(each.draft_step_ms, each.acceptance_rate),
            "step": milliseconds(each.draft_step_ms.value),
            "rate": valued(each.acceptance_rate, "rate"),
        }
        for each in places
    ]
    base = alt.Chart(style.inline(row for row in rows if low <= row["x"] <= high)).encode(
        color=style.coloured(
            "name", style.name_scale([each.name for each in near], "baseline"), symbolOpacity=1
        ),
    )
    middle, rules = style.crosses(base, STEP, style.RATE)
    dots = base.mark_point(filled=True, size=100, opacity=1).encode(
        **middle,
        tooltip=style.tooltip(
            {"name:N": "recipe", "step:N": "draft step", "rate:N": "acceptance rate"}
        ),
    )
    line = (
        alt.Chart(style.inline({"x": step_ms, "y": rate} for step_ms, rate in front))
        .mark_line(color=style.LIGHT["quiet"], strokeDash=[3, 3], interpolate="step-after")
        .encode(x=alt.X("x:Q", title=STEP), y=alt.Y("y:Q", title=style.RATE))
    )
    return Chart(
        name="pareto",
        title="What is kept for what time",
        description=(
            f"Acceptance rate at k = {compared.num_speculative_tokens} against one draft step, "
            "95 % intervals. Steps are scaled to one baseline, each by its own run's paired ratio. "
            "Left and up is better; the dashed line joins recipes that no other beats in both. The "
            "intervals are each recipe's own; differences are paired and narrower, see the "
            "pairs below."
            + (f" Too far left or right to be drawn, see the numbers: {far}." if far else "")
        ),
        spec=style.finish(alt.layer(line, *rules, dots), height=320, width=style.WIDE),
        data=style.rows_table(
            rows, {"name": "Draft", "step": "Draft step", "rate": "Acceptance rate"}, {1, 2}
        ),
        is_wide=True,
    )


def lengths_chart(ordered: Sequence[Evaluation]) -> Chart:
    """Return τ by k: the baseline, then every recipe; a click in the legend shows one alone."""
    first = ordered[0]
    baseline = [(row.num_speculative_tokens, row.baseline_length) for row in first.acceptance]
    curves = [LineByK("baseline", baseline, first.best_k.get("baseline"))]
    for each in ordered:
        points = [(row.num_speculative_tokens, row.candidate_length) for row in each.acceptance]
        curves.append(LineByK(each.name, points, each.best_k.get("candidate")))
    return Chart(
        name="lengths-by-k",
        title="Tokens a round τ, by k",
        description=(
            "Mean acceptance length; rings mark the best k. Click a name in the legend to see it "
            "alone with its 95 % interval, shift-click for several."
        ),
        spec=curves_spec(curves, "tokens a round", "length", is_by_recipe=True, height=320),
        data=curve_table(curves, "τ", "length"),
        is_wide=True,
    )
