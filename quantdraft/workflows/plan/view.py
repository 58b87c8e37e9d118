"""A plan as lines of text: the pair's prediction, the table by k, and the answer."""

from __future__ import annotations

from collections.abc import Iterator

from quantdraft.record.wording import length, metric, milliseconds, num_bytes, percent, times
from quantdraft.report.blocks import Table
from quantdraft.report.views import tables
from quantdraft.report.views.screen import here
from quantdraft.workflows.plan.curve import Curve, CurvePoint
from quantdraft.workflows.plan.plan import CountedRate, Plan
from quantdraft.workflows.plan.prediction import Prediction, RecipePrediction

MIN_LOSS = 0.0005  # under it the points round to nothing
CURVE_LEGEND = (
    "speedup: over the target alone, Leviathan et al. (arXiv 2211.17192, theorem 3.8), if "
    "verifying costs one step of the target. rule of thumb: the draft charged once a round, too "
    "high for every k above 1. arithmetic: computing over the target's alone (theorem 3.11), what "
    "a batch bound by arithmetic pays. pays from α: the acceptance per token asked for at which "
    "the speedup is 1. accepted / proposed: the rate that engines print, which falls with k."
)
PAIR_LEGEND = (
    "at least: a draft step if memory ran at its peak. c: draft bytes over target bytes. "
    "× target, × draft: speedup over the target alone and over the full-precision draft, each at "
    "its best k, at equal acceptance. may lose: the points of α that would eat the gain. No engine "
    "reaches these; measure with `quantdraft evaluate` before you decide."
)


def plan_lines(plan: Plan) -> list[str]:
    """Return the text for the terminal, as wide as it is, or at most 100 columns."""
    parts: list[str | Table] = []
    if plan.prediction is not None:
        parts += [*_pair_parts(plan.prediction), "", "The full-precision draft by k:"]
    parts += _curve_parts(plan.curve, plan.counted)
    screen = here()
    shown = (tables.table(p) if isinstance(p, Table) else screen.wrapped(p) for p in parts)
    return "\n".join(shown).split("\n")


def _curve_parts(curve: Curve, counted: CountedRate | None) -> Iterator[str | Table]:
    origin = ""
    if counted is not None:
        rate, k = percent(counted.acceptance_rate), counted.num_speculative_tokens
        origin = f" (from {rate} accepted / proposed at k = {k})"
    yield (
        f"Prediction for α = {percent(curve.alpha)}, accepted per token asked for{origin}, and a "
        f"draft step at {curve.draft_cost:.4g} of the target's"
    )
    yield ""
    yield Table.of([_curve_row(point, curve.best) for point in curve.points], range(7))
    yield ""
    yield _answer(curve)
    yield CURVE_LEGEND


def _curve_row(point: CurvePoint, best: CurvePoint) -> dict[str, str]:
    pays_from = point.break_even_alpha
    return {
        "k": str(point.num_speculative_tokens),
        "tokens a round": length(point.mean_acceptance_length),
        "accepted / proposed": percent(point.acceptance_rate),
        "speedup": times(point.leviathan),
        "rule of thumb": times(point.rule_of_thumb),
        "arithmetic": times(point.operations),
        "pays from α": "never" if pays_from is None else percent(pays_from),
        "": "← best" if point is best else "",
    }


def _answer(curve: Curve) -> str:
    best, thumb = curve.best, curve.best_by_rule_of_thumb
    k = best.num_speculative_tokens
    if best.leviathan <= 1:
        return (
            f"No k of these pays: the best, {k}, gives {times(best.leviathan)}. Serve without "
            "speculation, or find a cheaper or better draft."
        )
    text = f"Best: k = {k}, {times(best.leviathan)} the target alone."
    if thumb is not best:
        text += (
            f" The rule of thumb would say k = {thumb.num_speculative_tokens} and "
            f"{times(thumb.rule_of_thumb)}, which would give {times(thumb.leviathan)}."
        )
    if curve.draft_cost == 0:
        return f"{text} A proposal costs nothing here, so more of them never cost time either."
    if curve.ends_at_best and len(curve.points) > 1:
        text += " It is the highest of these: a higher one may be better still."
    return text


def _pair_parts(prediction: Prediction) -> Iterator[str | Table]:
    yield f"Prediction for draft {prediction.draft} and target {prediction.target}"
    at_least = prediction.target_step_ms
    yield (
        f"{prediction.device or 'no device named: bytes alone'}; batch 1, "
        f"context {prediction.context_length}; "
        f"a step of the target reads {num_bytes(prediction.target_step_bytes)}"
        f"{'' if at_least is None else f', at least {milliseconds(at_least)}'}"
    )
    if prediction.warning is not None:
        yield f"Warning: {prediction.warning}."
    if prediction.experts is not None:
        yield f"{prediction.experts} The speedups below leave that out."
    yield ""
    # Recipes that differ in how they round, and not in what a step reads, share a row.
    by_bytes: dict[int | None, list[RecipePrediction]] = {}
    by_reason: dict[str, list[str]] = {}
    for row in prediction.recipes:
        if row.reason is None:
            by_bytes.setdefault(row.step_bytes, []).append(row)
        else:
            by_reason.setdefault(row.reason, []).append(row.recipe)
    groups = [
        sorted(group, key=lambda row: (len(row.recipe), row.recipe)) for group in by_bytes.values()
    ]
    rows = (prediction.baseline, *(group[0] for group in groups))
    yield Table.of([_pair_row(row) for row in rows], range(1, 8))
    same = [[row.recipe for row in group] for group in groups if len(group) > 1]
    yield " ".join(f"{names[0]} stands for {', '.join(names[1:])} too." for names in same)
    yield ""
    yield PAIR_LEGEND
    for reason, names in by_reason.items():
        yield f"No prediction for {', '.join(names)}: {reason}."


def _pair_row(row: RecipePrediction) -> dict[str, str]:
    loss = row.break_even_loss
    return {
        "recipe": row.recipe,
        "step": num_bytes(row.step_bytes),
        "at least": "" if row.draft_step_ms is None else milliseconds(row.draft_step_ms),
        "c": "" if row.draft_cost is None else f"{row.draft_cost:.4f}",
        "best k": str(row.best_k),
        "× target": times(row.speedup_over_autoregressive),
        "× draft": times(row.speedup_over_baseline),
        "may lose": "none" if loss is None or loss < MIN_LOSS else metric(loss, "loss"),
    }
