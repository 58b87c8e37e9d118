"""A plan as lines: as wide as the terminal, or at most 100 columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from quantdraft.report.blocks import Table
from quantdraft.report.views import terminal
from quantdraft.report.views.screen import here
from quantdraft.workflows.plan.curve import Curve, CurvePoint
from quantdraft.workflows.plan.plan import CountedRate, Plan
from quantdraft.workflows.plan.prediction import Prediction, RecipePrediction

UNDEFINED = "none"
MIN_LOSS = 0.0005  # under it the points round to nothing
CURVE_COLUMNS = (
    "k",
    "tokens a round",
    "accepted / proposed",
    "speedup",
    "rule of thumb",
    "arithmetic",
    "pays from α",
    "",
)
PAIR_COLUMNS = ("recipe", "step", "at least", "c", "best k", "× target", "× draft", "may lose")


def plan_lines(plan: Plan) -> list[str]:
    """What the terminal shows: the table by k, the answer, and the pair's prediction."""
    lines = [*_curve(plan.curve, plan.counted)]
    if plan.prediction is not None:
        lines = [*_pair(plan.prediction), "", "The full-precision draft by k:", *lines]
    return lines


def _curve(curve: Curve, counted: CountedRate | None) -> Iterator[str]:
    yield from _wrapped(
        f"Prediction for α = {100 * curve.alpha:.1f} %, accepted per token asked for"
        f"{_counted(counted)}, and a draft step at {curve.draft_cost:.4g} of the target's"
    )
    yield ""
    best = curve.best
    yield from _table(CURVE_COLUMNS, [_cells(point, best) for point in curve.points])
    yield ""
    yield from _wrapped(_answer(curve))
    yield from _wrapped(
        "speedup: over the target alone, Leviathan et al. (arXiv 2211.17192, theorem 3.8), if "
        "verifying costs one step of the target. rule of thumb: the draft charged once a round, "
        "too high for every k above 1. arithmetic: computing over the target's alone (theorem "
        "3.11), what a batch bound by arithmetic pays. pays from α: the acceptance per token asked "
        "for at which the speedup is 1. accepted / proposed: the rate that engines print, which "
        "falls with k."
    )


def _counted(counted: CountedRate | None) -> str:
    if counted is None:
        return ""
    rate, k = counted.acceptance_rate, counted.num_speculative_tokens
    return f" (from {100 * rate:.1f} % accepted / proposed at k = {k})"


def _cells(point: CurvePoint, best: CurvePoint) -> tuple[str, ...]:
    pays_from = point.break_even_alpha
    return (
        str(point.num_speculative_tokens),
        f"{point.mean_acceptance_length:.2f}",
        f"{100 * point.acceptance_rate:.1f} %",
        f"{point.leviathan:.3f}×",
        f"{point.rule_of_thumb:.3f}×",
        f"{point.operations:.2f}×",
        "never" if pays_from is None else f"{100 * pays_from:.1f} %",
        "← best" if point is best else "",
    )


def _answer(curve: Curve) -> str:
    best, thumb = curve.best, curve.best_by_rule_of_thumb
    k = best.num_speculative_tokens
    if best.leviathan <= 1:
        return (
            f"No k of these pays: the best, {k}, gives {best.leviathan:.3f}×. Serve without "
            "speculation, or find a cheaper or better draft."
        )
    text = f"Best: k = {k}, {best.leviathan:.2f}× the target alone."
    if thumb is not best:
        text += (
            f" The rule of thumb would say k = {thumb.num_speculative_tokens} and "
            f"{thumb.rule_of_thumb:.2f}×, which would give {thumb.leviathan:.2f}×."
        )
    if curve.draft_cost == 0:
        return f"{text} A proposal costs nothing here, so more of them never cost time either."
    if curve.ends_at_best and len(curve.points) > 1:
        text += " It is the highest of these: a higher one may be better still."
    return text


def _pair(prediction: Prediction) -> Iterator[str]:
    yield f"Prediction for draft {prediction.draft} and target {prediction.target}"
    yield from _wrapped(_conditions(prediction))
    if prediction.warning is not None:
        yield from _wrapped(f"Warning: {prediction.warning}.")
    yield ""
    groups = _same_bytes([row for row in prediction.recipes if row.reason is None])
    rows = [group[0] for group in groups]
    yield from _table(
        PAIR_COLUMNS, [_row(row) for row in (prediction.baseline, *rows)], names=frozenset({0})
    )
    yield from _wrapped("".join(_also(group) for group in groups).strip())
    yield ""
    yield from _wrapped(
        "at least: a draft step if memory ran at its peak. c: draft bytes over target bytes. "
        "× target, × draft: speedup over the target alone and over the full-precision draft, each "
        "at its best k, at equal acceptance. may lose: the points of α that would eat the gain. "
        " No engine reaches these; measure with `quantdraft evaluate` before you decide."
    )
    by_reason: dict[str, list[str]] = {}
    for row in prediction.recipes:
        if row.reason is not None:
            by_reason.setdefault(row.reason, []).append(row.recipe)
    for reason, names in by_reason.items():
        yield from _wrapped(f"No prediction for {', '.join(names)}: {reason}.")


def _same_bytes(rows: Sequence[RecipePrediction]) -> list[list[RecipePrediction]]:
    """Recipes that differ in how they round, and not in what a step reads, share a line."""
    groups: dict[int | None, list[RecipePrediction]] = {}
    for row in rows:
        groups.setdefault(row.step_bytes, []).append(row)
    return [
        sorted(group, key=lambda row: (len(row.recipe), row.recipe)) for group in groups.values()
    ]


def _also(group: Sequence[RecipePrediction]) -> str:
    """`int4 stands for int4-awq and int4-gptq too.`, nothing for a recipe alone."""
    names = [row.recipe for row in group]
    return f" {names[0]} stands for {', '.join(names[1:])} too." if len(names) > 1 else ""


def _conditions(prediction: Prediction) -> str:
    device = prediction.device or "no device named: bytes alone"
    step = f"a step of the target reads {_bytes(prediction.target_step_bytes)}"
    if prediction.target_step_ms is not None:
        step += f", at least {prediction.target_step_ms:.3g} ms"
    return f"{device}; batch 1, context {prediction.context_length}; {step}"


def _row(row: RecipePrediction) -> tuple[str, ...]:
    loss = row.break_even_loss
    return (
        row.recipe,
        "" if row.step_bytes is None else _bytes(row.step_bytes),
        "" if row.draft_step_ms is None else f"{row.draft_step_ms:.3g} ms",
        "" if row.draft_cost is None else f"{row.draft_cost:.4f}",
        str(row.best_k),
        f"{row.speedup_over_autoregressive:.3f}×",
        f"{row.speedup_over_baseline:.3f}×",
        UNDEFINED if loss is None or loss < MIN_LOSS else f"{100 * loss:.1f} points",
    )


def _table(
    columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], names: frozenset[int] = frozenset()
) -> Iterator[str]:
    """names: columns of words; all others are numbers, but for what has no heading"""
    numbers = frozenset(at for at, column in enumerate(columns) if at not in names and column != "")
    yield from terminal.table(Table(columns, tuple(rows), numbers)).splitlines()


def _wrapped(text: str) -> list[str]:
    return here().wrapped(text).splitlines()


def _bytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:,.2f} GB"
