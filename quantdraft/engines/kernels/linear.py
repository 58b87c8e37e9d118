"""What all kernels share: the Linear around a product, rows of inputs, padding, and checks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantdraft.checkpoints.tensors.unpacking import Unpacked


class KernelLinear(nn.Module):
    """A Linear whose weight a kernel holds in its own layout; a subclass defines `_multiply`."""

    kernel: str  # the name in records
    bias: Tensor | None
    column_order: Tensor | None

    def __init__(
        self,
        shape: tuple[int, ...],
        bias: Tensor | None,
        dtype: torch.dtype,
        column_order: Tensor | None = None,
        **tensors: Tensor | None,
    ) -> None:
        """Register the kernel's tensors as buffers; `weight_bytes` counts them, not the bias.

        shape: (out, in)
        dtype: of the bias
        column_order: (in,) int64, which input each column of the weight multiplies, or None
        """
        super().__init__()
        self.out_features, self.in_features = shape
        self.weight_bytes = sum(each.nbytes for each in tensors.values() if each is not None)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype))
        self.register_buffer("column_order", column_order)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out), in x's float type."""
        flat = x.reshape(-1, self.in_features)
        if self.column_order is not None:
            flat = flat.index_select(1, self.column_order)
        out = self._multiply(flat)
        out = out[:, : self.out_features] if out.shape[1] > self.out_features else out
        out = out if self.bias is None else out + self.bias
        return out.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def _multiply(self, rows: Tensor) -> Tensor:
        """Return rows, (n, in), times the weight: (n, out) float, padded outputs last."""
        raise NotImplementedError


def pad_matrix(matrix: Tensor, row_multiple: int = 1, column_multiple: int = 1) -> Tensor:
    """Add zeros below and to the right, up to the next multiples."""
    rows, columns = matrix.shape
    below, right = -rows % row_multiple, -columns % column_multiple
    if not below and not right:
        return matrix
    wide = matrix.new_zeros((rows + below, columns + right))
    wide[:rows, :columns] = matrix
    return wide


def row_scales(weight: Unpacked) -> Tensor:
    """Return the scales of a symmetric weight with one a row, (out,) float32; else ValueError."""
    require_symmetric(weight)
    if weight.block is not None or weight.scale.shape != (len(weight.integers), 1):
        raise ValueError("the kernel has one scale a row, not groups")
    return weight.scale[:, 0].float()


def require_symmetric(weight: Unpacked) -> None:
    """Raise ValueError for a weight with zero points other than 0."""
    if weight.zero_point is not None and bool(weight.zero_point.any()):
        raise ValueError("the kernel has no zero point: weights must be symmetric")


def group_size_of(weight: Unpacked, allowed: tuple[int, ...]) -> int:
    """Return how many weights share a scale; ValueError unless every group is full and allowed."""
    columns, groups = weight.integers.shape[1], weight.scale.shape[1]
    size = weight.group_size or columns
    if size * groups != columns:
        raise ValueError(f"{columns} columns are not a multiple of the group size {size}")
    if size not in allowed:
        raise ValueError(f"group size {size} is not one of {allowed}")
    return size
