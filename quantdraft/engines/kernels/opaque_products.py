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


def multiply_bytes(rows: Tensor, values: Tensor, scale: Tensor, rounds_inputs: bool) -> Tensor:
    """Return rows, (n, in), times 8-bit weights: see `triton_products.byte_product`."""
    run = torch.ops.quantdraft.byte_product if torch.compiler.is_compiling() else _run_bytes
    out: Tensor = run(rows, values, scale, rounds_inputs)
    return out


def multiply_nibbles(
    rows: Tensor, halves: Tensor, scale: Tensor, zero_point: Tensor | None, group_size: int
) -> Tensor:
    """Return rows, (n, in), times 4-bit weights: see `triton_products.nibble_product`."""
    run = torch.ops.quantdraft.nibble_product if torch.compiler.is_compiling() else _run_nibbles
    out: Tensor = run(rows, halves, scale, zero_point, group_size)
    return out


def _run_bytes(rows: Tensor, values: Tensor, scale: Tensor, rounds_inputs: bool) -> Tensor:
    out: Tensor = triton_products().byte_product(rows, values, scale, rounds_inputs)
    return out


def _run_nibbles(
    rows: Tensor, halves: Tensor, scale: Tensor, zero_point: Tensor | None, group_size: int
) -> Tensor:
    out: Tensor = triton_products().nibble_product(rows, halves, scale, zero_point, group_size)
    return out


def _shape(rows: Tensor, weight: Tensor, *_others: object) -> Tensor:
    return rows.new_empty((rows.shape[0], weight.shape[0]))


for _name, _run in (("byte_product", _run_bytes), ("nibble_product", _run_nibbles)):
    torch.library.impl(f"quantdraft::{_name}", "default", _run)
    torch.library.register_fake(f"quantdraft::{_name}", _shape)
