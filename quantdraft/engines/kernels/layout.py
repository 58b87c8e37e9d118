"""What the kernels' layouts share: rows of inputs, padding, and the checks of a weight's kind."""

from __future__ import annotations

import torch
from torch import Tensor

from quantdraft.checkpoints.tensors.unpacking import Unpacked


def rows_of(x: Tensor, column_order: Tensor | None) -> Tensor:
    """x as (rows, in), its columns in the order in which the weight has them."""
    flat = x.reshape(-1, x.shape[-1])
    return flat if column_order is None else flat.index_select(1, column_order)


def pad_matrix(matrix: Tensor, row_multiple: int = 1, column_multiple: int = 1) -> Tensor:
    """Zeros added below and to the right, up to the next multiples."""
    rows, columns = matrix.shape
    below, right = -rows % row_multiple, -columns % column_multiple
    if not below and not right:
        return matrix
    wide = matrix.new_zeros((rows + below, columns + right))
    wide[:rows, :columns] = matrix
    return wide


def as_buffer(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A bias or scale in a kernel's type."""
    return None if tensor is None else tensor.detach().to(dtype)


def row_scales(weight: Unpacked) -> Tensor:
    """The scales of a symmetric weight with one a row, (out,) float32; else ValueError."""
    if weight.zero_point is not None and bool(weight.zero_point.any()):
        raise ValueError("the kernel has no zero point: weights must be symmetric")
    if weight.block is not None or weight.scale.shape != (len(weight.integers), 1):
        raise ValueError("the kernel has one scale a row, not groups")
    return weight.scale[:, 0].float()


def group_size_of(weight: Unpacked, allowed: tuple[int, ...]) -> int:
    """Weights that share a scale, where every group is full and of an allowed size."""
    columns, groups = weight.integers.shape[1], weight.scale.shape[1]
    size = weight.group_size or columns
    if size * groups != columns:
        raise ValueError(f"{columns} columns are no whole number of groups of {size}")
    if size not in allowed:
        raise ValueError(f"group size {size} is not one of {allowed}")
    return size
