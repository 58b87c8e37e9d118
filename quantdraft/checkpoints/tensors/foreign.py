"""Read the integers and scales that other libraries store: AutoAWQ, ModelOpt, FP8, FBGEMM.

Each layout is that of the library's own writer; tests compare with its reader where one is
installed. `unpacking` dispatches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from quantdraft.checkpoints.formats import WeightFormat
from quantdraft.checkpoints.layouts import FP8_SCALES
from quantdraft.checkpoints.tensors.microscaling import exponents, unpack_e2m1
from quantdraft.checkpoints.tensors.packing import unpack_awq, unpack_int32, unpack_rows_in_bytes
from quantdraft.errors import CheckpointError


class Values(NamedTuple):
    """One weight; value = (integer - zero_point) * scale.

    integers:   (out, in) int8 or float8_e4m3fn
    scale:      (out, groups), or one per block (rows, columns), float32
    zero_point: (out, groups) int8, or None
    """

    integers: Tensor
    scale: Tensor
    zero_point: Tensor | None = None


def unpack_foreign(parts: Mapping[str, Tensor], fmt: WeightFormat) -> Values:
    """Return a module's integers and scales. parts: its tensors by the part's name.

    Raises KeyError for a part that is missing.
    """
    return _LIBRARIES[fmt.library](parts, fmt)


def _unpack_awq(parts: Mapping[str, Tensor], fmt: WeightFormat) -> Values:
    """AutoAWQ's GEMM layout: transposed, packed along the outputs, interleaved."""
    integers = unpack_awq(parts["qweight"]).T.contiguous()
    zeros = unpack_awq(parts["qzeros"]).T.contiguous()
    return Values(integers, parts["scales"].float().T.contiguous(), zeros)


def _unpack_awq_gemv(parts: Mapping[str, Tensor], fmt: WeightFormat) -> Values:
    """AutoAWQ's GEMV layout: rows are outputs, scales and zero points are padded."""
    packed = parts["qweight"]
    columns = packed.shape[1] * 8
    groups = columns // (fmt.group_size or columns)
    zeros = unpack_int32(parts["qzeros"], 4, groups)
    scale = parts["scales"][:, :groups].float()
    return Values(unpack_int32(packed, 4, columns), scale, zeros)


def _unpack_modelopt(parts: Mapping[str, Tensor], fmt: WeightFormat) -> Values:
    weight, scale = parts["weight"], parts["weight_scale"]
    if fmt.scale_type == "e4m3":  # NVFP4: E2M1 in groups, one float for all
        _require_type(weight, torch.uint8, fmt)
        scales = scale.float() * parts["weight_scale_2"].float()
        return Values(unpack_e2m1(weight), scales / 2)
    if fmt.scale_type == "e8m0":
        _require_type(weight, torch.float8_e4m3fn, fmt)
        return Values(weight, exponents(scale))
    if fmt.kind == "int" and fmt.num_bits == 4:
        return _unpack_modelopt_int4(parts, fmt)
    _require_type(weight, torch.int8 if fmt.kind == "int" else torch.float8_e4m3fn, fmt)
    return Values(weight, _shape_scale(scale, weight, fmt))


def _unpack_modelopt_int4(parts: Mapping[str, Tensor], fmt: WeightFormat) -> Values:
    _require_type(parts["weight"], torch.uint8, fmt)
    integers, scale = unpack_rows_in_bytes(parts["weight"]), parts["weight_scale"].float()
    if fmt.activations is None:
        return Values(integers, scale)
    # W4A8: the 4-bit value is rounded once more, to FP8 under one scale, in which it is multiplied.
    size = integers.shape[1] // scale.shape[1]
    one = parts["weight_scale_2"].float()
    rounded = integers.float() * scale.repeat_interleave(size, 1) / one
    limit = torch.finfo(torch.float8_e4m3fn).max
    stored = rounded.clamp(-limit, limit).to(torch.float8_e4m3fn)
    return Values(stored, one.reshape(1, 1).repeat_interleave(scale.shape[1], 1).expand_as(scale))


def _unpack_fp8(parts: Mapping[str, Tensor], fmt: WeightFormat) -> Values:
    weight = parts["weight"]
    _require_type(weight, torch.float8_e4m3fn, fmt)
    scale = next(parts[name] for name in FP8_SCALES if name in parts)
    if scale.dtype == torch.uint8:
        scale = exponents(scale)
    return Values(weight, _shape_scale(scale, weight, fmt))


def _unpack_fbgemm(parts: Mapping[str, Tensor], fmt: WeightFormat) -> Values:
    weight = parts["weight"]
    _require_type(weight, torch.float8_e4m3fn, fmt)
    return Values(weight, _shape_scale(parts["weight_scale"], weight, fmt))


def _shape_scale(scale: Tensor, weight: Tensor, fmt: WeightFormat) -> Tensor:
    """Return float scales of the shape that the format says; one for all is repeated per row."""
    rows, columns = weight.shape
    if fmt.has_one_scale:
        return scale.float().reshape(1, 1).expand(rows, 1).contiguous()
    return scale.float().reshape(fmt.scale_shape((rows, columns)))


def _require_type(tensor: Tensor, dtype: torch.dtype, fmt: WeightFormat) -> None:
    if tensor.dtype != dtype:
        raise CheckpointError(
            f"a {fmt.name} weight is stored as {tensor.dtype} where {dtype} belongs: "
            "the checkpoint claims to be quantized and is not."
        )


def unpack_experts(blocks: Tensor, scales: Tensor) -> Tensor:
    """Return gpt-oss's experts as transformers holds them, (experts, in, out) float32.

    blocks: (experts, out, groups, 16) uint8, two E2M1 numbers a byte, the first in the low half
    scales: (experts, out, groups) uint8 exponents
    """
    experts, rows, groups, half = blocks.shape
    values = unpack_e2m1(blocks.reshape(-1, half)).float() / 2
    values *= exponents(scales).reshape(-1, 1)
    return values.reshape(experts, rows, groups * half * 2).transpose(1, 2).contiguous()


_LIBRARIES: Mapping[str, Callable[[Mapping[str, Tensor], WeightFormat], Values]] = {
    "awq": _unpack_awq,
    "awq-gemv": _unpack_awq_gemv,
    "modelopt": _unpack_modelopt,
    "fp8": _unpack_fp8,
    "fbgemm_fp8": _unpack_fbgemm,
}
