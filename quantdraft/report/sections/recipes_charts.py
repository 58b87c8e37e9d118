"""Recipes side by side as pictures: speedups against the limit, the Pareto front, lengths by k."""

from __future__ import annotations

from collections.abc import Sequence

from quantdraft.record import Comparison, Evaluation, ParetoPoint
from quantdraft.record.wording import milliseconds, times, valued
from quantdraft.report.blocks import Chart, Table
from quantdraft.report.charts.curves import curve_rows, curves, forest
from quantdraft.report.charts.planes import pareto
from quantdraft.report.charts.style import Row


def forest_chart(ordered: Sequence[Evaluation]) -> Chart:
    """Speedup over the baseline draft, one interval a recipe, against 1 and the verdict's limit."""
    rows: list[Row] = []
    for evaluation in ordered:
        ends = evaluation.operating_point.speedup_over_baseline
        place = (ends.value, ends.low, ends.high) if ends else (None, None, None)
        rows.append(
            {
                "name": evaluation.name,
                **dict(zip(("value", "low", "high"), place, strict=True)),
                "decision": evaluation.verdict.decision,
                "shown": valued(ends, "speedup"),
            }
        )
    limit = ordered[0].known_analysis.min_speedup_over_baseline
    return Chart(
        name="speedups",
        title="Speedup over the baseline draft",
        description="95 % intervals, each draft at its own best k; no mark: undefined.",
        spec=forest(rows, ((1.0, "no gain"), (limit, f"go from {times(limit)}"))),
        data=Table(
            ("Recipe", "Speedup (95 % interval)", "Verdict"),
            tuple((str(r["name"]), str(r["shown"]), str(r["decision"])) for r in rows),
            frozenset({1}),
        ),
        is_wide=True,
    )


def pareto_chart(compared: Comparison) -> Chart | None:
    """Acceptance rate against the draft step; None where no recipe has both."""
    if not compared.pareto:
        return None
    rows = [_pareto_row(point) for point in compared.pareto]
    on_front = [point for point in compared.pareto if point.is_on_front]
    steps = sorted((point.draft_step_ms.value, point.acceptance_rate.value) for point in on_front)
    front: list[Row] = [{"x": step, "y": rate} for step, rate in steps]
    return Chart(
        name="pareto",
        title="What is kept for what time",
        description=(
            f"Acceptance rate at k = {compared.num_speculative_tokens} against one draft step, "
            "95 % intervals. Steps are scaled to one baseline, each by its own run's paired ratio. "
            "Left and up is better; the dashed line joins recipes that no other beats in both. The "
            "intervals are each recipe's own; differences are paired and narrower, see the "
            "pairs below."
        ),
        spec=pareto(
            rows, sorted(({"x": r["x"], "y": r["y"]} for r in front), key=lambda r: r["x"])
        ),
        data=Table(
            ("Draft", "Draft step", "Acceptance rate"),
            tuple((str(r["name"]), str(r["step"]), str(r["rate"])) for r in rows),
            frozenset({1, 2}),
        ),
        is_wide=True,
    )


def _pareto_row(point: ParetoPoint) -> Row:
    step, rate = point.draft_step_ms, point.acceptance_rate
    return {
        "name": point.name,
        "x": step.value,
        "x_low": step.low,
        "x_high": step.high,
        "y": rate.value,
        "y_low": rate.low,
        "y_high": rate.high,
        "step": milliseconds(step.value),
        "rate": valued(rate, "rate"),
    }


def lengths_chart(ordered: Sequence[Evaluation]) -> Chart:
    """τ by k: the baseline once, then every recipe; a click in the legend shows one alone."""
    first = ordered[0]
    lines = {"baseline": [(r.num_speculative_tokens, r.baseline_length) for r in first.acceptance]}
    best = {"baseline": first.best_k.get("baseline")}
    for evaluation in ordered:
        best[evaluation.name] = evaluation.best_k.get("candidate")
        lines[evaluation.name] = [
            (row.num_speculative_tokens, row.candidate_length) for row in evaluation.acceptance
        ]
    rows = [
        row
        for name, points in lines.items()
        for row in curve_rows(
            name,
            [(k, e.value, e.low, e.high, valued(e, "length")) for k, e in points],
            best[name],
        )
    ]
    return Chart(
        name="lengths-by-k",
        title="Tokens a round τ, by k",
        description=(
            "Mean acceptance length; rings mark the best k. Click a name in the legend to see it "
            "alone with its 95 % interval, shift-click for several."
        ),
        spec=curves(rows, "tokens a round", recipes=list(lines), height=320),
        data=Table(
            ("Draft", "k", "τ (95 % interval)"),
            tuple((str(r["name"]), str(r["k"]), str(r["shown"])) for r in rows),
            frozenset({1, 2}),
        ),
        is_wide=True,
    )
