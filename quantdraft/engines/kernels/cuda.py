"""CUDA kernels: weights stay the checkpoint's bytes, and every call can be part of a CUDA graph.

torch's own products (`_scaled_mm`, `_int_mm`, tinygemm) are laid out for tensor cores and many
rows; the Triton ones (`triton_products`) are for a token or a few: of bf16 and 8-bit weights they
read each byte once for up to FEW_ROWS rows, of 4-bit weights once for every row. Which is faster
where is measured by `choice`. Sizes that a product cannot take are padded with zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantdraft.checkpoints.tensors.unpacking import Unpacked
from quantdraft.engines.kernels.cpu import tinygemm_scales
from quantdraft.engines.kernels.dense import DenseLinear
from quantdraft.engines.kernels.dequantizing import Int4DequantizingLinear, Int8DequantizingLinear
from quantdraft.engines.kernels.linear import (
    KernelLinear,
    group_size_of,
    pad_matrix,
    row_scales,
)
from quantdraft.engines.kernels.opaque_products import multiply_bytes, multiply_nibbles
from quantdraft.engines.kernels.requirements import (
    has_triton,
    require_block_scaling,
    require_capability,
    triton_products,
)

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0  # largest value of float8_e4m3fn
INT8_LEVELS = 127.5  # compressed-tensors halves the whole range, -128 to 127
FEW_ROWS = 16  # up to here the Triton kernels: the most rows that one tile of theirs has
TINY = 1e-12  # a row of zeros has some scale too


class RowScaledLinear(KernelLinear):
    """8-bit weights with one scale a row, padded to the sizes that libraries take."""

    multiple = 16
    has_triton_for_few_rows = False  # one that reads each weight once for up to FEW_ROWS rows

    values: Tensor
    scale: Tensor

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        if self.has_triton_for_few_rows:
            triton_products()
        octets = pad_matrix(weight.integers.view(torch.uint8), self.multiple, self.multiple)
        super().__init__(
            weight.integers.shape,
            bias,
            dtype,
            values=octets.contiguous().view(weight.integers.dtype),
            scale=pad_matrix(row_scales(weight)[:, None], self.multiple)[:, 0].contiguous(),
        )

    def _multiply(self, rows: Tensor) -> Tensor:
        wide = pad_matrix(rows, 1, self.multiple)
        if self.has_triton_for_few_rows and len(rows) <= FEW_ROWS:
            return _multiply_few(wide, self.values, self.scale)
        return self._product(wide)

    def _product(self, rows: Tensor) -> Tensor:
        raise NotImplementedError


class Fp8Linear(RowScaledLinear):
    """FP8 weights, one scale a row; activations rounded to FP8 per token: `torch._scaled_mm`.

    Sums of partial products may be kept in fewer bits than float32 ("fast accumulation", as
    vLLM's product keeps them).
    """

    kernel = "fp8_scaled_mm_fast_accum"

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        require_capability(weight.integers.device, (8, 9), "FP8")
        require_fp8(weight)
        super().__init__(weight, bias, dtype)

    def _product(self, rows: Tensor) -> Tensor:
        rounded, step = round_rows(rows, FP8)
        out: Tensor = torch._scaled_mm(
            rounded,
            self.values.t(),
            scale_a=step,
            scale_b=self.scale[None, :],
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return out


class Fp8TritonLinear(Fp8Linear):
    """The same bytes; for up to FEW_ROWS rows, multiplied by a kernel that reads each once."""

    kernel = "fp8_triton"
    has_triton_for_few_rows = True


class Fp8BlockLinear(KernelLinear):
    """FP8 weights with a scale for 128 x 128, activations per token and 128: `F.scaled_mm`.

    cuBLAS takes tokens in fours, and reads a column of scales as a multiple of four numbers.
    """

    kernel = "fp8_block_scaled_mm"
    block = 128
    row_multiple = scale_multiple = 4

    values: Tensor
    scale: Tensor

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        self._require(weight.integers.device)
        require_fp8(weight)
        if weight.block != (self.block, self.block):
            raise ValueError(f"blocks of {weight.block} weights are not read: (128, 128) are")
        if any(size % self.block for size in weight.integers.shape):
            raise ValueError(f"{tuple(weight.integers.shape)} is not a multiple of the block")
        super().__init__(
            weight.integers.shape,
            bias,
            dtype,
            values=weight.integers.contiguous(),
            scale=pad_matrix(weight.scale.float(), 1, self.scale_multiple).contiguous(),
        )

    def _require(self, device: torch.device) -> None:
        require_block_scaling(device)

    def _multiply(self, rows: Tensor) -> Tensor:
        enough = pad_matrix(rows, self.row_multiple)
        rounded, step = round_rows(enough.reshape(len(enough), -1, self.block), FP8)
        columns_first = step[..., 0].t().contiguous().t()
        return self._product(rounded.reshape(enough.shape), columns_first)[: len(rows)]

    def _product(self, rounded: Tensor, step: Tensor) -> Tensor:
        """Return (rows, out) of FP8 inputs, (rows, in), and their scales, one column a block."""
        from torch.nn.functional import ScalingType, scaled_mm

        out: Tensor = scaled_mm(
            rounded,
            self.values.t(),
            step,
            ScalingType.BlockWise1x128,
            self.scale.t(),
            ScalingType.BlockWise128x128,
            output_dtype=torch.bfloat16,
        )
        return out


class Int8Linear(RowScaledLinear):
    """INT8 weights, one scale a row; activations rounded per token."""

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        require_capability(weight.integers.device, (8, 0), "INT8")
        super().__init__(weight._replace(integers=weight.integers.to(torch.int8)), bias, dtype)


class Int8CublasLinear(Int8Linear):
    """Multiplied by `torch._int_mm` (cuBLAS), scaled by two launches more."""

    kernel = "int8_int_mm"
    min_product_rows = 32  # `_int_mm` refuses fewer than 17

    def _product(self, rows: Tensor) -> Tensor:
        rounded, step = round_rows(rows, torch.int8)
        enough = nn.functional.pad(rounded, (0, 0, 0, max(0, self.min_product_rows - len(rows))))
        sums = torch._int_mm(enough, self.values.t())[: len(rows)]
        return sums.float() * step * self.scale


class Int8TritonLinear(Int8CublasLinear):
    """The same bytes; for up to FEW_ROWS rows, multiplied by a kernel that reads each once."""

    kernel = "int8_triton"
    has_triton_for_few_rows = True


class Int8WeightOnlyTritonLinear(Int8DequantizingLinear):
    """8-bit weights, read once for up to FEW_ROWS rows; turned into floats for more."""

    kernel = "int8_weight_only_triton"
    min_rows = 1

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(weight, bias, dtype)
        require_capability(weight.integers.device, (8, 0), "INT8")
        triton_products()

    def _multiply(self, rows: Tensor) -> Tensor:
        if len(rows) > FEW_ROWS:
            return super()._multiply(rows)
        return _multiply_few(rows, self.integers, self.scale, rounds_inputs=False)


class Bf16TritonLinear(DenseLinear):
    """bf16 weights, read once for up to FEW_ROWS rows by the kernel of the 8-bit weights.

    So that the baseline has the same choice of products as those that are compared with it.
    """

    ones: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        require_capability(weight.device, (8, 0), "bf16 in Triton")
        if dtype != torch.bfloat16:
            raise ValueError(f"the kernel has weights in bfloat16, not {dtype}")
        triton_products()
        super().__init__(weight, bias, dtype)
        self.kernel = "bf16_triton"
        ones = torch.ones(self.out_features, device=weight.device)
        self.register_buffer("ones", ones, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out), in the module's float type."""
        return KernelLinear.forward(self, x)

    def _multiply(self, rows: Tensor) -> Tensor:
        if len(rows) > FEW_ROWS:
            return nn.functional.linear(rows, self.weight)
        return _multiply_few(rows, self.weight, self.ones, rounds_inputs=False)


class Int4TinygemmLinear(KernelLinear):
    """4-bit weights in groups, activations in bf16: `aten._weight_int4pack_mm` (tinygemm)."""

    kernel = "int4_tinygemm"
    group_sizes = (32, 64, 128, 256)
    inner_k_tiles = 8
    row_multiple = 8
    column_multiple = 16 * inner_k_tiles

    packed: Tensor
    scale_and_zero: Tensor

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        require_capability(weight.integers.device, (8, 0), "INT4")
        group_size, columns = group_size_of(weight, self.group_sizes), weight.integers.shape[1]
        if columns % self.column_multiple:
            raise ValueError(f"{columns} columns are not a multiple of {self.column_multiple}")
        pairs = pack_adjacent_pairs(pad_matrix(weight.integers, self.row_multiple))
        super().__init__(
            weight.integers.shape,
            bias,
            dtype,
            weight.column_order,
            packed=torch.ops.aten._convert_weight_to_int4pack(pairs, self.inner_k_tiles),
            scale_and_zero=tinygemm_scales(weight, self.row_multiple).to(torch.bfloat16),
        )
        self.group_size = group_size

    def _multiply(self, rows: Tensor) -> Tensor:
        out: Tensor = torch.ops.aten._weight_int4pack_mm(
            rows.to(torch.bfloat16).contiguous(), self.packed, self.group_size, self.scale_and_zero
        )
        return out


class Int4TritonLinear(Int4DequantizingLinear):
    """4-bit weights, read once for each of up to FEW_ROWS rows; turned into floats for more."""

    kernel = "int4_triton"
    min_rows = 1

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(weight, bias, dtype)
        require_capability(weight.integers.device, (8, 0), "INT4")
        triton_products()

    def _multiply(self, rows: Tensor) -> Tensor:
        if len(rows) > FEW_ROWS:
            return super()._multiply(rows)
        return multiply_nibbles(rows, self.halves, self.scale, self.zero_point, self.group_size)


def round_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Round the last axis to 8 bits, and return its step too: x is about `rounded * step`.

    x: (..., in)
    Returns (..., in) in `dtype`, int8 or float8_e4m3fn, and (..., 1) float32.
    """
    # A compiler makes one kernel of torch's operators and of what comes before them.
    if x.is_cuda and not torch.compiler.is_compiling() and has_triton():
        rounded: tuple[Tensor, Tensor] = triton_products().round_rows_by_triton(x, dtype)
        return rounded
    return round_rows_by_torch(x, dtype)


def round_rows_by_torch(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Do the same by torch's own operators: half a dozen launches on a GPU."""
    limit = INT8_LEVELS if dtype == torch.int8 else FP8_MAX
    values = x.float()
    step = values.abs().amax(-1, keepdim=True).clamp(min=TINY) / limit
    levels = values / step
    if dtype == torch.int8:
        return levels.round().clamp(-128, 127).to(torch.int8), step
    return levels.clamp(-FP8_MAX, FP8_MAX).to(dtype), step


def pack_adjacent_pairs(integers: Tensor) -> Tensor:
    """Pack integers in -8..7, (out, in), into (out, in / 2) bytes, the even column high."""
    unsigned = (integers.to(torch.int16) + 8).to(torch.uint8)
    return ((unsigned[:, ::2] << 4) | unsigned[:, 1::2]).contiguous()


def require_fp8(weight: Unpacked) -> None:
    """Raise ValueError unless the weight's values are FP8."""
    if weight.integers.dtype != FP8:
        raise ValueError(f"weights of {weight.integers.dtype} are not FP8")


def _multiply_few(
    rows: Tensor, values: Tensor, scale: Tensor, rounds_inputs: bool = True
) -> Tensor:
    return multiply_bytes(rows, values, scale, rounds_inputs)
