"""Weight-only integers turned into floats in every call: kernels for many rows.

At few rows they are slow: they are offered from `min_rows` on, and on a GPU alone. A CPU needs
hundreds of rows before they are faster than its int4 kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantdraft.checkpoints.tensors.unpacking import Unpacked
from quantdraft.engines.kernels.linear import KernelLinear, group_size_of, row_scales


class Int4DequantizingLinear(KernelLinear):
    """4-bit weights in groups; a byte holds columns j (low half) and j + in / 2 (high half)."""

    kernel = "int4_dequantized"
    group_sizes = (32, 64, 128, 256)
    min_rows = 17

    halves: Tensor
    scale: Tensor
    zero_point: Tensor | None

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        group_size = group_size_of(weight, self.group_sizes)
        if weight.scale.shape[1] % 2:
            raise ValueError("halves of a row need an even number of groups")
        zeros = weight.zero_point
        super().__init__(
            weight.integers.shape,
            bias,
            dtype,
            weight.column_order,
            halves=pack_halves(weight.integers),
            scale=weight.scale.to(dtype).contiguous(),
            zero_point=None if zeros is None else zeros.to(torch.int8),
        )
        self.group_size = group_size

    def _multiply(self, rows: Tensor) -> Tensor:
        return rows @ self.values(rows.dtype).T

    def values(self, dtype: torch.dtype) -> Tensor:
        """Return the weight that the integers stand for, (out, in), columns as they are stored."""
        low, high = self.halves & 15, self.halves >> 4
        integers = torch.cat([low, high], dim=1).to(torch.int8) - 8
        groups = integers.view(self.out_features, -1, self.group_size)
        if self.zero_point is not None:  # differences lie in -15..15
            groups = groups - self.zero_point[:, :, None]
        values = groups.to(dtype) * self.scale[:, :, None].to(dtype)
        return values.view(self.out_features, self.in_features)


class Int8DequantizingLinear(KernelLinear):
    """8-bit weights with one scale a row, which multiplies the product."""

    kernel = "int8_dequantized"
    min_rows = 9

    integers: Tensor
    scale: Tensor

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(
            weight.integers.shape,
            bias,
            dtype,
            integers=weight.integers.to(torch.int8).contiguous(),
            scale=row_scales(weight).to(dtype),
        )

    def _multiply(self, rows: Tensor) -> Tensor:
        return nn.functional.linear(rows, self.integers.to(rows.dtype)) * self.scale.to(rows.dtype)


def pack_halves(integers: Tensor) -> Tensor:
    """Pack integers in -8..7, (out, in), into bytes: column j low, column j + in / 2 high."""
    unsigned = (integers.to(torch.int16) + 8).to(torch.uint8)
    low, high = unsigned.chunk(2, dim=1)
    return (low | (high << 4)).contiguous()
