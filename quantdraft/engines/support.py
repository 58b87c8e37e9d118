"""Whether an engine loads a draft, by the formats of its weights. Each engine holds its own table.

Formats go by `WeightFormat.name`; integers of another library by "library:name". An engine's own
version may know more or less than its table; an absent entry means that nobody here has found out.
Each table says which version of the engine's source it was read from, and what was run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from quantdraft.checkpoints.dense_view import says_cache
from quantdraft.checkpoints.foreign_configs import READERS
from quantdraft.checkpoints.stored_formats import stored_format
from quantdraft.quantize.group_sizes import format_name, group_problem
from quantdraft.quantize.recipe import Recipe
from quantdraft.quantize.recipe_formats import has_one_group, weight_format

Level = Literal["no", "unknown", "part", "yes"]
LEVELS: tuple[Level, ...] = ("no", "unknown", "part", "yes")  # the worst first

INTEGERS = ("int4", "int4-fp8", "int8", "int8-static", "int8-weight-only")
FP8 = ("fp8", "fp8-static", "fp8-block")
FP4 = ("nvfp4", "nvfp4-weight-only", "mxfp4")
BITSANDBYTES = ("nf4", "fp4", "llm-int8")
OTHER_LIBRARIES = ("gptq:int4", "gptq:int8-weight-only", "awq:int4")
GPTQ_ODD = ("gptq:int2", "gptq:int3")  # widths that few kernels have
USUAL = ("dense", *INTEGERS, *FP8, *FP4, "mxfp8", *OTHER_LIBRARIES, *BITSANDBYTES)
# What other tools publish and no recipe here makes: by `quant_method`.
MODELOPT_FP8 = ("modelopt:fp8", "modelopt:fp8-static", "modelopt:fp8-block")
MODELOPT_FP4 = ("modelopt:nvfp4", "modelopt:nvfp4-weight-only")
MODELOPT_INTEGERS = tuple(f"modelopt:{name}" for name in INTEGERS)
MODELOPT = (*MODELOPT_FP8, *MODELOPT_FP4, *MODELOPT_INTEGERS, "modelopt:mxfp8")
OTHERS_FP8 = ("fp8:fp8", "fp8:fp8-static", "fp8:fp8-block", "fbgemm_fp8:fp8")
FORMATS = (*USUAL, *GPTQ_ODD, *MODELOPT, *OTHERS_FP8)

_A_LINEAR = "model.layers.0.mlp.up_proj"


@dataclass(frozen=True, slots=True)
class Support:
    """Whether an engine loads a format as a stand-alone draft, and what to know about it."""

    level: Level
    note: str | None = None


YES, NO, UNKNOWN = Support("yes"), Support("no"), Support("unknown")


@dataclass(frozen=True, slots=True)
class SupportTable:
    """What an engine, or one build of it, loads."""

    formats: Mapping[str, Support]
    kv_cache: Support = UNKNOWN  # of keys and values in FP8, whatever the weights are
    several_groups: Support | None = None  # of several config groups; None: as their formats
    # Of the formats whose kernels know some sizes of groups alone.
    group_sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def of_recipe(self, recipe: Recipe) -> Support:
        """Return what the engine does with the recipe's result.

        Raises UndefinedMetricError for a verbatim recipe, whose formats are known once it has run.
        """
        fmt = weight_format(recipe)
        stored = format_name(fmt), None if fmt is None else fmt.group_size
        if self.several_groups is not None and not has_one_group(recipe):
            return self.several_groups
        return self._worst([stored], recipe.kv_cache != "keep")

    def of_checkpoint(self, quantization: Mapping[str, Any]) -> Support:
        """Return what the engine does with a checkpoint, by the quantization part of its config."""
        return self._worst(stored_groups(quantization), says_cache(quantization))

    def _worst(self, stored: list[tuple[str, int | None]], has_fp8_cache: bool) -> Support:
        found = [self._of_format(*each) for each in stored]
        found += [self.kv_cache] * has_fp8_cache
        return min(found, key=lambda each: LEVELS.index(each.level))

    def _of_format(self, name: str, group_size: int | None) -> Support:
        found = self.formats.get(name, UNKNOWN)
        problem = group_problem(self.group_sizes.get(name), group_size)
        return found if problem is None or found.level == "no" else Support("no", problem)


def stored_names(quantization: Mapping[str, Any]) -> list[str]:
    """Return the names of a checkpoint's formats, or its library's own name."""
    return [name for name, _ in stored_groups(quantization)]


def stored_groups(quantization: Mapping[str, Any]) -> list[tuple[str, int | None]]:
    """Return the names of a checkpoint's formats, each with the size of its groups if any."""
    if not quantization:
        return [("dense", None)]
    method = str(quantization.get("quant_method"))
    if method == "awq":
        return [(f"awq:int{quantization.get('bits', 4)}", quantization.get("group_size"))]
    if method in READERS and method not in {"gptq", "bitsandbytes"}:
        return _foreign_groups(quantization, method)
    groups = (quantization.get("config_groups") or {}).values()
    if quantization.get("kv_cache_scheme") and not groups:
        return [("dense", None)]
    # As if each group were all there is: what it covers says nothing of what it is.
    alone: list[Mapping[str, Any]] = [
        {"config_groups": {"group": {**group, "targets": ["Linear"]}}, "quant_method": method}
        for group in groups
    ]
    formats = [stored_format(each, _A_LINEAR) for each in alone or [quantization]]
    return [(format_name(fmt), fmt.group_size) if fmt else (method, None) for fmt in formats]


def _foreign_groups(quantization: Mapping[str, Any], method: str) -> list[tuple[str, int | None]]:
    """Return the names of another library's formats: one, or those of its listed layers."""
    own = quantization.get("quantization") or quantization
    modules = list(own.get("quantized_layers") or ()) or [_A_LINEAR]
    found = [stored_format(quantization, module) for module in modules]
    named = [(f"{fmt.library}:{fmt.name}", fmt.group_size) for fmt in found if fmt is not None]
    return list(dict.fromkeys(named)) or [(method, None)]
