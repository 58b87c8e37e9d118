"""CUDA kernels: weights stay the checkpoint's bytes; no call waits for the host, so graphs hold it.

Libraries' products (`_scaled_mm`, `_int_mm`, tinygemm) are laid out for tensor cores and many rows;
the Triton ones (`triton_products`) read the weight once for a token or a few. Which is faster where
is measured by `choice`. Sizes that a library cannot take are padded with zeros.
"""

from __future__ import annotations

import functools
import importlib.util
from types import ModuleType

import torch
from torch import Tensor, nn

from quantdraft.checkpoints.tensors.unpacking import Unpacked
from quantdraft.engines.kernels.cpu import tinygemm_scales
from quantdraft.engines.kernels.dequantizing import Int4DequantizingLinear, Int8DequantizingLinear
from quantdraft.engines.kernels.layout import (
    as_buffer,
    group_size_of,
    pad_matrix,
    row_scales,
    rows_of,
)
from quantdraft.errors import NoKernelError

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0  # largest value of float8_e4m3fn
INT8_LEVELS = 127.5  # compressed-tensors halves the whole range, -128 to 127
FEW_ROWS = 16  # up to here the Triton kernels, which read the weight once per row
TINY = 1e-12  # a row of zeros has some scale too


class Fp8Linear(nn.Module):
    """FP8 weights, one scale a row; activations rounded to FP8 per token: `torch._scaled_mm`."""

    kernel = "fp8_scaled_mm"
    multiple = 16

    values: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        require_capability(weight.integers.device, (8, 9), "FP8")
        require_fp8(weight)
        self.out_features, self.in_features = weight.integers.shape
        values = pad_matrix(weight.integers.view(torch.uint8), self.multiple, self.multiple)
        self.register_buffer("values", values.contiguous().view(FP8))
        scale = pad_matrix(row_scales(weight)[:, None], self.multiple)[:, 0]
        self.register_buffer("scale", scale.contiguous())
        self.register_buffer("bias", as_buffer(bias, dtype))

    @property
    def weight_bytes(self) -> int:
        """Bytes of weight and scales that one product reads."""
        return int(self.values.nbytes + self.scale.nbytes)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in x's float type; the product itself gives bf16."""
        out = self._product(pad_matrix(rows_of(x, None), 1, self.multiple))
        out = out[:, : self.out_features].to(x.dtype)
        out = out if self.bias is None else out + self.bias
        return out.reshape(*x.shape[:-1], self.out_features)

    def _product(self, flat: Tensor) -> Tensor:
        rounded, step = round_rows(flat, FP8)
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
    """The same bytes, multiplied by a kernel that reads each weight once for a token or a few."""

    kernel = "fp8_triton"

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(weight, bias, dtype)
        triton_products()

    def _product(self, flat: Tensor) -> Tensor:
        if len(flat) > FEW_ROWS:
            return super()._product(flat)
        return _bytes_product(flat, self.values, self.scale)


class Fp8BlockLinear(nn.Module):
    """FP8 weights with a scale for 128 x 128, activations per token and 128: `F.scaled_mm`."""

    kernel = "fp8_block_scaled_mm"
    block = 128

    values: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        require_block_scaling(weight.integers.device)
        require_fp8(weight)
        if weight.block != (self.block, self.block):
            raise ValueError(f"blocks of {weight.block} weights are not read: (128, 128) are")
        self.out_features, self.in_features = weight.integers.shape
        if self.in_features % self.block or self.out_features % self.block:
            raise ValueError(f"{tuple(weight.integers.shape)} is no whole number of blocks")
        self.register_buffer("values", weight.integers.contiguous())
        self.register_buffer("scale", block_scales(weight.scale.float()))
        self.register_buffer("bias", as_buffer(bias, dtype))

    @property
    def weight_bytes(self) -> int:
        """Bytes of weight and scales that one product reads."""
        return int(self.values.nbytes + self.scale.nbytes)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in x's float type; the product itself gives bf16."""
        from torch.nn.functional import ScalingType, scaled_mm

        flat = rows_of(x, None)
        groups = flat.reshape(len(flat), -1, self.block)
        rounded, step = round_rows(groups, FP8)
        columns_first = step[..., 0].t().contiguous().t()
        out: Tensor = scaled_mm(
            rounded.reshape(flat.shape),
            self.values.t(),
            columns_first,
            ScalingType.BlockWise1x128,
            self.scale.t(),
            ScalingType.BlockWise128x128,
            output_dtype=torch.bfloat16,
        )
        out = out.to(x.dtype)
        out = out if self.bias is None else out + self.bias
        return out.reshape(*x.shape[:-1], self.out_features)


class Int8CublasLinear(nn.Module):
    """INT8 weights, one scale a row; activations rounded per token: `torch._int_mm` (cuBLAS)."""

    kernel = "int8_int_mm"
    multiple = 16
    min_product_rows = 32  # `_int_mm` refuses fewer than 17

    integers: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        require_capability(weight.integers.device, (8, 0), "INT8")
        self.out_features, self.in_features = weight.integers.shape
        integers = pad_matrix(weight.integers.to(torch.int8), self.multiple, self.multiple)
        scale = pad_matrix(row_scales(weight)[:, None], self.multiple)[:, 0]
        self.register_buffer("integers", integers.contiguous())
        self.register_buffer("scale", scale.contiguous())
        self.register_buffer("bias", as_buffer(bias, dtype))

    @property
    def weight_bytes(self) -> int:
        """Bytes of weight and scales that one product reads."""
        return int(self.integers.nbytes + self.scale.nbytes)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in x's float type."""
        out = self._product(pad_matrix(rows_of(x, None), 1, self.multiple))
        out = out[:, : self.out_features].to(x.dtype)
        out = out if self.bias is None else out + self.bias
        return out.reshape(*x.shape[:-1], self.out_features)

    def _product(self, flat: Tensor) -> Tensor:
        rounded, step = round_rows(flat, torch.int8)
        enough = nn.functional.pad(rounded, (0, 0, 0, max(0, self.min_product_rows - len(flat))))
        sums = torch._int_mm(enough, self.integers.t())[: len(flat)]
        return sums.float() * step * self.scale


class Int8TritonLinear(Int8CublasLinear):
    """The same bytes, multiplied by a kernel that reads each weight once for a token or a few."""

    kernel = "int8_triton"

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(weight, bias, dtype)
        triton_products()

    def _product(self, flat: Tensor) -> Tensor:
        if len(flat) > FEW_ROWS:
            return super()._product(flat)
        return _bytes_product(flat, self.integers, self.scale)


class Int8WeightOnlyTritonLinear(Int8DequantizingLinear):
    """8-bit weights read once for a token or a few; turned into floats for many."""

    kernel = "int8_weight_only_triton"
    min_rows = 1

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(weight, bias, dtype)
        require_capability(weight.integers.device, (8, 0), "INT8")
        triton_products()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in x's float type."""
        flat = rows_of(x, None)
        if len(flat) > FEW_ROWS:
            return super().forward(x)
        out: Tensor = triton_products().byte_product(
            flat, self.integers, self.scale, rounds_inputs=False
        )
        out = out if self.bias is None else out + self.bias
        return out.to(x.dtype).reshape(*x.shape[:-1], len(self.integers))


class Int4TinygemmLinear(nn.Module):
    """4-bit weights in groups, activations in bf16: `aten._weight_int4pack_mm` (tinygemm)."""

    kernel = "int4_tinygemm"
    group_sizes = (32, 64, 128, 256)
    inner_k_tiles = 8
    row_multiple = 8
    column_multiple = 16 * inner_k_tiles

    packed: Tensor
    scale_and_zero: Tensor
    bias: Tensor | None
    column_order: Tensor | None

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        require_capability(weight.integers.device, (8, 0), "INT4")
        self.out_features, self.in_features = weight.integers.shape
        self.group_size = group_size_of(weight, self.group_sizes)
        if self.in_features % self.column_multiple:
            raise ValueError(
                f"{self.in_features} columns are no multiple of {self.column_multiple}"
            )
        pairs = pack_adjacent_pairs(pad_matrix(weight.integers, self.row_multiple))
        packed = torch.ops.aten._convert_weight_to_int4pack(pairs, self.inner_k_tiles)
        scales = tinygemm_scales(weight, self.row_multiple)
        self.register_buffer("packed", packed)
        self.register_buffer("scale_and_zero", scales.to(torch.bfloat16))
        self.register_buffer("bias", as_buffer(bias, dtype))
        self.register_buffer("column_order", weight.column_order)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weight and scales that one product reads."""
        return int(self.packed.nbytes + self.scale_and_zero.nbytes)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in x's float type."""
        flat = rows_of(x, self.column_order).to(torch.bfloat16).contiguous()
        out: Tensor = torch.ops.aten._weight_int4pack_mm(
            flat, self.packed, self.group_size, self.scale_and_zero
        )
        out = out[:, : self.out_features].to(x.dtype)
        out = out if self.bias is None else out + self.bias
        return out.reshape(*x.shape[:-1], self.out_features)


class Int4TritonLinear(Int4DequantizingLinear):
    """4-bit weights read once for a token or a few; turned into floats for many."""

    kernel = "int4_triton"
    min_rows = 1

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(weight, bias, dtype)
        require_capability(weight.integers.device, (8, 0), "INT4")
        triton_products()

    def _product(self, flat: Tensor) -> Tensor:
        if len(flat) > FEW_ROWS:
            return super()._product(flat)
        out: Tensor = triton_products().nibble_product(
            flat, self.halves, self.scale, self.zero_point, self.group_size
        )
        return out


def round_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The last axis in 8 bits, and its step: x is about `rounded * step`.

    x: (..., in)
    Returns (..., in) in `dtype`, int8 or float8_e4m3fn, and (..., 1) float32.
    """
    if x.is_cuda and has_triton():
        rounded: tuple[Tensor, Tensor] = triton_products().round_rows_by_triton(x, dtype)
        return rounded
    return round_rows_by_torch(x, dtype)


def round_rows_by_torch(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The same in torch's own operators: half a dozen launches on a GPU."""
    limit = INT8_LEVELS if dtype == torch.int8 else FP8_MAX
    values = x.float()
    step = values.abs().amax(-1, keepdim=True).clamp(min=TINY) / limit
    levels = values / step
    if dtype == torch.int8:
        return levels.round().clamp(-128, 127).to(torch.int8), step
    return levels.clamp(-FP8_MAX, FP8_MAX).to(dtype), step


def pack_adjacent_pairs(integers: Tensor) -> Tensor:
    """Integers in -8..7, (out, in), as (out, in / 2) bytes, the even column in the high half."""
    unsigned = (integers.to(torch.int16) + 8).to(torch.uint8)
    return ((unsigned[:, ::2] << 4) | unsigned[:, 1::2]).contiguous()


def block_scales(scale: Tensor) -> Tensor:
    """Block scales, (rows, columns), in memory as cuBLAS reads them: rows 4 numbers apart."""
    rows, columns = scale.shape
    wide = scale.new_zeros((rows, columns + -columns % 4))
    wide[:, :columns] = scale
    return wide[:, :columns]


def require_fp8(weight: Unpacked) -> None:
    """ValueError unless the weight's values are FP8."""
    if weight.integers.dtype != FP8:
        raise ValueError(f"weights of {weight.integers.dtype} are not FP8")


def require_capability(device: torch.device, needed: tuple[int, int], what: str) -> None:
    """NoKernelError where the device is a GPU too old for a format."""
    if device.type != "cuda":
        raise NoKernelError(f"{what} needs a CUDA device, not {device.type!r}")
    found = torch.cuda.get_device_capability(device)
    if found < needed:
        raise NoKernelError(
            f"{what} needs compute capability {needed[0]}.{needed[1]}; "
            f"{torch.cuda.get_device_name(device)!r} has {found[0]}.{found[1]}"
        )


def require_block_scaling(device: torch.device) -> None:
    """NoKernelError where torch or the GPU has no product with a scale per block."""
    require_capability(device, (9, 0), "FP8 in blocks")
    if torch.cuda.get_device_capability(device)[0] != 9:
        raise NoKernelError("FP8 in blocks has a kernel on compute capability 9.0 alone")
    if not hasattr(nn.functional, "scaled_mm"):
        raise NoKernelError(f"torch {torch.__version__} has no product with a scale per block")


def triton_products() -> ModuleType:
    """The Triton kernels; NoKernelError where that package is not installed."""
    if not has_triton():
        raise NoKernelError("the package 'triton' is not installed")
    from quantdraft.engines.kernels import triton_products as products

    return products


@functools.cache
def has_triton() -> bool:
    """True where the package triton is installed, as it is with torch's CUDA builds for Linux."""
    return importlib.util.find_spec("triton") is not None


def _bytes_product(flat: Tensor, values: Tensor, scale: Tensor) -> Tensor:
    out: Tensor = triton_products().byte_product(flat, values, scale)
    return out
