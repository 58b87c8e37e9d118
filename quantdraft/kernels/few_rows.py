"""4-, 8- and 16-bit weights times few rows, by a small C file of this package (AVX2, FMA).

torch's own kernels for these formats are made for AVX-512; without it these take half their time.
The C file is compiled once, by the machine's own compiler, into the user's cache; where there is no
compiler or no AVX2 the kernels are not offered.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn

from quantdraft.kernels.c_library import c_library
from quantdraft.kernels.layout import as_buffer, group_size_of, row_scales, rows_of
from quantdraft.kernels.operations import Product
from quantdraft.kernels.sealed import seal, sealed_product
from quantdraft.unpacking import Unpacked

BLOCKS = (64, 32)  # 4-bit weights that are unpacked at once; see the C file
INPUT_GROUPS = (128, 64, 32)  # inputs that share a step; the sums of more would leave 32 bits
BF16_MULTIPLE = 16
# Fewer multiplications are done before another thread is awake: about 50 microseconds for one.
PRODUCTS_PER_WAKE = 1 << 19


class FewRowsLinear(nn.Module):
    """What the kernels share: a packed weight, its product, and the same as an operation."""

    kernel: str
    packed: PackedWeight
    number: Tensor
    bias: Tensor | None
    column_order: Tensor | None

    def _hold(self, packed: PackedWeight, bias: Tensor | None, order: Tensor | None = None) -> None:
        self.out_features, self.in_features = packed.num_outputs, packed.num_inputs
        self.packed, self.weight_bytes = packed, packed.num_bytes
        self.register_buffer("bias", as_buffer(bias, torch.float32))
        self.register_buffer("column_order", order)
        seal(self, packed.product)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in x's float type."""
        flat = rows_of(x, self.column_order).float().contiguous()
        out = sealed_product(flat, self.number, self.out_features)
        out = out if self.bias is None else out + self.bias
        return out.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def as_operation(self, x: Tensor, out: Tensor, room: Callable[[int], Tensor]) -> Product:
        """The same from x, (rows, in), to out, (rows, out), both float32, whenever it is run.

        room: gives that many bytes of memory, which other operations may use in their turn
        """
        packed, rows = self.packed, len(x)
        ordered = None if self.column_order is None else torch.empty_like(x)
        return Product(
            x=x, out=out, scratch=room(packed.scratch_bytes(rows)), weight=packed.values,
            scale=packed.scale, zero=packed.zero, bias=self.bias, order=self.column_order,
            ordered=ordered, bits=packed.num_bits, rows=rows, inputs=packed.num_inputs,
            outputs=packed.num_outputs, group=packed.group, threads=packed.threads(rows),
        )  # fmt: skip


class Int4FewRowsLinear(FewRowsLinear):
    """4-bit weights in groups, symmetric or not; activations in 16-bit integers a group."""

    kernel = "int4_few_rows_avx2"
    group_sizes = (32, 64, 128, 256)

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        group = group_size_of(weight, self.group_sizes)
        block = next(size for size in BLOCKS if group % size == 0)
        values = packed_halves(weight.integers, block)
        zero = weight.zero_point
        zero = None if zero is None else (zero + 8).to(torch.uint8).contiguous()
        scale = weight.scale.float().contiguous()
        packed = PackedWeight(4, values, scale, zero, weight.integers.shape[1], group)
        self._hold(packed, bias, weight.column_order)


class Int8FewRowsLinear(FewRowsLinear):
    """8-bit weights, one scale a row; activations in 16-bit integers a group."""

    kernel = "int8_few_rows_avx2"

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        inputs = weight.integers.shape[1]
        group = next((size for size in INPUT_GROUPS if inputs % size == 0), None)
        if group is None:
            raise ValueError(f"{inputs} columns are no multiple of {INPUT_GROUPS[-1]}")
        values = weight.integers.to(torch.int8).contiguous()
        scale = row_scales(weight).contiguous()
        self._hold(PackedWeight(8, values, scale, None, inputs, group), bias)


class Bf16FewRowsLinear(FewRowsLinear):
    """Weights as the checkpoint has them, in bfloat16; inputs and sums in float32."""

    kernel = "bf16_few_rows_avx2"
    weight: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        inputs = weight.shape[1]
        if weight.dtype != torch.bfloat16:
            raise ValueError("the weights are not stored in bfloat16")
        if inputs % BF16_MULTIPLE:
            raise ValueError(f"{inputs} columns are no multiple of {BF16_MULTIPLE}")
        values = weight.detach().contiguous()
        self.register_buffer("weight", values)
        self._hold(PackedWeight(16, values, None, None, inputs, 0), bias)


class PackedWeight:
    """A weight as the C file reads it; ValueError where this machine has no use for the file."""

    def __init__(
        self,
        num_bits: int,
        values: Tensor,
        scale: Tensor | None,
        zero: Tensor | None,
        num_inputs: int,
        group: int,
    ) -> None:
        self.num_bits, self.values, self.scale, self.zero = num_bits, values, scale, zero
        self.num_outputs, self.num_inputs, self.group = len(values), num_inputs, group
        self.num_bytes = sum(each.nbytes for each in (values, scale, zero) if each is not None)
        name, pointers, longs = FUNCTIONS[num_bits]
        self._function = getattr(compiled_library(), name)
        self._addresses = [_at(values), _at(scale), _at(zero)][: pointers - 3]
        self._sizes = (num_inputs, self.num_outputs, group)[: longs - 1]

    def product(self, x: Tensor) -> Tensor:
        """The product of x, (rows, in) float32 and contiguous: (rows, out)."""
        rows = x.shape[0]
        out = torch.empty(rows, self.num_outputs)
        scratch = torch.empty(self.scratch_bytes(rows), dtype=torch.uint8)
        self._function(
            x.data_ptr(), scratch.data_ptr(), *self._addresses, out.data_ptr(),
            rows, *self._sizes, self.threads(rows),
        )  # fmt: skip
        return out

    def scratch_bytes(self, num_rows: int) -> int:
        """Bytes in which a product has its inputs in another form."""
        if self.num_bits == 16:
            return num_rows * self.num_inputs * 4
        return _scratch_bytes(num_rows, self.num_inputs, self.group)

    def threads(self, num_rows: int) -> int:
        """All of torch's, or this one where waking others takes longer than the product."""
        products = num_rows * self.num_outputs * self.num_inputs
        return 1 if products < PRODUCTS_PER_WAKE else torch.get_num_threads()


def packed_halves(integers: Tensor, block: int) -> Tensor:
    """(out, in) int8 in -8..7 to (out, in / 2) uint8: see the C file for the order."""
    places = (integers + 8).to(torch.uint8).view(len(integers), -1, block // 16, 16)
    words = [places[:, :, i] | places[:, :, i + 1] << 4 for i in range(0, block // 16, 2)]
    return torch.stack(words, dim=-1).flatten(1).contiguous()


# Of a product with weights of so many bits: the C function, its pointers and its longs.
FUNCTIONS = {4: ("int4_product", 6, 4), 8: ("int8_product", 5, 4), 16: ("bf16_product", 4, 3)}


@lru_cache(maxsize=1)
def compiled_library() -> ctypes.CDLL:
    """The C file's functions; ValueError says what this machine lacks for them."""
    library = c_library()
    long, pointer = ctypes.c_long, ctypes.c_void_p
    library.scratch_bytes.argtypes, library.scratch_bytes.restype = [long] * 3, long
    for name, pointers, longs in FUNCTIONS.values():
        product = getattr(library, name)
        product.argtypes = [pointer] * pointers + [long] * longs + [ctypes.c_int]
        product.restype = None
    return library


@lru_cache(maxsize=1024)
def _scratch_bytes(num_rows: int, num_inputs: int, group: int) -> int:
    return int(compiled_library().scratch_bytes(num_rows, num_inputs, group))


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
