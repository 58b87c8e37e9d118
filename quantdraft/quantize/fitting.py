"""Fit a recipe to a draft: refuse what it cannot quantize, and leave out modules of a draft head.

Nothing is skipped silently: what a recipe cannot quantize is an error.

Modules that engines stack (q, k and v; gate and up) need no common scale: a scale of a row or of a
group is stacked with its rows. NVFP4 has one scale a matrix, which llm-compressor makes equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.formats import WeightFormat
from quantdraft.checkpoints.heads.head import DraftHead
from quantdraft.checkpoints.heads.inside import inner_mtp, inner_patterns
from quantdraft.checkpoints.parts import has_experts, is_stacked
from quantdraft.checkpoints.stored_formats import kv_scales
from quantdraft.checkpoints.weights import FLOAT_DTYPES, TensorInfo
from quantdraft.errors import RecipeError
from quantdraft.quantize.group_sizes import largest_group, loading_engines
from quantdraft.quantize.ledger import untied_tensors
from quantdraft.quantize.recipe import Recipe, bundled_recipe_names, load_recipe
from quantdraft.quantize.recipe_formats import formats_by_module

# Model types whose weights no format here describes, or whose quantized ones transformers does not
# run: Conv1D modules, a Linear with a product of its own, projections that are cut in loading.
UNQUANTIZABLE = {
    "gpt2": "whose weights are stored transposed",
    "openai-gpt": "whose weights are stored transposed",
    "falcon": "whose Linears transformers computes from float weights alone",
    "zamba": "whose layers share one set of weights, stored once",
    "hrm_text": "whose projections transformers cuts into several when it loads them",
}

# llm-compressor knows a norm by the end of its name; these are pre_fc_norm_hidden, fc_norm.0, …
NORMS = r"re:(.*\.)?\w*norm\w*(\.\d+)?$"


def fit_recipe(recipe: Recipe, source: Checkpoint, head: DraftHead | None) -> Recipe:
    """Return the recipe as it is applied to this draft; of a draft head, see `recipe_for_head`.

    Raises RecipeError where it does not fit.
    """
    fitted = _without_mtp(recipe, source) if head is None else recipe_for_head(recipe, head)
    _require_applicable(fitted, source)
    return fitted


def _without_mtp(recipe: Recipe, source: Checkpoint) -> Recipe:
    """Add the draft's own MTP layers to the recipe's `ignore`: engines read parts of them raw."""
    patterns = inner_patterns(inner_mtp(source))
    if recipe.is_identity or not patterns:
        return recipe
    return recipe.model_copy(update={"ignore": (*recipe.ignore, *patterns)})


def recipe_for_head(recipe: Recipe, head: DraftHead) -> Recipe:
    """Add the exclusions of the head's family to the recipe's `ignore`.

    Raises RecipeError for one that has to run the draft, or quantizes a head it does not own.
    """
    if recipe.is_identity:
        return recipe
    if not _is_data_free(recipe):
        raise RecipeError(
            f"recipe {recipe.name!r} loads or runs the draft, and a draft head "
            f"({head.family.title}) does not run without its target. Data-free recipes: "
            f"{', '.join(_data_free_names(head))}."
        )
    if recipe.lm_head != "keep" and not head.can_quantize_head:
        raise RecipeError(
            f"recipe {recipe.name!r} quantizes the output head, and this draft head "
            f"({head.family.title}) shares the target's. Use one that keeps it: "
            f"{', '.join(_data_free_names(head))}."
        )
    _require_flat_experts(recipe, head)
    patterns = [pattern for each in head.family.excluded for pattern in each.patterns]
    return recipe.model_copy(update={"ignore": (*recipe.ignore, *patterns, NORMS)})


def _is_data_free(recipe: Recipe) -> bool:
    is_ours = recipe.backend == "llmcompressor" and recipe.modifiers is None
    return is_ours and not recipe.needs_calibration


def _data_free_names(head: DraftHead) -> list[str]:
    recipes = map(load_recipe, bundled_recipe_names())
    fitting = [r for r in recipes if r.lm_head == "keep" or head.can_quantize_head]
    return [recipe.name for recipe in fitting if _is_data_free(recipe)]


def _require_flat_experts(recipe: Recipe, head: DraftHead) -> None:
    """Refuse stacked experts: llm-compressor splits them under names that engines do not know."""
    for name, info in head.tensors.items():
        if len(info.shape) == 3 and ("gate_up_proj" in name or "down_proj" in name):
            raise RecipeError(
                f"recipe {recipe.name!r}: {name!r} holds {info.shape[0]} experts in one tensor. "
                "Store them one by one, as the target's own checkpoint does."
            )


def _require_applicable(recipe: Recipe, source: Checkpoint) -> None:
    """Raise RecipeError where the recipe does not fit the draft."""
    if recipe.is_identity:
        return
    if source.quantization is not None:
        method = source.quantization.get("quant_method", "an unknown method")
        raise RecipeError(
            f"'{source.path}' is quantized already ({method}). Give the full-precision draft."
        )
    model_type = source.text_config.get("model_type")
    if model_type in UNQUANTIZABLE:
        raise RecipeError(
            f"recipe {recipe.name!r}: '{source.path}' is of type {model_type!r}, "
            f"{UNQUANTIZABLE[model_type]}. Use a draft of another architecture."
        )
    _require_known_experts(recipe, source)
    if recipe.kv_cache != "keep":
        _require_known_cache(recipe, source)
    if recipe.modifiers is None and recipe.scheme != "none":
        _require_whole_groups(recipe, source)


def _require_whole_groups(recipe: Recipe, source: Checkpoint) -> None:
    tensors = untied_tensors(source, recipe)
    formats = formats_by_module(recipe, tensors)
    if not formats:
        raise RecipeError(f"recipe {recipe.name!r} ignores every layer of '{source.path}'.")
    shapes = {module: tensors[f"{module}.weight"].shape for module in formats}
    for module, fmt in formats.items():
        info = tensors[f"{module}.weight"]
        columns = info.shape[1]
        group_size = fmt.block[1] if fmt.block else fmt.group_size
        if fmt.library == "bitsandbytes":  # its blocks run on from row to row
            group_size = None
        if info.dtype not in FLOAT_DTYPES - {"F64"}:
            raise RecipeError(
                f"recipe {recipe.name!r}: '{module}' holds {info.dtype}, not 16- or 32-bit floats."
            )
        if group_size is not None and columns % group_size:
            raise RecipeError(
                f"recipe {recipe.name!r}: '{module}' has {columns} inputs, which groups of "
                f"{group_size} do not divide. To go on, {_smaller_groups(fmt, shapes)}"
                "use a recipe with one scale per row (int8, fp8)."
            )


def _smaller_groups(fmt: WeightFormat, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return the option that gives groups which divide every width, and who loads them."""
    size = largest_group(shape[1] for shape in shapes.values())
    if fmt.block is not None or fmt.kind != "int" or fmt.library == "bitsandbytes" or size is None:
        return ""
    matrices = {module: (shape[0], shape[1]) for module, shape in shapes.items()}
    engines = loading_engines(replace(fmt, group_size=size), matrices)
    return f"add --set group_size={size} ({engines}), or "


def _require_known_cache(recipe: Recipe, source: Checkpoint) -> None:
    """Refuse a quantized cache where no engine keeps keys and values as a projection gives them."""
    if any(".kv_a_proj_with_mqa." in name for name in source.tensors):
        kept = "latents in place of keys and values"
    elif kv_scales(source.tensors):
        return
    else:
        kept = "no keys and values of projections that are known (k_proj, qkv_proj)"
    raise RecipeError(
        f"recipe {recipe.name!r} quantizes the cache, and '{source.path}' keeps {kept}. Use a "
        "recipe for the weights."
    )


def _counted_experts(info: TensorInfo) -> str:
    return f"{info.shape[0]} experts" if len(info.shape) > 2 else "the experts of a layer"


def _require_known_experts(recipe: Recipe, source: Checkpoint) -> None:
    """Refuse experts that a back end would leave in floats, or store under names of its own."""
    for name, info in source.tensors.items():
        if is_stacked(name, info):
            raise RecipeError(
                f"recipe {recipe.name!r}: {name!r} holds {_counted_experts(info)} in one tensor, "
                "which llm-compressor would store under names that engines do not know. Experts "
                "that are stored one by one (Qwen3-MoE, Mixtral, DeepSeek) can be quantized."
            )
    if recipe.backend in {"bitsandbytes", "gptqmodel"} and has_experts(source.tensors):
        raise RecipeError(
            f"recipe {recipe.name!r}: {recipe.backend} works through transformers, which holds the "
            f"experts of '{source.path}' in one tensor a layer: they would stay in floats. Use "
            "a recipe of llm-compressor (int4, fp8, int8, int4-gptq)."
        )
