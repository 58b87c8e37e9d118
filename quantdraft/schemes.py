"""What each scheme stores: bits, scales and the tensors they become. Plain data, no torch.

The layouts are compressed-tensors': `pack-quantized` packs 32/bits integers into an int32 word
along a row, `int-quantized` and `float-quantized` store one byte a weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from quantdraft.errors import CheckpointError
from quantdraft.recipe import Recipe
from quantdraft.weights import TensorInfo

HEAD = "lm_head"
# Embedding tables are looked up, not multiplied: no scheme here quantizes them.
EMBEDDINGS = r"(.*\.)?(embed_\w+|wte|wpe|word_embeddings|position_embeddings|tok_embeddings)"
# Tensors that a quantized module may own, besides `weight` itself.
QUANTIZED_SUFFIXES = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point")


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How a Linear's weight is stored, and whether its inputs are quantized as well."""

    num_bits: int
    kind: Literal["int", "float"]
    group_size: int | None = None  # weights of a row that share a scale; None: the whole row
    block: tuple[int, int] | None = None  # rows and columns that share a scale
    activations: Literal["int8", "float8"] | None = (
        None  # per token, or per group in a block format
    )
    is_symmetric: bool = True

    @property
    def layout(self) -> str:
        """The name compressed-tensors has for this layout."""
        if self.kind == "float":
            return "float-quantized"
        return "int-quantized" if self.activations else "pack-quantized"

    @property
    def value_dtype(self) -> str:
        """The stored element type, as safetensors spells it."""
        return {"float-quantized": "F8_E4M3", "int-quantized": "I8"}.get(self.layout, "I32")

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Shape of the scales of a weight of shape (out, in)."""
        rows, columns = shape
        if self.block is not None:
            return math.ceil(rows / self.block[0]), math.ceil(columns / self.block[1])
        return rows, 1 if self.group_size is None else math.ceil(columns / self.group_size)

    def stored(self, module: str, weight: TensorInfo) -> dict[str, TensorInfo]:
        """The tensors that a float weight of shape (out, in) becomes, by name."""
        rows, columns = weight.shape
        tensors = {
            f"{module}.weight_scale": replace(weight, shape=self.scale_shape(weight.shape)),
        }
        if self.layout != "pack-quantized":
            return tensors | {f"{module}.weight": replace(weight, dtype=self.value_dtype)}
        words = math.ceil(columns * self.num_bits / 32)
        packed = {
            f"{module}.weight_packed": replace(weight, dtype="I32", shape=(rows, words)),
            f"{module}.weight_shape": replace(weight, dtype="I64", shape=(2,)),
        }
        return tensors | packed


SCHEMES: dict[str, WeightFormat] = {
    "FP8_DYNAMIC": WeightFormat(8, "float", activations="float8"),
    "FP8_BLOCK": WeightFormat(8, "float", block=(128, 128), activations="float8"),
    "W8A8": WeightFormat(8, "int", activations="int8"),
    "W8A16": WeightFormat(8, "int"),
    "W4A16": WeightFormat(4, "int", group_size=128),
}


def weight_format(recipe: Recipe) -> WeightFormat | None:
    """What the recipe makes of the Linears, or None for the identity recipe."""
    if recipe.is_identity:
        return None
    fmt = SCHEMES[recipe.scheme]
    return replace(fmt, group_size=recipe.group_size) if recipe.group_size else fmt


def head_format(recipe: Recipe) -> WeightFormat | None:
    """What the recipe makes of the output head; None where the head is kept.

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
    """True when one config group is enough, as vLLM's draft_model loader requires."""
    return head_format(recipe) in {None, weight_format(recipe)}


def ignored_names(recipe: Recipe) -> list[str]:
    """Un-anchored patterns of the modules that stay as they are, for the quantization config.

    An engine may load a draft under a prefix ('draft_model.lm_head'): exact names would not match.
    """
    names = [n for n in recipe.ignore if n != HEAD or recipe.lm_head == "keep"]
    if recipe.lm_head == "keep" and HEAD not in names:
        names.append(HEAD)
    patterns = [n if n.startswith("re:") else f"re:(.*\\.)?{re.escape(n)}$" for n in names]
    return [*patterns, f"re:{EMBEDDINGS}$"]


def formats_by_module(recipe: Recipe, tensors: Mapping[str, TensorInfo]) -> dict[str, WeightFormat]:
    """The modules that the recipe quantizes, each with its format, in the order of `tensors`."""
    body, head, ignored = weight_format(recipe), head_format(recipe), ignored_names(recipe)
    if body is None:
        return {}
    return {
        module: head if module.split(".")[-1] == HEAD and head is not None else body
        for module in linear_modules(tensors)
        if not matches(module, ignored)
    }


def linear_modules(tensors: Mapping[str, TensorInfo]) -> Iterator[str]:
    """Names of the modules with a matrix to multiply by: 2-D weights that embed nothing."""
    for name, info in tensors.items():
        module, _, parameter = name.rpartition(".")
        is_matrix = parameter == "weight" and len(info.shape) == 2
        if is_matrix and not module.endswith("norm") and not re.fullmatch(EMBEDDINGS, module):
            yield module


def matches(module: str, patterns: Iterable[str]) -> bool:
    """True when a name, or a pattern marked `re:`, of a quantization config matches the module."""
    return any(
        re.match(p.removeprefix("re:"), module) is not None if p.startswith("re:") else p == module
        for p in patterns
    )


def stored_format(quantization: Mapping[str, Any], module: str) -> WeightFormat | None:
    """The format that a compressed-tensors config claims for a module; None: left as it was."""
    if matches(module, quantization.get("ignore") or ()):
        return None
    groups = list((quantization.get("config_groups") or {}).values())
    # A name is narrower than a class: 're:.*lm_head$' wins over 'Linear'.
    named = [g for g in groups if matches(module, g["targets"])]
    by_class = [g for g in groups if "Linear" in g["targets"]]
    chosen = (named or by_class or [None])[0]
    return None if chosen is None or not chosen.get("weights") else _read_format(chosen)


def _read_format(group: Mapping[str, Any]) -> WeightFormat:
    weights, inputs = group["weights"], group.get("input_activations")
    strategy = weights.get("strategy")
    if weights.get("type") not in {"int", "float"} or strategy not in {"channel", "group", "block"}:
        raise CheckpointError(
            f"the quantization config has weights of type {weights.get('type')!r} and strategy "
            f"{strategy!r}, which this quantdraft does not read."
        )
    activations: Literal["int8", "float8"] | None = None
    if inputs:
        activations = "int8" if inputs["type"] == "int" else "float8"
    return WeightFormat(
        num_bits=weights["num_bits"],
        kind=weights["type"],
        group_size=weights["group_size"] if strategy == "group" else None,
        block=tuple(weights["block_structure"]) if strategy == "block" else None,
        activations=activations,
        is_symmetric=weights.get("symmetric", True),
    )
