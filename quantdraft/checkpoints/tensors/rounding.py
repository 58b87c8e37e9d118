"""Round a Linear's inputs as the scheme's kernels do, without their libraries.

Conventions are compressed-tensors' and, for LLM.int8(), bitsandbytes': other engines choose scales
that differ in the last bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantdraft.checkpoints.formats import LLM_INT8_THRESHOLD, WeightFormat
from quantdraft.checkpoints.tensors.microscaling import round_to_e2m1

LARGEST = {"int8": 127.5, "float8": 448.0, "float4": 6.0}
# Exponent of the largest power of two that an element holds: 448 = 1.75 * 2^8, 6 = 1.5 * 2^2.
MX_OFFSET = {"float8": 8, "float4": 2}


def round_inputs(inputs: Tensor, fmt: WeightFormat, static_scale: Tensor | None = None) -> Tensor:
    """Round a Linear's inputs to the scheme's numbers; weight-only schemes leave them unchanged.

    inputs:       (..., in); symmetric, one scale per token, or per token and group
    static_scale: (1,) float, what the file holds for a calibrated scheme: the scale itself, or for
                  NVFP4 the factor that its groups' scales are stored with
    """
    if fmt.activations is None:
        return inputs
    if fmt.library == "bitsandbytes":
        return _round_llm_int8(inputs)
    if fmt.has_static_inputs and fmt.scale_type == "float":
        assert static_scale is not None  # the format says that the file holds one
        return _round_to_scale(inputs, static_scale.to(inputs), fmt)
    num_inputs = inputs.shape[-1]
    width = fmt.input_group_size or (fmt.block[1] if fmt.block else num_inputs)
    padded = torch.nn.functional.pad(inputs, (0, -num_inputs % width))
    groups = padded.reshape(*inputs.shape[:-1], -1, width)
    largest = groups.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    if fmt.input_bound is not None:
        largest = largest.clamp(max=fmt.input_bound)
    rounded = _round_to_scale(groups, _choose_scale(largest, fmt, static_scale), fmt)
    return rounded.reshape(padded.shape)[..., :num_inputs]


def _choose_scale(largest: Tensor, fmt: WeightFormat, factor: Tensor | None) -> Tensor:
    assert fmt.activations is not None  # checked by the caller
    if fmt.scale_type == "e8m0" and fmt.activations in MX_OFFSET:
        # Up to the next power of two from 1.75 times one, as compressed-tensors does.
        return torch.exp2((largest / 0.875).log2().floor() - MX_OFFSET[fmt.activations])
    scale = largest / LARGEST[fmt.activations]
    if factor is None or fmt.scale_type != "e4m3":
        return scale
    stored = (scale * factor.to(scale)).clamp(max=LARGEST["float8"]).to(torch.float8_e4m3fn)
    stored_scale = stored.to(scale.dtype)
    return torch.where(stored_scale == 0, 0.125, stored_scale) / factor.to(scale)


def _round_to_scale(values: Tensor, scale: Tensor, fmt: WeightFormat) -> Tensor:
    scaled = values / scale
    if fmt.activations == "int8":  # compressed-tensors halves the whole range, -128 to 127
        return scaled.round().clamp(-128, 127) * scale
    if fmt.activations == "float4":
        return round_to_e2m1(scaled) * scale
    limited = scaled.clamp(-LARGEST["float8"], LARGEST["float8"])
    return limited.to(torch.float8_e4m3fn).to(values.dtype) * scale


def _round_llm_int8(inputs: Tensor) -> Tensor:
    """Round columns without outliers to INT8 per token (arXiv:2208.07339), in [-127, 127]."""
    rows = inputs.reshape(-1, inputs.shape[-1])
    is_outlier = (rows.abs() >= LLM_INT8_THRESHOLD).any(0)
    plain = rows.masked_fill(is_outlier, 0)
    scale = plain.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
    rounded = (plain / scale).round() * scale
    return torch.where(is_outlier, rows, rounded).reshape(inputs.shape)
