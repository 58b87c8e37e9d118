"""Translate a recipe's formats into compressed-tensors' config groups, schemes and arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantdraft.checkpoints.formats import WeightFormat
from quantdraft.checkpoints.stored_formats import HEAD
from quantdraft.checkpoints.weights import TensorInfo
from quantdraft.quantize.recipe import Recipe
from quantdraft.quantize.recipe_formats import head_format, ignored_names, weight_format

HEAD_TARGET = f"re:(.*\\.)?{HEAD}$"
KV_CACHE_FP8 = {
    "num_bits": 8,
    "type": "float",
    "strategy": "tensor",
    "dynamic": False,
    "symmetric": True,
}


def quantization_config(recipe: Recipe, tensors: Mapping[str, TensorInfo]) -> Any:
    """Return the QuantizationConfig of a recipe: a group for the body, and one for a head apart.

    tensors: the draft's
    """
    from compressed_tensors.quantization import QuantizationConfig

    body, head = weight_format(recipe), head_format(recipe)
    groups = {}
    if head is not None and head != body:
        # First, because the first group that matches a tensor wins.
        groups["head"] = scheme(head, HEAD_TARGET)
    if body is not None:
        # To vLLM a head is no Linear: it finds the head's scheme by its name alone.
        named = [HEAD_TARGET] if head == body else []
        groups["group_0"] = scheme(body, "Linear", *named)
    return QuantizationConfig(config_groups=groups, ignore=ignored_names(recipe, tensors))


def scheme(fmt: WeightFormat, *targets: str) -> Any:
    """Return one format for the modules that `targets` name, as a QuantizationScheme."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    strategy = "block" if fmt.block else "group" if fmt.group_size else "channel"
    weights = QuantizationArgs(
        num_bits=fmt.num_bits,
        type=fmt.kind,
        strategy="tensor_group" if fmt.scale_type == "e4m3" else strategy,
        group_size=fmt.group_size,
        block_structure=list(fmt.block) if fmt.block else None,
        symmetric=fmt.is_symmetric,
        dynamic=False,
        **_scale_dtype(fmt),
    )
    return QuantizationScheme(
        targets=list(targets),
        weights=weights,
        input_activations=_input_args(fmt),
        format=fmt.layout,
    )


def _input_args(fmt: WeightFormat) -> Any:
    from compressed_tensors.quantization import QuantizationArgs

    if fmt.activations is None:
        return None
    is_nvfp4 = fmt.scale_type == "e4m3"
    in_groups = "tensor_group" if is_nvfp4 else "group"
    one_or_token = "tensor" if fmt.has_static_inputs else "token"
    static = {"observer": "static_minmax"} if fmt.has_static_inputs else {}
    return QuantizationArgs(
        num_bits=4 if fmt.activations == "float4" else 8,
        type="int" if fmt.activations == "int8" else "float",
        strategy=in_groups if fmt.input_group_size else one_or_token,
        group_size=fmt.input_group_size,
        symmetric=True,
        # NVFP4's groups have scales of their own, under one that is calibrated
        dynamic="local" if is_nvfp4 else not fmt.has_static_inputs,
        **static,
        **(_scale_dtype(fmt) if fmt.input_group_size else {}),
    )


def _scale_dtype(fmt: WeightFormat) -> dict[str, Any]:
    import torch

    if fmt.scale_type == "float":
        return {}
    dtype = torch.float8_e4m3fn if fmt.scale_type == "e4m3" else torch.uint8
    return {"scale_dtype": dtype, "zp_dtype": dtype}
