"""Recipes on draft heads: which can be applied, and with which modules left out.

Fused names need no common scale here: engines stack q, k and v (or gate and up) into one matrix,
and a scale a row or a group of a row is stacked with its rows. NVFP4 has one scale for a matrix;
llm-compressor gives the parts that are stacked the same one.
"""

from __future__ import annotations

from quantdraft.checkpoints.heads.head import DraftHead
from quantdraft.errors import RecipeError
from quantdraft.quantize.recipe import Recipe, bundled_recipe_names, load_recipe

__all__ = ["recipe_for_head", "require_data_free"]

# llm-compressor knows a norm by the end of its name; these are pre_fc_norm_hidden, fc_norm.0, …
NORMS = r"re:(.*\.)?\w*norm\w*(\.\d+)?$"


def recipe_for_head(recipe: Recipe, head: DraftHead) -> Recipe:
    """The recipe with the family's exclusions among its `ignore`.

    Raises RecipeError for one that has to run the draft, or quantizes a head it does not own.
    """
    if recipe.is_identity:
        return recipe
    require_data_free(recipe, head)
    if recipe.lm_head != "keep" and not head.can_quantize_head:
        raise RecipeError(
            f"recipe {recipe.name!r} quantizes the output head, and this draft head "
            f"({head.family.title}) shares the target's. Use one that keeps it: "
            + ", ".join(_data_free(head))
            + "."
        )
    _require_flat_experts(recipe, head)
    patterns = [pattern for each in head.family.excluded for pattern in each.patterns]
    return recipe.model_copy(update={"ignore": (*recipe.ignore, *patterns, NORMS)})


def require_data_free(recipe: Recipe, head: DraftHead) -> None:
    """Raise RecipeError for a recipe that needs a forward pass; name the others."""
    if not _is_data_free(recipe):
        raise RecipeError(
            f"recipe {recipe.name!r} loads or runs the draft, and a draft head "
            f"({head.family.title}) does not run without its target. Data-free recipes: "
            + ", ".join(_data_free(head))
            + "."
        )


def _is_data_free(recipe: Recipe) -> bool:
    is_ours = recipe.backend == "llmcompressor" and recipe.modifiers is None
    return recipe.is_identity or (is_ours and not recipe.needs_calibration)


def _data_free(head: DraftHead) -> list[str]:
    recipes = [load_recipe(name) for name in bundled_recipe_names()]
    can_take_head = head.can_quantize_head
    return [
        recipe.name
        for recipe in recipes
        if _is_data_free(recipe)
        and not recipe.is_identity
        and (recipe.lm_head == "keep" or can_take_head)
    ]


def _require_flat_experts(recipe: Recipe, head: DraftHead) -> None:
    """llm-compressor takes stacked experts apart, under names that engines do not know."""
    for name, info in head.tensors.items():
        if len(info.shape) == 3 and ("gate_up_proj" in name or "down_proj" in name):
            raise RecipeError(
                f"recipe {recipe.name!r}: {name!r} holds {info.shape[0]} experts in one tensor. "
                "Store them one by one, as the target's own checkpoint does."
            )
