"""Triton's products as torch operators, which a compiler calls as they are.

It could follow them into Triton, and would then launch them by code of its own: what was proven in
the interpreter would not be what runs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantdraft.engines.kernels.requirements import triton_products

torch.library.define(
    "quantdraft::byte_product",
    "(Tensor rows, Tensor values, Tensor scale, bool rounds_inputs) -> Tensor",
)
torch.library.define(
    "quantdraft::nibble_product",
    "(Tensor rows, Tensor halves, Tensor scale, Tensor? zero_point, int group_size) -> Tensor",
)


def byte_product(rows: Tensor, values: Tensor, scale: Tensor, rounds_inputs: bool) -> Tensor:
    """Return rows, (n, in), times 8-bit weights: see `triton_products.byte_product`."""
    if torch.compiler.is_compiling():
        out: Tensor = torch.ops.quantdraft.byte_product(rows, values, scale, rounds_inputs)
        return out
    return _byte_product(rows, values, scale, rounds_inputs)


def nibble_product(
    rows: Tensor, halves: Tensor, scale: Tensor, zero_point: Tensor | None, group_size: int
) -> Tensor:
    """Return rows, (n, in), times 4-bit weights: see `triton_products.nibble_product`."""
    if torch.compiler.is_compiling():
        out: Tensor = torch.ops.quantdraft.nibble_product(
            rows, halves, scale, zero_point, group_size
        )
        return out
    return _nibble_product(rows, halves, scale, zero_point, group_size)


@torch.library.impl("quantdraft::byte_product", "default")
def _byte_product(rows: Tensor, values: Tensor, scale: Tensor, rounds_inputs: bool) -> Tensor:
    out: Tensor = triton_products().byte_product(rows, values, scale, rounds_inputs)
    return out


@torch.library.impl("quantdraft::nibble_product", "default")
def _nibble_product(
    rows: Tensor, halves: Tensor, scale: Tensor, zero_point: Tensor | None, group_size: int
) -> Tensor:
    out: Tensor = triton_products().nibble_product(rows, halves, scale, zero_point, group_size)
    return out


@torch.library.register_fake("quantdraft::byte_product")  # type: ignore[untyped-decorator]
@torch.library.register_fake("quantdraft::nibble_product")  # type: ignore[untyped-decorator]
def _shape_of_product(rows: Tensor, weight: Tensor, *_others: object) -> Tensor:
    return rows.new_empty((rows.shape[0], weight.shape[0]))
