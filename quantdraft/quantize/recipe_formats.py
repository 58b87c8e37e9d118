"""The format that a recipe gives each module, and the modules that it leaves as they are.

Plain data, no torch. `stored_formats` reads the formats of a stored checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from quantdraft.checkpoints.formats import SCHEMES, WeightFormat
from quantdraft.checkpoints.parts import kept_patterns
from quantdraft.checkpoints.stored_formats import (
    HEAD,
    RARE_EMBEDDINGS,
    USUAL_EMBEDDINGS,
    linear_modules,
    matches,
)
from quantdraft.checkpoints.weights import TensorInfo
from quantdraft.errors import UndefinedMetricError
from quantdraft.quantize.recipe import Recipe


def weight_format(recipe: Recipe) -> WeightFormat | None:
    """Return the format that the recipe gives to Linears, or None where it leaves them.

    Raises UndefinedMetricError for a verbatim recipe: what it makes is known once it has run.
    """
    if recipe.modifiers is not None:
        raise UndefinedMetricError(
            f"recipe {recipe.name!r} is llm-compressor's own: what it stores is known once it ran"
        )
    if recipe.scheme is None or recipe.scheme == "none":
        return None
    fmt = SCHEMES[recipe.scheme]
    if recipe.backend == "gptqmodel":
        fmt = replace(fmt, library="gptq")
    return replace(fmt, group_size=recipe.group_size) if recipe.group_size else fmt


def head_format(recipe: Recipe) -> WeightFormat | None:
    """Return the format that the recipe gives to the output head; None where it keeps it.

    A head of the body's width shares its format, so that one config group is enough.
    """
    body = weight_format(recipe)
    if recipe.lm_head == "keep" or body is None:
        return None
    num_bits = 8 if recipe.lm_head == "8-bit" else 4
    if num_bits == body.num_bits:
        return body
    return SCHEMES["W8A16" if num_bits == 8 else "W4A16"]


def has_one_group(recipe: Recipe) -> bool:
    """Return True when one config group is enough, as vLLM's draft_model loader requires."""
    return head_format(recipe) in {None, weight_format(recipe)}


def ignored_names(recipe: Recipe, tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Return patterns of the modules that stay as they are, for the quantization config.

    They are not anchored: an engine may load a draft under a prefix ('draft_model.lm_head').
    tensors: the draft's; its routers, towers and the like are named too
    """
    names = [n for n in recipe.ignore if n != HEAD or recipe.lm_head == "keep"]
    if recipe.lm_head == "keep" and HEAD not in names:
        names.append(HEAD)
    patterns = [n if n.startswith("re:") else f"re:(.*\\.)?{re.escape(n)}$" for n in names]
    kept = [pattern for pattern in kept_patterns(tensors) if pattern not in patterns]
    modules = [name.rpartition(".")[0] for name in tensors]
    has_rare = any(re.fullmatch(RARE_EMBEDDINGS, module) for module in modules)
    tables = [USUAL_EMBEDDINGS, RARE_EMBEDDINGS] if has_rare else [USUAL_EMBEDDINGS]
    return [*patterns, *kept, *(f"re:{each}$" for each in tables)]


def formats_by_module(recipe: Recipe, tensors: Mapping[str, TensorInfo]) -> dict[str, WeightFormat]:
    """Return the modules that the recipe quantizes with their formats, in order of `tensors`."""
    body, head = weight_format(recipe), head_format(recipe)
    ignored = ignored_names(recipe, tensors)
    if body is None:
        return {}
    return {
        module: head if module.split(".")[-1] == HEAD and head is not None else body
        for module in linear_modules(tensors)
        if not matches(module, ignored)
    }
