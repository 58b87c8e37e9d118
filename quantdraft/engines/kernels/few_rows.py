"""Multiply few rows with 4- to 32-bit weights by a C file of this package (AVX2 to AVX-512).

torch's own kernels for these formats are made for AVX-512, and each is a call from Python between
two lists of operations: a small model's step is made of such calls. The C file is compiled once, by
the machine's own compiler, into the user's cache; where there is no compiler or no AVX2 the kernels
are not offered.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from quantdraft.checkpoints.tensors.unpacking import Unpacked
from quantdraft.engines.kernels.c_library import c_library, instruction_set
from quantdraft.engines.kernels.linear import KernelLinear, group_size_of, row_scales
from quantdraft.engines.kernels.operations import Product
from quantdraft.engines.kernels.packed_products import packed_product, register_product

# The C file's kinds of products, in its order; a kernel's name begins with its kind.
KINDS = ("int4", "int8", "int8_dynamic", "bf16", "f32")
VECTOR_WORDS = {"avx512": 32}  # 16-bit integers of a vector; 16 on other sets
INPUT_GROUPS = (128, 64, 32)  # inputs that share a step; the sums of more would leave 32 bits
BF16_MULTIPLE = 16
INT8_MULTIPLE = 32
MAX_DYNAMIC_INPUTS = 1 << 16  # 255 * 128 times as many is just under 2^31
# Fewer multiplications are done before another thread is awake: 20 to 50 microseconds for one.
PRODUCTS_PER_WAKE = 1 << 19


class FewRowsLinear(KernelLinear):
    """A Linear on a packed weight of the C file, which is also an operation of a fused pass."""

    kind: ClassVar[str]
    number: Tensor

    def __init__(
        self, packed: PackedWeight, bias: Tensor | None, order: Tensor | None = None
    ) -> None:
        super().__init__((packed.num_outputs, packed.num_inputs), bias, torch.float32, order)
        self.kernel = f"{self.kind}_few_rows_{instruction_set()}"
        self.packed, self.weight_bytes = packed, packed.num_bytes
        register_product(self, packed.product)

    def _multiply(self, rows: Tensor) -> Tensor:
        return packed_product(rows.float().contiguous(), self.number, self.out_features)

    def as_operation(self, x: Tensor, out: Tensor, room: Callable[[int], Tensor]) -> Product:
        """Return an operation from x, (rows, in), to out, (rows, out), both float32.

        out:  its rows may lie apart, as columns of a wider matrix do
        room: gives that many bytes of memory, which other operations may use in their turn
        """
        operation = self.packed.operation(x, out, room)
        order = self.column_order
        ordered = None if order is None else torch.empty_like(x)
        operation.hold(bias=self.bias, order=order, ordered=ordered)
        return operation


class Int4FewRowsLinear(FewRowsLinear):
    """4-bit weights in groups, symmetric or not; activations in 16-bit integers a group."""

    kind = "int4"
    group_sizes = (32, 64, 128, 256)

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        group = group_size_of(weight, self.group_sizes)
        values = pack_runs(weight.integers, *_block_of(group))
        zero = weight.zero_point
        zero = None if zero is None else (zero + 8).to(torch.uint8).contiguous()
        scale = weight.scale.float().contiguous()
        packed = PackedWeight(self.kind, values, scale, zero, weight.integers.shape[1], group)
        super().__init__(packed, bias, weight.column_order)


class Int8FewRowsLinear(FewRowsLinear):
    """8-bit weights, one scale a row; activations in 16-bit integers a group."""

    kind = "int8"

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        inputs = _require_multiple(weight.integers, INT8_MULTIPLE)
        group = self._input_group(inputs)
        values = weight.integers.to(torch.int8).contiguous()
        scale = row_scales(weight).contiguous()
        packed = PackedWeight(self.kind, values, scale, None, inputs, group)
        super().__init__(packed, bias, weight.column_order)

    def _input_group(self, inputs: int) -> int:
        return next(size for size in INPUT_GROUPS if inputs % size == 0)


class Int8DynamicFewRowsLinear(Int8FewRowsLinear):
    """8-bit weights and activations with one scale a row: W8A8 as compressed-tensors rounds it.

    The sums are exact on every instruction set; oneDNN's and fbgemm's need VNNI for that.
    """

    kind = "int8_dynamic"

    def _input_group(self, inputs: int) -> int:
        if inputs > MAX_DYNAMIC_INPUTS:
            raise ValueError(f"sums of more than {MAX_DYNAMIC_INPUTS} columns leave 32 bits")
        return 0


class DenseFewRowsLinear(FewRowsLinear):
    """A dense weight in the memory in which it was given."""

    weight: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        values = weight.detach().contiguous()
        super().__init__(PackedWeight(self.kind, values, None, None, values.shape[1], 0), bias)
        self.register_buffer("weight", values)


class Bf16FewRowsLinear(DenseFewRowsLinear):
    """Weights as the checkpoint has them, in bfloat16; inputs and sums in float32."""

    kind = "bf16"

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        if weight.dtype != torch.bfloat16:
            raise ValueError("the weights are not stored in bfloat16")
        _require_multiple(weight, BF16_MULTIPLE)
        super().__init__(weight, bias)


class F32FewRowsLinear(DenseFewRowsLinear):
    """Weights, inputs and sums in float32."""

    kind = "f32"

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        if weight.dtype != torch.float32 or dtype != torch.float32:
            raise ValueError("the weights are not stored and multiplied in float32")
        super().__init__(weight, bias)


class PackedWeight:
    """A weight as the C file reads it; ValueError where this machine cannot run the file."""

    def __init__(
        self,
        kind: str,
        values: Tensor,
        scale: Tensor | None,
        zero: Tensor | None,
        num_inputs: int,
        group: int,
    ) -> None:
        self.kind, self.values, self.scale, self.zero = kind, values, scale, zero
        self.num_outputs, self.num_inputs, self.group = len(values), num_inputs, group
        self.num_bytes = sum(each.nbytes for each in (values, scale, zero) if each is not None)
        compiled_library()

    def operation(self, x: Tensor, out: Tensor, room: Callable[[int], Tensor]) -> Product:
        """Return the operation from x, (rows, in), into out, (rows, out); both float32."""
        rows, inputs, group = len(x), self.num_inputs, self.group
        num_bytes = compiled_library().product_scratch(rows, inputs, group)
        return Product(
            x=x, out=out, scratch=room(num_bytes),
            weight=self.values, scale=self.scale, zero=self.zero, kind=KINDS.index(self.kind),
            rows=rows, inputs=inputs, outputs=self.num_outputs, group=group,
            stride=out.stride(0), threads=self.threads(rows),
        )  # fmt: skip

    def product(self, x: Tensor) -> Tensor:
        """Return the product of x, (rows, in) float32 and contiguous: (rows, out)."""
        out = torch.empty(len(x), self.num_outputs)
        compiled_library().multiply(ctypes.byref(self.operation(x, out, allocate_bytes)))
        return out

    def threads(self, num_rows: int) -> int:
        """Return torch's number of threads, or 1 where waking others takes longer."""
        products = num_rows * self.num_outputs * self.num_inputs
        return 1 if products < PRODUCTS_PER_WAKE else torch.get_num_threads()


def pack_runs(integers: Tensor, block: int, parts: int) -> Tensor:
    """Pack (out, in) int8 in -8..7 into (out, in / 2) uint8: see the C file for the order.

    parts: a block is so many runs of weights, 4 or 2, that share bytes two by two
    """
    places = (integers + 8).to(torch.uint8).view(len(integers), -1, parts, block // parts)
    words = [places[:, :, i] | places[:, :, i + 1] << 4 for i in range(0, parts, 2)]
    return torch.stack(words, dim=-1).flatten(1).contiguous()


def compiled_library() -> ctypes.CDLL:
    """Return the C file's functions; ValueError says what this machine lacks for them."""
    library = c_library()
    library.product_scratch.argtypes = [ctypes.c_long] * 3
    library.product_scratch.restype = ctypes.c_long
    return library


def _block_of(group: int) -> tuple[int, int]:
    """Return how many 4-bit weights are unpacked at once, and their runs; see the C file."""
    words = VECTOR_WORDS.get(instruction_set(), 16)
    if group % (4 * words) == 0:
        return 4 * words, 4
    return min(2 * words, group), 2


def _require_multiple(weight: Tensor, multiple: int) -> int:
    inputs = weight.shape[1]
    if inputs % multiple:
        raise ValueError(f"{inputs} columns are not a multiple of {multiple}")
    return inputs


def allocate_bytes(num_bytes: int) -> Tensor:
    """Return memory of that many bytes."""
    return torch.empty(num_bytes, dtype=torch.uint8)
