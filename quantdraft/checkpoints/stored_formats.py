"""Read from a stored checkpoint's config which module has which format.

Plain data, no torch. `formats` says what a format is; `quantize` what a recipe makes of a module.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

from quantdraft.checkpoints import foreign_configs
from quantdraft.checkpoints.formats import WeightFormat
from quantdraft.checkpoints.parts import kept_modules, tower_tensors
from quantdraft.checkpoints.weights import FLOAT_DTYPES, TensorInfo
from quantdraft.errors import CheckpointError

HEAD = foreign_configs.HEAD
# Of compressed-tensors.
LAYOUTS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
)
KV_SCALES = (".k_scale", ".v_scale")
# Embedding tables are looked up, not multiplied: no scheme here quantizes them.
USUAL_EMBEDDINGS = (
    r"(.*\.)?(embed_(?!out$)\w+|embeddings|wte|wpe"
    r"|word_embeddings|position_embeddings|tok_embeddings)"
)
# Of CTRL, the first GPT, and BERT as a decoder.
RARE_EMBEDDINGS = r"(.*\.)?(transformer\.w|tokens_embed|positions_embed|token_type_embeddings)"
EMBEDDINGS = f"{USUAL_EMBEDDINGS}|{RARE_EMBEDDINGS}"


def linear_modules(tensors: Mapping[str, TensorInfo]) -> Iterator[str]:
    """Yield the names of the modules with a matrix to multiply by: 2-D weights but embeddings.

    Left out is what stays in floats under every recipe: routers, towers, see `kept_modules`.
    """
    kept = set(kept_modules(tensors))
    for name, info in tensors.items():
        module, _, parameter = name.rpartition(".")
        is_matrix = parameter == "weight" and len(info.shape) == 2
        if module in kept and info.dtype in FLOAT_DTYPES:
            continue
        if is_matrix and not module.endswith("norm") and not re.fullmatch(EMBEDDINGS, module):
            yield module


def matches(module: str, patterns: Iterable[str]) -> bool:
    """Return True when a name or a `re:` pattern of a quantization config matches the module."""
    return any(
        re.match(p.removeprefix("re:"), module) is not None if p.startswith("re:") else p == module
        for p in patterns
    )


def stored_format(quantization: Mapping[str, Any], module: str) -> WeightFormat | None:
    """Return the format that a quantization config claims for a module; None: not quantized.

    Reads the configs of compressed-tensors and of the libraries of `foreign_configs`; None for
    any other method.
    """
    if quantization.get("quant_method") in foreign_configs.READERS:
        return foreign_configs.foreign_format(quantization, module)
    if matches(module, quantization.get("ignore") or ()):
        return None
    groups = list((quantization.get("config_groups") or {}).values())
    # A name is narrower than a class: 're:.*lm_head$' wins over 'Linear'.
    exact = [g for g in groups if module in g["targets"]]
    named = exact or [g for g in groups if matches(module, g["targets"])]
    by_class = [g for g in groups if "Linear" in g["targets"]]
    chosen = (named or by_class or [None])[0]
    if chosen is None or not chosen.get("weights"):
        return None
    return _with_layout(_read_format(chosen), chosen.get("format") or quantization.get("format"))


def kv_scales(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Return the scales that a quantized cache leaves beside each attention's projections."""
    scales: dict[str, TensorInfo] = {}
    towers = tower_tensors(tensors)
    for name, info in tensors.items():
        attention, _, rest = name.replace(".qkv_proj.", ".k_proj.").rpartition(".k_proj.")
        if rest == "weight" and name not in towers:
            scales |= {attention + ending: replace(info, shape=(1,)) for ending in KV_SCALES}
    return scales


def _with_layout(fmt: WeightFormat, layout: str | None) -> WeightFormat:
    """Return the format with the layout that the config names, where it is another than usual."""
    if layout in {None, "mixed-precision", fmt.layout}:
        return fmt
    if layout not in LAYOUTS:
        raise CheckpointError(
            f"the quantization config has the format {layout!r}, which this quantdraft does not "
            f"read; read are {', '.join(LAYOUTS)}."
        )
    return replace(fmt, own_layout=layout)


def _read_format(group: Mapping[str, Any]) -> WeightFormat:
    weights, inputs = group["weights"], group.get("input_activations") or {}
    strategy, scale_type = weights.get("strategy"), _scale_type(weights)
    known = {"tensor", "channel", "group", "block", "tensor_group"}
    if weights.get("type") not in {"int", "float"} or strategy not in known:
        raise CheckpointError(
            f"the quantization config has weights of type {weights.get('type')!r} and strategy "
            f"{strategy!r}, which this quantdraft does not read."
        )
    _require_read(weights, scale_type)
    _require_rounded_inputs(inputs)
    if group.get("output_activations"):
        raise CheckpointError(
            "the quantization config rounds a layer's outputs ('output_activations'), which this "
            "quantdraft does not read. Export the draft without them."
        )
    is_static = bool(inputs) and inputs.get("dynamic") is not True  # 'local' is half static
    in_groups = inputs.get("strategy") in {"group", "tensor_group"}
    return WeightFormat(
        num_bits=weights["num_bits"],
        kind=weights["type"],
        group_size=weights["group_size"] if strategy in {"group", "tensor_group"} else None,
        block=tuple(weights["block_structure"]) if strategy == "block" else None,
        activations=_activations(inputs),
        is_symmetric=weights.get("symmetric", True),
        input_group_size=inputs["group_size"] if in_groups else None,
        has_static_inputs=is_static,
        scale_type=scale_type,
        has_one_scale=strategy == "tensor",
        has_column_order=weights.get("actorder") == "group",
    )


def _require_read(weights: Mapping[str, Any], scale_type: str) -> None:
    """Raise CheckpointError for numbers of a width that is not read."""
    bits, kind = weights["num_bits"], weights["type"]
    if weights.get("dynamic"):
        raise CheckpointError(
            "the quantization config has weights that are 'dynamic': rounded anew in every step, "
            "without stored scales, which this quantdraft does not read. Export the draft with "
            "static weights."
        )
    is_read = (
        2 <= bits <= 8 if kind == "int" else bits == 8 or (bits == 4 and scale_type != "float")
    )
    if not is_read:
        raise CheckpointError(
            f"the quantization config has weights of type {kind!r} with {bits} bits under the "
            f"strategy {weights.get('strategy')!r}, which this quantdraft does not read. Read are "
            "integers of 2 to 8 bits, FP8, NVFP4 and MXFP4."
        )


def _require_rounded_inputs(inputs: Mapping[str, Any]) -> None:
    """Raise CheckpointError for inputs that are rounded in a way that is not read here."""
    if not inputs:
        return
    known = {("int", 8), ("float", 8), ("float", 4)}
    if (inputs.get("type"), inputs.get("num_bits")) not in known:
        raise CheckpointError(
            f"the quantization config rounds inputs to the type {inputs.get('type')!r} with "
            f"{inputs.get('num_bits')} bits, which this quantdraft does not read. Read are INT8, "
            "FP8 and FP4."
        )
    if not inputs.get("symmetric", True):
        raise CheckpointError(
            "the quantization config rounds inputs around a zero point ('symmetric': false of "
            "'input_activations'), which this quantdraft does not read. Export the draft with "
            "symmetric inputs."
        )
    if inputs.get("dynamic") is True and inputs.get("strategy") == "tensor":
        raise CheckpointError(
            "the quantization config finds one scale for the inputs of all tokens at once "
            "('dynamic' with the strategy 'tensor'): a token's numbers depend on its batch and on "
            "later tokens, and no measurement of it holds. Export the draft with the strategy "
            "'token', or with static inputs."
        )


def _activations(inputs: Mapping[str, Any]) -> Literal["int8", "float8", "float4"] | None:
    if not inputs:
        return None
    if inputs["type"] == "int":
        return "int8"
    return "float4" if inputs["num_bits"] == 4 else "float8"


def _scale_type(weights: Mapping[str, Any]) -> Literal["float", "e4m3", "e8m0"]:
    """Return the type of the scales, by the strategies and group sizes of NVFP4 and MX."""
    if weights.get("strategy") == "tensor_group":
        return "e4m3"
    is_mx = weights.get("type") == "float" and weights.get("group_size") == 32
    return "e8m0" if is_mx and weights.get("strategy") == "group" else "float"
