"""Kernels for weights in floating point, as the checkpoint has them: those of the baseline.

They are chosen and measured as the quantized ones are, so that no slow baseline makes a candidate
look good.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantdraft.engines.kernels.linear import KernelLinear
from quantdraft.engines.kernels.packed_products import packed_product, register_product


class DenseLinear(KernelLinear):
    """`F.linear` in the given type; shares the memory of a weight that has this type already."""

    weight: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(weight.shape, bias, dtype, weight=weight.detach().to(dtype))
        self.kernel = f"linear_{type_name(dtype)}"

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out), in the module's float type."""
        return nn.functional.linear(x, self.weight, self.bias)


class WeightFirstLinear(DenseLinear):
    """The same product as W xᵀ: on a CPU up to twice as fast for few, small rows.

    The matrix library then walks along the weight once for all rows, and needs no other layout. On
    a GPU cuBLAS chooses another of its kernels for it.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(weight, bias, dtype)
        self.kernel = f"weight_first_{type_name(dtype)}"

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out), in the module's float type."""
        return KernelLinear.forward(self, x)

    def _multiply(self, rows: Tensor) -> Tensor:
        return torch.mm(self.weight, rows.t()).t()


class PrepackedLinear(KernelLinear):
    """A weight laid out once for oneDNN's matrix product, on a CPU.

    `F.linear` lays it out in every call, which costs more than the product itself at 2 to 20 rows.
    Where the CPU has no bf16 instructions, bf16 weights are held and multiplied in float32.
    """

    number: Tensor
    pack_rows = 16  # oneDNN chooses the layout for about this many rows

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            raise ValueError("this build of torch has no oneDNN")
        super().__init__(weight.shape, None, dtype)  # the bias goes into the product
        has_bf16 = dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        self.packed_dtype = torch.bfloat16 if has_bf16 else torch.float32
        self.kernel = f"onednn_prepacked_{type_name(self.packed_dtype)}"
        self.weight_bytes = weight.numel() * self.packed_dtype.itemsize
        values = weight.detach().to(self.packed_dtype, copy=True)
        packed = torch.ops.mkldnn._reorder_linear_weight(values, self.pack_rows)
        added = None if bias is None else bias.detach().to(self.packed_dtype)
        register_product(
            self,
            lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, added, "none", [], ""),
        )

    def _multiply(self, rows: Tensor) -> Tensor:
        return packed_product(rows.to(self.packed_dtype), self.number, self.out_features)


def type_name(dtype: torch.dtype) -> str:
    """Return the type as records spell it: 'bfloat16'."""
    return str(dtype).removeprefix("torch.")
