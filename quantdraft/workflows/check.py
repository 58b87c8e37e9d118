"""check: do target and draft fit, and can quantizing the draft pay? No model is run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantdraft.checkpoints.checkpoint import Checkpoint, open_checkpoint, require_tokenizer
from quantdraft.checkpoints.heads.head import require_draft_model
from quantdraft.checkpoints.pairing import PairingFinding, check_pairing, is_compatible
from quantdraft.checkpoints.serving_defaults import serving_defaults
from quantdraft.checkpoints.tensors.inventory import require_complete
from quantdraft.checkpoints.tensors.loading import load_config, require_loadable, resolve_model
from quantdraft.checkpoints.weights import INDEX_FILE, stray_weights
from quantdraft.errors import CheckpointError, OptionError, RecipeError
from quantdraft.judge.verdict.policy import load_policy
from quantdraft.quantize.fitting import fit_recipe
from quantdraft.quantize.ledger import byte_ledger, head_options, judged_context, project
from quantdraft.quantize.recipe import bundled_recipe_names, load_recipe
from quantdraft.record.step_bytes import (
    Ledger,
    estimated_cost_ratio,
    experts_sentence,
    ledger_summary,
    verify_bytes_ratio,
)
from quantdraft.record.terms import MAX_K, USUAL_K
from quantdraft.record.wording import UNDEFINED, num_bytes, times
from quantdraft.report.blocks import Table
from quantdraft.report.views import tables
from quantdraft.report.views.screen import here


@dataclass(frozen=True, slots=True)
class RecipeOutlook:
    """The most that a recipe can gain by its bytes; `summary` is None if it cannot be applied."""

    recipe: str
    summary: dict[str, Any] | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Preflight:
    """The findings about a pair, and the outlook of every bundled recipe."""

    is_compatible: bool
    findings: tuple[PairingFinding, ...]
    num_speculative_tokens: int
    outlooks: tuple[RecipeOutlook, ...]
    experts: str | None = (
        None  # what a verification reads of the target's experts, where it has any
    )

    def lines(self) -> list[str]:
        """Return the lines of the terminal: the findings, a table of recipes, the answer."""
        screen = here()
        shown = [screen.listed(f.message, f"{f.level:<7} ") for f in self.findings]
        if any(each.summary is not None for each in self.outlooks):
            shown += ["", f"What the bytes allow at k = {self.num_speculative_tokens}:", ""]
            shown += [tables.table(_outlook_table(self.outlooks))]
            shown += [screen.wrapped(line) for line in _remarks(self.outlooks)]
        elif self.outlooks:
            shown += ["", "No recipe can be applied to this draft:"]
            shown += [screen.wrapped(line) for line in _refusals(self.outlooks)]
        else:
            shown += [""]
        if self.experts is not None:
            shown += [screen.wrapped(self.experts)]
        answer = "compatible" if self.is_compatible else "not compatible: see the errors above"
        return [*shown, "", f"Target and draft are {answer}."]


def check(
    target: str,
    draft: str,
    num_speculative_tokens: int = USUAL_K,
    policy: Path | None = None,
) -> Preflight:
    """Read both directories' files (no weights) and say what is known before anything is run.

    policy: a file with limits of the verdict; "can pay" is held to its speedup over the baseline
    Raises CheckpointError for a directory that cannot be read.
    """
    if not 1 <= num_speculative_tokens <= MAX_K:
        raise OptionError(f"-k {num_speculative_tokens}: it lies in 1..{MAX_K}.")
    min_speedup = load_policy(policy).min_speedup_over_baseline
    target_path, draft_path = resolve_model(target), resolve_model(draft)
    opened = open_checkpoint(target_path), open_checkpoint(draft_path)
    require_draft_model(opened[1], "replayed")
    for checkpoint in opened:
        require_tokenizer(checkpoint)
    require_loadable(opened[1])
    strays = [each for checkpoint in opened for each in _strays(checkpoint)]
    findings = (
        *_unknown_target(opened[0]),
        *strays,
        *serving_defaults(target_path),
        *check_pairing(target_path, draft_path),
        *_quantized_draft(opened[1]),
    )
    k = num_speculative_tokens
    if not is_compatible(findings):
        return Preflight(False, findings, k, ())
    of_target = byte_ledger(opened[0])
    outlooks = _outlooks(of_target, opened[1], k, min_speedup)
    return Preflight(True, findings, k, outlooks, experts_sentence(of_target, k))


def _unknown_target(target: Checkpoint) -> Iterator[PairingFinding]:
    """Yield a warning for a target that transformers cannot load: an engine may still serve it.

    Raises CheckpointError for one that lacks a tensor.
    """
    try:
        config = load_config(target.path)
    except CheckpointError as error:
        message = (
            f"{error} Only an engine can run this target; its tensors were not looked through."
        )
        yield PairingFinding("target-unknown", "warning", message)
        return
    require_complete(target, config)


def _quantized_draft(draft: Checkpoint) -> Iterator[PairingFinding]:
    """Yield that no recipe is looked at, where the draft is quantized."""
    if draft.quantization is not None:
        method = draft.quantization.get("quant_method", "an unknown method")
        yield PairingFinding(
            "quantized-draft",
            "info",
            f"the draft is quantized already ({method}): no recipe is looked at. `quantdraft "
            "evaluate` measures it against its full-precision draft: --baseline, where `apply` "
            "did not write it.",
        )


def _strays(checkpoint: Checkpoint) -> Iterator[PairingFinding]:
    names = stray_weights(checkpoint.path)
    has_index = (checkpoint.path / INDEX_FILE).is_file()
    if names and not has_index:
        yield PairingFinding(
            "stray-weights",
            "warning",
            f"'{checkpoint.path}' holds '{names[0]}' beside its weights, and no {INDEX_FILE}: it "
            "is not read here, vLLM would load it too. Remove it, or serve what `quantdraft "
            "export` writes.",
        )


def _outlooks(
    of_target: Ledger, draft: Checkpoint, k: int, min_speedup: float
) -> tuple[RecipeOutlook, ...]:
    if draft.quantization is not None:
        return ()  # what a recipe would make of it is known for full-precision drafts only
    before = byte_ledger(draft)
    cost_ratio = estimated_cost_ratio(before, of_target)
    outlooks = []
    for name in bundled_recipe_names():
        recipe = load_recipe(name)
        if recipe.is_identity:
            continue
        try:
            recipe = fit_recipe(recipe, draft, None)
            summary = ledger_summary(
                before,
                project(draft, recipe),
                context_length=judged_context(recipe),
                num_speculative_tokens=k,
                cost_ratio=cost_ratio,
                verify_ratio=verify_bytes_ratio(of_target, k),
                head=head_options(draft, recipe),
                min_speedup=min_speedup,
            )
        except RecipeError as error:
            outlooks.append(RecipeOutlook(name, None, str(error)))
        else:
            outlooks.append(RecipeOutlook(name, summary))
    return tuple(outlooks)


def _outlook_table(outlooks: tuple[RecipeOutlook, ...]) -> Table:
    rows = [_row(each.recipe, each.summary) for each in outlooks if each.summary is not None]
    return Table(
        ("Recipe", "Step", "Becomes", "Step at most", "Overall at most", "Can pay"),
        tuple(rows),
        numeric=frozenset({1, 2, 3, 4}),
    )


def _row(recipe: str, summary: dict[str, Any]) -> tuple[str, ...]:
    largest = summary["largest_speedup"]
    return (
        recipe,
        num_bytes(summary["baseline"]["step_bytes"]),
        num_bytes(summary["candidate"]["step_bytes"]),
        times(summary["ceiling"]),
        UNDEFINED if largest is None else times(largest),
        "yes" if summary["can_pay"] else "no",
    )


def _refusals(outlooks: tuple[RecipeOutlook, ...]) -> Iterator[str]:
    """Yield why recipes cannot be applied: each reason once, with the names of its recipes."""
    names: dict[str, list[str]] = {}
    for each in outlooks:
        if each.reason is not None:
            reason = each.reason.removeprefix(f"recipe {each.recipe!r}: ")
            names.setdefault(reason, []).append(each.recipe)
    for reason, recipes in names.items():
        yield f"{', '.join(recipes)}: {reason}"


def _remarks(outlooks: tuple[RecipeOutlook, ...]) -> Iterator[str]:
    """Yield what the columns mean, what cannot be applied, and what the head would add.

    outlooks: of them at least one recipe that can be applied
    """
    known = [each.summary for each in outlooks if each.summary is not None]
    ratio = known[0]["cost_ratio"]
    at = "" if ratio is None else f" (c = {ratio:.3f}, by their bytes)"
    asked = f" It can pay from {known[0]['min_speedup']:.2f}×, what a go needs."
    yield (
        "Step: the bytes that a draft step reads, before and after, so how much faster it gets at "
        f"most. Overall: with the target's step{at}.{asked}"
    )
    yield from _refusals(outlooks)
    # Of the recipe that leaves the fewest bytes for the rest.
    yield from (
        each.summary["head_advice"]
        for each in outlooks
        if each.recipe == "int4" and each.summary is not None
    )
