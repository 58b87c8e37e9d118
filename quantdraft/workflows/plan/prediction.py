"""The byte model: what a pair would gain if memory were the only limit.

A draft step takes its bytes over the bandwidth, a step of the target its own, and verifying k + 1
tokens costs one step of the target. Acceptance is taken to be the same under every recipe. No
engine reaches this; it bounds what one could, at batch 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.errors import RecipeError, UndefinedMetricError
from quantdraft.judge import speedup
from quantdraft.judge.acceptance import alpha_from_length
from quantdraft.quantize.fitting import fit_recipe
from quantdraft.quantize.ledger import byte_ledger, project
from quantdraft.quantize.recipe import Recipe, bundled_recipe_names
from quantdraft.quantize.recipe_changes import load_all_changed
from quantdraft.quantize.recipe_formats import weight_format
from quantdraft.record.step_bytes import (
    Ledger,
    ceiling,
    estimated_cost_ratio,
    experts_sentence,
)
from quantdraft.workflows.plan.curve import Curve, plan_curve
from quantdraft.workflows.plan.devices import Device

BASELINE = "full precision"


@dataclass(frozen=True, slots=True)
class RecipePrediction:
    """What the bytes allow under one recipe; `reason` says why there is no prediction."""

    recipe: str
    step_bytes: int | None = None
    ceiling: float | None = None  # the full-precision draft's bytes over these
    draft_step_ms: float | None = None  # at least; None where no device was named
    draft_cost: float | None = None  # c: draft bytes over target bytes
    best_k: int | None = None
    speedup_over_autoregressive: float | None = None  # at the best k
    speedup_over_baseline: float | None = None  # each at its own best k, at equal acceptance
    # The loss of acceptance per token that would eat the gain, both at the baseline's best k.
    break_even_loss: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """The pair as it is, then every recipe, fastest first, those without a number last."""

    target: str
    draft: str
    device: str | None
    context_length: int
    target_step_bytes: int
    target_step_ms: float | None  # at least
    baseline: RecipePrediction
    recipes: tuple[RecipePrediction, ...]
    warning: str | None = None  # what the two configs say of whether they fit
    experts: str | None = None  # what a verification reads of a target's experts


def predict(
    target: Checkpoint,
    draft: Checkpoint,
    alpha: float,
    ks: Sequence[int],
    *,
    device: Device | None = None,
    context_length: int = 0,
    changes: Mapping[str, Any] | None = None,
) -> Prediction:
    """Return what the byte model says of a pair, for every bundled recipe. No weights are read.

    changes: fields of recipes, for those that have them
    alpha: acceptance per token asked for of the full-precision draft; it is the user's to know
    """
    of_target, before = byte_ledger(target), byte_ledger(draft)
    cost = estimated_cost_ratio(before, of_target, context_length)
    curve = plan_curve(alpha, cost, ks)
    model = _Model(of_target, before, curve, device, context_length)
    recipes = sorted(_recipes(draft, model, changes), key=_order)
    target_bytes = of_target.step_bytes(context_length)
    return Prediction(
        target=str(target.path),
        draft=str(draft.path),
        device=None if device is None else device.name,
        context_length=context_length,
        target_step_bytes=target_bytes,
        target_step_ms=None if device is None else device.limit_ms(target_bytes),
        baseline=model.row(BASELINE, before),
        recipes=tuple(recipes),
        warning=_vocabulary_warning(target, draft),
        experts=experts_sentence(of_target, curve.best.num_speculative_tokens),
    )


def _vocabulary_warning(target: Checkpoint, draft: Checkpoint) -> str | None:
    ours, theirs = (each.text_config.get("vocab_size") for each in (target, draft))
    if ours == theirs:
        return None
    return (
        f"vocab_size is {ours} in the target and {theirs} in the draft: whether they fit is in "
        "their tokens, which `quantdraft check` compares"
    )


@dataclass(frozen=True, slots=True)
class _Model:
    target: Ledger
    before: Ledger
    curve: Curve  # of the full-precision draft
    device: Device | None
    context_length: int

    def row(self, name: str, ledger: Ledger) -> RecipePrediction:
        """Return the prediction for a draft of these bytes, at the baseline's acceptance."""
        ks = [point.num_speculative_tokens for point in self.curve.points]
        cost = estimated_cost_ratio(ledger, self.target, self.context_length)
        best = plan_curve(self.curve.alpha, cost, ks).best
        step_bytes = ledger.step_bytes(self.context_length)
        return RecipePrediction(
            recipe=name,
            step_bytes=step_bytes,
            ceiling=ceiling(self.before, ledger, self.context_length),
            draft_step_ms=None if self.device is None else self.device.limit_ms(step_bytes),
            draft_cost=cost,
            best_k=best.num_speculative_tokens,
            speedup_over_autoregressive=best.leviathan,
            speedup_over_baseline=best.leviathan / self.curve.best.leviathan,
            break_even_loss=self._break_even_loss(cost),
        )

    def _break_even_loss(self, cost: float) -> float | None:
        at = self.curve.best
        k = at.num_speculative_tokens
        length = speedup.break_even_length(
            speedup.round_ms(k, self.curve.draft_cost, 1.0),
            speedup.round_ms(k, cost, 1.0),
            at.mean_acceptance_length,
        )
        try:
            return self.curve.alpha - alpha_from_length(length, k)
        except UndefinedMetricError:
            return None


def _recipes(
    draft: Checkpoint, model: _Model, changes: Mapping[str, Any] | None
) -> Iterator[RecipePrediction]:
    for recipe in load_all_changed(bundled_recipe_names(), changes)[0]:
        if recipe.is_identity:
            continue
        try:
            reason = _no_kernel(recipe, model.device)
            fitted = recipe if reason else fit_recipe(recipe, draft, None)
            found = None if reason else model.row(recipe.name, project(draft, fitted))
        except (RecipeError, UndefinedMetricError) as error:
            said = str(error).removeprefix(f"recipe {recipe.name!r}: ")
            found, reason = None, said.removesuffix(".")
        yield found or RecipePrediction(recipe.name, reason=reason or "")


def _no_kernel(recipe: Recipe, device: Device | None) -> str | None:
    """Return why the recipe's format has no speed there, or None where it may have one."""
    fmt = weight_format(recipe)
    name = "dense" if fmt is None else fmt.name
    if fmt is not None and fmt.library == "bitsandbytes":
        return "bitsandbytes saves memory, not time: the byte model does not hold"
    if device is None or name in device.formats:
        return None
    return f"no kernel for its format on {device.name} is documented"


def _order(row: RecipePrediction) -> tuple[bool, float, str]:
    gain = row.speedup_over_baseline
    return gain is None, 0.0 if gain is None else -gain, row.recipe
