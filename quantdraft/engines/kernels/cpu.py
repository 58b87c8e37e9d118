"""CPU kernels of torch's own libraries: weights stay the checkpoint's integers.

A weight is `(integer - zero_point) * scale`; see `unpacking.Unpacked` for the shapes.
FP8 has no kernel: torch converts every weight first, which takes 25 to 60 times bf16's time.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from quantdraft.checkpoints.tensors.unpacking import Unpacked
from quantdraft.engines.kernels.linear import KernelLinear, group_size_of, pad_matrix, row_scales
from quantdraft.engines.kernels.packed_products import (
    PackedProduct,
    packed_product,
    register_product,
)


class Int4Linear(KernelLinear):
    """4-bit weights in groups, activations in bf16: `aten._weight_int4pack_mm_for_cpu`.

    torch has vector code for bf16 alone: in float32 the same product takes 12 times as long. A
    float32 model's inputs and outputs therefore pass through bf16, as do the scales: each rounding
    is 2**-9 at most, under the step of 4-bit weights by two orders of magnitude.
    """

    kernel = "int4pack_cpu"
    compute_dtype = torch.bfloat16
    group_sizes = (32, 64, 128, 256)
    row_multiple = 16

    packed: Tensor
    scale_and_zero: Tensor

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        group_size = group_size_of(weight, self.group_sizes)
        integers = pad_matrix(weight.integers, self.row_multiple).int() + 8
        super().__init__(
            weight.integers.shape,
            bias,
            dtype,
            weight.column_order,
            packed=torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers, 1),
            scale_and_zero=tinygemm_scales(weight, self.row_multiple).to(self.compute_dtype),
        )
        self.group_size = group_size

    def _multiply(self, rows: Tensor) -> Tensor:
        out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows.to(self.compute_dtype).contiguous(),
            self.packed,
            self.group_size,
            self.scale_and_zero,
        )
        return out


class Int8WeightOnlyLinear(KernelLinear):
    """8-bit weights, one scale a row, activations in bf16: `aten._weight_int8pack_mm`.

    Through bf16 for the same reason as `Int4Linear`: it takes a quarter of float32's time.
    """

    kernel = "int8pack_cpu"
    compute_dtype = torch.bfloat16

    integers: Tensor
    scale: Tensor

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(
            weight.integers.shape,
            bias,
            dtype,
            integers=weight.integers.to(torch.int8).contiguous(),
            scale=row_scales(weight).to(self.compute_dtype),
        )

    def _multiply(self, rows: Tensor) -> Tensor:
        flat = rows.to(self.compute_dtype).contiguous()
        out: Tensor = torch.ops.aten._weight_int8pack_mm(flat, self.integers, self.scale)
        return out


class Int8DynamicLinear(KernelLinear):
    """8-bit weights and activations: `quantized.linear_dynamic`, a scale per token.

    The operator has one activation scale per call: several rows are brought to one height first.
    Without VNNI it adds pairs of products in 16 bits, which saturate (relative error 0.16 on random
    weights): activations then keep 7 bits (`reduce_range`), at little cost in time.
    """

    number: Tensor

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        scale = row_scales(weight)
        super().__init__(weight.integers.shape, bias, torch.float32)
        self.weight_bytes = weight.integers.numel() + scale.numel() * 4
        reduce_range = not has_vnni()
        self.kernel = "int8_dynamic_cpu" + ("_7bit" if reduce_range else "")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = torch._make_per_channel_quantized_tensor(
                weight.integers.to(torch.int8).contiguous(),
                scale.double(),
                torch.zeros(self.out_features, dtype=torch.long),
                0,
            )
            packed = torch.ops.quantized.linear_prepack(values, None)
        linear = torch.ops.quantized.linear_dynamic
        register_product(self, lambda x: linear(x, packed, reduce_range))

    def _multiply(self, rows: Tensor) -> Tensor:
        flat = rows.float()
        if len(flat) == 1:
            return packed_product(flat, self.number, self.out_features)
        height = flat.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        return packed_product(flat / height, self.number, self.out_features) * height


class Int8OnednnLinear(KernelLinear):
    """8-bit weights and activations, one activation scale a token: oneDNN's `qlinear`.

    Inputs are unsigned bytes with zero point 128. Without VNNI the sums saturate (relative error
    0.12 on random weights), and with 7-bit inputs it is slower than `Int8DynamicLinear`.
    """

    kernel = "int8_onednn_cpu"
    zero_point = 128

    number: Tensor

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        if not has_vnni():
            raise ValueError("without VNNI the sums of this kernel saturate")
        scale = row_scales(weight)
        super().__init__(weight.integers.shape, bias, torch.float32)
        self.weight_bytes = weight.integers.numel() + scale.numel() * 4
        register_product(self, self._product(weight.integers.to(torch.int8), scale))

    def _product(self, integers: Tensor, scale: Tensor) -> PackedProduct:
        packed = torch.ops.onednn.qlinear_prepack(integers.contiguous(), None)
        zeros = torch.zeros(self.out_features, dtype=torch.long)
        qlinear, zero_point = torch.ops.onednn.qlinear_pointwise, self.zero_point

        def product(x: Tensor) -> Tensor:
            largest = x.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
            step = largest / 127
            levels = ((x / step).round() + zero_point).to(torch.uint8)
            out: Tensor = qlinear(
                *(levels, 1.0, zero_point, packed, scale, zeros, None),
                *(1.0, 0, torch.float32, "none", [], ""),
            )
            return out * step

        return product

    def _multiply(self, rows: Tensor) -> Tensor:
        return packed_product(rows.float(), self.number, self.out_features)


def tinygemm_scales(weight: Unpacked, row_multiple: int) -> Tensor:
    """Return scales as the int4 kernels of CPU and CUDA take them, (groups, rows, 2) float32.

    Their weight is (u - 8) * scale + zero, with u in 0..15; rows are padded with zeros.
    """
    scale = weight.scale.float()
    zero = torch.zeros_like(scale)
    if weight.zero_point is not None:
        zero = -weight.zero_point.float() * scale
    pair = [pad_matrix(scale, row_multiple).T, pad_matrix(zero, row_multiple).T]
    return torch.stack(pair, dim=-1).contiguous()


def has_vnni() -> bool:
    """Return True when this CPU adds products of bytes in 32 bits: 8-bit activations are safe."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_vnni") or capabilities.get("avx_vnni"))
