"""Read the quantization configs of other libraries: which module has which format.

One function for each `quant_method`; plain data, no torch. compressed-tensors' is `stored_formats`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from quantdraft.checkpoints.formats import BNB_BLOCK, SCHEMES, WeightFormat
from quantdraft.errors import CheckpointError

HEAD = "lm_head"
MODELOPT_ALGORITHMS: Mapping[str, WeightFormat] = {
    "FP8": WeightFormat(
        8, "float", activations="float8", has_static_inputs=True, has_one_scale=True
    ),
    "FP8_PER_CHANNEL_PER_TOKEN": WeightFormat(8, "float", activations="float8"),
    "FP8_PB_WO": WeightFormat(8, "float", block=(128, 128)),
    "NVFP4": SCHEMES["NVFP4"],
    "NVFP4_AWQ": SCHEMES["NVFP4"],
    "W4A16_NVFP4": SCHEMES["NVFP4A16"],
    "W4A16_AWQ": SCHEMES["W4A16"],
    "W4A8_AWQ": replace(SCHEMES["W4AFP8"], has_static_inputs=True),
    "W8A16": SCHEMES["W8A16"],
    "W8A8_SQ_PER_CHANNEL": replace(SCHEMES["W8A8"], has_static_inputs=True),
    "MXFP8": SCHEMES["MXFP8"],
}


def foreign_format(quantization: Mapping[str, Any], module: str) -> WeightFormat | None:
    """Return the format that another library's config claims for a module; None: not quantized.

    Raises CheckpointError for an algorithm or a layout that is not read.
    """
    return READERS[quantization["quant_method"]](quantization, module)


def is_skipped(module: str, names: Iterable[str]) -> bool:
    """Return True when a list of names that are not converted matches the module.

    Engines differ: transformers matches from the beginning or to the end, vLLM any whole part.
    """
    return any(f".{name.strip('.')}." in f".{module}." or module.endswith(name) for name in names)


def _gptq_format(quantization: Mapping[str, Any], module: str) -> WeightFormat | None:
    if module.rsplit(".", maxsplit=1)[-1] == HEAD and not quantization.get("lm_head"):
        return None
    own = dict(quantization) | _dynamic_rule(quantization, module)
    if own.get("is_skipped"):
        return None
    if own.get("bits") is None:
        raise CheckpointError("the quantization config is GPTQ's and does not say 'bits'.")
    if is_skipped(module, quantization.get("modules_to_not_convert") or ()):
        return None
    _require_plain_inputs(own)
    group_size = own.get("group_size", -1)
    return WeightFormat(
        num_bits=own["bits"],
        kind="int",
        group_size=None if group_size in {-1, None} else group_size,
        is_symmetric=bool(own.get("sym", True)),
        library="gptq",
        has_column_order=bool(own.get("desc_act")) and group_size not in {-1, None},
    )


def _require_plain_inputs(settings: Mapping[str, Any]) -> None:
    """Raise CheckpointError where a GPTQ config quantizes inputs too, as auto-round's may."""
    bits = settings.get("act_bits")
    if bits is not None and bits < 16:
        raise CheckpointError(
            f"the quantization config is GPTQ's with 'act_bits' {bits!r}; read are inputs in 16 "
            "bits. Export the draft as compressed-tensors."
        )


def _dynamic_rule(quantization: Mapping[str, Any], module: str) -> dict[str, Any]:
    """Return what the first rule that matches overrides: GPTQModel's `dynamic`."""
    for pattern, overrides in (quantization.get("dynamic") or {}).items():
        if pattern.startswith("-:"):
            if re.match(pattern.removeprefix("-:"), module):
                return {"is_skipped": True}
        elif re.match(pattern.removeprefix("+:"), module):
            return dict(overrides)
    return {}


def _bitsandbytes_format(quantization: Mapping[str, Any], module: str) -> WeightFormat | None:
    skipped = quantization.get("llm_int8_skip_modules") or [HEAD]
    if any(module == name or module.endswith(f".{name}") for name in skipped):
        return None
    if quantization.get("load_in_8bit"):
        return SCHEMES["LLM_INT8"]
    return WeightFormat(
        num_bits=4,
        kind="nf4" if quantization.get("bnb_4bit_quant_type") == "nf4" else "fp4",
        group_size=BNB_BLOCK,
        library="bitsandbytes",
        is_double=bool(quantization.get("bnb_4bit_use_double_quant")),
    )


def _awq_format(quantization: Mapping[str, Any], module: str) -> WeightFormat | None:
    skipped = [HEAD, *(quantization.get("modules_to_not_convert") or ())]
    if is_skipped(module, skipped):
        return None
    version = str(quantization.get("version") or quantization.get("format") or "gemm").lower()
    if version not in {"gemm", "gemv", "exllama"}:
        raise CheckpointError(
            f"the quantization config is AWQ's with version {version!r}; read are 'gemm', 'gemv' "
            "and 'exllama'. Quantize the model again with version 'gemm'."
        )
    bits = quantization.get("bits", quantization.get("w_bit", 4))
    if bits != 4:
        raise CheckpointError(
            f"the quantization config is AWQ's with {bits!r} bits; read are 4. Quantize the model "
            "again with 4 bits."
        )
    group_size = quantization.get("group_size", quantization.get("q_group_size", 128))
    return WeightFormat(
        num_bits=bits,
        kind="int",
        group_size=None if group_size in {-1, None} else group_size,
        is_symmetric=False,
        library="awq-gemv" if version == "gemv" else "awq",
    )


def _fp8_format(quantization: Mapping[str, Any], module: str) -> WeightFormat | None:
    """Read DeepSeek's and transformers' fine-grained FP8, and AutoFP8's and vLLM's per tensor."""
    lists = ("modules_to_not_convert", "ignored_layers", "ignore")
    skipped = [name for key in lists for name in quantization.get(key) or ()]
    if is_skipped(module, [HEAD, *skipped]):
        return None
    if quantization.get("fmt") not in {None, "e4m3"}:
        raise CheckpointError(
            f"the quantization config has FP8 weights with fmt {quantization['fmt']!r}; read is "
            "'e4m3'."
        )
    block = quantization.get("weight_block_size")
    scheme = quantization.get("activation_scheme", "dynamic")
    if scheme not in {"dynamic", "static"}:
        raise CheckpointError(
            f"the quantization config has FP8 inputs with activation_scheme {scheme!r}; read are "
            "'dynamic' and 'static'."
        )
    return WeightFormat(
        num_bits=8,
        kind="float",
        block=None if block is None else (block[0], block[1]),
        activations="float8",
        input_group_size=None if block is None else block[1],
        has_static_inputs=scheme == "static",
        has_one_scale=block is None,
        library="fp8",
    )


def _fbgemm_format(quantization: Mapping[str, Any], module: str) -> WeightFormat | None:
    if is_skipped(module, [HEAD, *(quantization.get("modules_to_not_convert") or ())]):
        return None
    bound = quantization.get("activation_scale_ub")
    return WeightFormat(
        num_bits=8,
        kind="float",
        activations="float8",
        library="fbgemm_fp8",
        input_bound=1200.0 if bound is None else float(bound),
    )


def _modelopt_format(quantization: Mapping[str, Any], module: str) -> WeightFormat | None:
    found = quantization.get("quantization")
    settings = {**quantization, **(found if isinstance(found, dict) else {})}
    layers = settings.get("quantized_layers")
    if settings.get("quant_algo") == "MIXED_PRECISION":
        own = _own_layer(layers or {}, module)
        return None if own is None else _modelopt_algorithm(own)
    excluded = [*(settings.get("exclude_modules") or ()), *(settings.get("ignore") or ())]
    if any(_is_excluded(module, pattern) for pattern in excluded):
        return None
    return _modelopt_algorithm(settings)


def _own_layer(layers: Mapping[str, Any], module: str) -> Mapping[str, Any] | None:
    found = layers.get(module)
    return found if isinstance(found, dict) else None


def _is_excluded(module: str, pattern: str) -> bool:
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), module) is not None
    return fnmatchcase(module, pattern) or is_skipped(module, [pattern])


def _modelopt_algorithm(settings: Mapping[str, Any]) -> WeightFormat | None:
    algorithm = settings.get("quant_algo")
    if algorithm is None:  # the cache alone is quantized
        return None
    algorithm = str(algorithm).upper()
    if algorithm not in MODELOPT_ALGORITHMS:
        raise CheckpointError(
            f"the quantization config is ModelOpt's with quant_algo {algorithm!r}; read are "
            f"{', '.join(MODELOPT_ALGORITHMS)}. Export the draft in one of these."
        )
    _require_no_zero_points(settings)
    fmt = replace(MODELOPT_ALGORITHMS[algorithm], library="modelopt")
    size = _group_size(settings)
    if size and fmt.group_size:
        inputs = size if fmt.input_group_size else None
        fmt = replace(fmt, group_size=size, input_group_size=inputs)
    return replace(fmt, block=(size, size)) if size and fmt.block else fmt


def _require_no_zero_points(settings: Mapping[str, Any]) -> None:
    """Raise CheckpointError where a group of ModelOpt's config is quantized asymmetrically."""
    for group in (settings.get("config_groups") or {}).values():
        for part, name in (("input_activations", "inputs"), ("weights", "weights")):
            if (group.get(part) or {}).get("symmetric") is False:
                raise CheckpointError(
                    f"the quantization config is ModelOpt's and rounds {name} around a zero point "
                    f"('{part}' with 'symmetric' false), which quantdraft does not read. Export "
                    f"the draft with symmetric {name}."
                )


def _group_size(settings: Mapping[str, Any]) -> int | None:
    if settings.get("group_size"):
        return int(settings["group_size"])
    for group in (settings.get("config_groups") or {}).values():
        weights = group.get("weights") or {}
        if weights.get("group_size"):
            return int(weights["group_size"])
    return None


READERS: Mapping[str, Callable[[Mapping[str, Any], str], WeightFormat | None]] = {
    "gptq": _gptq_format,
    "bitsandbytes": _bitsandbytes_format,
    "awq": _awq_format,
    "fp8": _fp8_format,
    "fbgemm_fp8": _fbgemm_format,
    "modelopt": _modelopt_format,
    "modelopt_fp4": _modelopt_format,
}
