"""Weight-only integers turned into floats in every call, for many rows: the matrix product rules.

For few rows these are slow: candidates from `min_rows` on, and on a GPU alone. A CPU needs hundreds
of rows before they are faster than its int4 kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantdraft.checkpoints.tensors.unpacking import Unpacked
from quantdraft.engines.kernels.layout import as_buffer, group_size_of, row_scales, rows_of


class Int4DequantizingLinear(nn.Module):
    """4-bit weights in groups; a byte holds columns j (low half) and j + in / 2 (high half)."""

    kernel = "int4_dequantized"
    group_sizes = (32, 64, 128, 256)
    min_rows = 17

    halves: Tensor
    scale: Tensor
    zero_point: Tensor | None
    bias: Tensor | None
    column_order: Tensor | None

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.integers.shape
        self.group_size = group_size_of(weight, self.group_sizes)
        if weight.scale.shape[1] % 2:
            raise ValueError("halves of a row need an even number of groups")
        zeros = weight.zero_point
        self.register_buffer("halves", pack_halves(weight.integers))
        self.register_buffer("scale", weight.scale.to(dtype).contiguous())
        self.register_buffer("zero_point", None if zeros is None else zeros.to(torch.int8))
        self.register_buffer("bias", as_buffer(bias, dtype))
        self.register_buffer("column_order", weight.column_order)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weight and scales that are held."""
        zeros = 0 if self.zero_point is None else self.zero_point.nbytes
        return int(self.halves.nbytes + self.scale.nbytes + zeros)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in x's float type."""
        flat = rows_of(x, self.column_order)
        out = self._product(flat)
        out = out if self.bias is None else out + self.bias
        return out.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def _product(self, flat: Tensor) -> Tensor:
        return flat @ self.values(flat.dtype).T

    def values(self, dtype: torch.dtype) -> Tensor:
        """The weight that the integers stand for, (out, in), columns as they are stored."""
        low, high = self.halves & 15, self.halves >> 4
        integers = torch.cat([low, high], dim=1).to(torch.int8) - 8
        groups = integers.view(self.out_features, -1, self.group_size)
        if self.zero_point is not None:  # differences lie in -15..15
            groups = groups - self.zero_point[:, :, None]
        values = groups.to(dtype) * self.scale[:, :, None].to(dtype)
        return values.view(self.out_features, self.in_features)


class Int8DequantizingLinear(nn.Module):
    """8-bit weights, one scale a row, applied to the product."""

    kernel = "int8_dequantized"
    min_rows = 9

    integers: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("integers", weight.integers.to(torch.int8).contiguous())
        self.register_buffer("scale", row_scales(weight).to(dtype))
        self.register_buffer("bias", as_buffer(bias, dtype))

    @property
    def weight_bytes(self) -> int:
        """Bytes of weight and scales that are held."""
        return int(self.integers.nbytes + self.scale.nbytes)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in x's float type."""
        out = nn.functional.linear(x, self.integers.to(x.dtype)) * self.scale.to(x.dtype)
        return out if self.bias is None else out + self.bias.to(x.dtype)


def pack_halves(integers: Tensor) -> Tensor:
    """Integers in -8..7, (out, in), as (out, in / 2) bytes: column j low, j + in / 2 high."""
    unsigned = (integers.to(torch.int16) + 8).to(torch.uint8)
    low, high = unsigned.chunk(2, dim=1)
    return (low | (high << 4)).contiguous()
