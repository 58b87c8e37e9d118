"""Products with weights in a library's private layout, which a compiler cannot look into.

The weight stays behind a number; a compiled model calls the product as one opaque operator.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]

_products: dict[int, Product] = {}
_numbers = itertools.count()

torch.library.define("quantdraft::sealed_product", "(Tensor x, int number, int columns) -> Tensor")


def seal(owner: object, product: Product) -> int:
    """Keep a product, from (rows, in) to (rows, out) float, for as long as its owner lives."""
    number = next(_numbers)
    _products[number] = product
    weakref.finalize(owner, _products.pop, number, None)
    return number


def sealed_product(x: Tensor, number: int, columns: int) -> Tensor:
    """The product of x, (rows, in), with the weight behind a number: (rows, columns)."""
    if torch.compiler.is_compiling():
        out: Tensor = torch.ops.quantdraft.sealed_product(x, number, columns)
        return out
    return _products[number](x)


@torch.library.impl("quantdraft::sealed_product", "cpu")
def _product(x: Tensor, number: int, columns: int) -> Tensor:
    return _products[number](x)


@torch.library.register_fake("quantdraft::sealed_product")  # type: ignore[untyped-decorator]
def _shape(x: Tensor, number: int, columns: int) -> Tensor:
    return x.new_empty((x.shape[0], columns))
