"""A registry of products that a compiler cannot look into, as one torch operator.

A weight in a library's private layout is no tensor, and a library may call what no compiler
follows. The registry keeps such a product under a number, and a compiled model calls
`quantdraft::packed_product` with that number, on every device.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn

PackedProduct = Callable[[Tensor], Tensor]

_products: dict[int, PackedProduct] = {}
_numbers = itertools.count()

torch.library.define(
    "quantdraft::packed_product", "(Tensor x, Tensor number, int columns) -> Tensor"
)


def register_product(owner: nn.Module, product: PackedProduct) -> None:
    """Keep a product, (rows, in) to (rows, out) float, for as long as its owner lives.

    Its number is a tensor, the owner's buffer `number`: a compiler takes an int for part of the
    code, and would compile every layer again. It lies in the host's memory, also for weights on a
    GPU: reading it waits for nothing.
    """
    number = next(_numbers)
    _products[number] = product
    weakref.finalize(owner, _products.pop, number, None)
    owner.register_buffer("number", torch.tensor(number, device="cpu"), persistent=False)


def packed_rows(x: Tensor, number: Tensor, columns: int) -> Tensor:
    """Return x, (..., in), times the weight of a number: (..., columns)."""
    return packed_product(x.flatten(0, -2), number, columns).view(*x.shape[:-1], columns)


def packed_product(x: Tensor, number: Tensor, columns: int) -> Tensor:
    """Return x, (rows, in), times the weight of a number: (rows, columns)."""
    if torch.compiler.is_compiling():
        out: Tensor = torch.ops.quantdraft.packed_product(x, number, columns)
        return out
    return _products[int(number)](x)


@torch.library.impl("quantdraft::packed_product", "default")
def _run_product(x: Tensor, number: Tensor, columns: int) -> Tensor:
    return _products[int(number)](x)


@torch.library.register_fake("quantdraft::packed_product")  # type: ignore[untyped-decorator]
def _shape_of_product(x: Tensor, number: Tensor, columns: int) -> Tensor:
    return x.new_empty((x.shape[0], columns))
