"""Multiply few rows with bf16, 8-bit and 4-bit weights in Triton.

At one row a product is as slow as the memory that holds its weight, if it needs few instructions
for a byte: bf16 and 8-bit weights are multiplied by tensor cores, 8 or 16 rows at a time; a launch
before that rounds the inputs, where the scheme does. A program of a 4-bit product computes
BLOCK_ROWS outputs of one input row.
No autotuning: a first call must be safe to capture in a graph.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDE_OUTPUTS = 4096  # from here on wider tiles still give each of an H100's 132 SMs a program
BLOCK_COLUMNS = 1024  # of a row that is rounded, at a time
BLOCK_ROWS = 4  # outputs of a 4-bit program: 500 programs for 2,000 outputs, some four for each SM
BLOCK_GROUP_BYTES = 512  # of a row's low and high halves at a time, in whole groups


def byte_product(x: Tensor, values: Tensor, scale: Tensor, rounds_inputs: bool = True) -> Tensor:
    """Round each row of x to the weight's 8-bit type, and multiply it with the weight.

    x:      (rows, in) float
    values: (out, in) int8 or float8_e4m3fn, or x's type where no input is rounded; rows contiguous
    scale:  (out,) float
    rounds_inputs: False for weights alone, whose inputs stay as they are
    Returns (rows, out) in x's type. Up to 16 rows read the weight once.
    """
    num_rows, num_columns = x.shape
    num_outputs = len(values)
    out = x.new_empty((num_rows, num_outputs))
    if rounds_inputs:
        x, step = round_rows_by_triton(x, values.dtype)
    else:
        x, step = x.contiguous(), scale
    tile = byte_tile(num_rows, num_outputs, values.itemsize)
    grid = (
        triton.cdiv(num_outputs, tile["block_outputs"]),
        triton.cdiv(num_rows, tile["block_rows"]),
    )
    _byte_product[grid](
        *(x, step, values, scale, out, num_rows, num_outputs, num_columns, values.stride(0)),
        rounds_inputs=rounds_inputs,
        is_int8=values.dtype == torch.int8,
        **tile,
    )
    return out


def byte_tile(num_rows: int, num_outputs: int, weight_bytes: int = 1) -> dict[str, int]:
    """Return what one program of a product computes, and with how many warps.

    weight_bytes: of one weight; a slice of columns has 128 bytes of each output
    A warp sums its own slice of the columns: 2,000 outputs are 125 programs of four warps, enough
    to keep the memory busy, in one launch and in a fixed order. Wider tiles read x less often.
    """
    is_wide = num_outputs >= WIDE_OUTPUTS
    return {
        "block_outputs": 32 if is_wide else 16,
        "block_rows": 8 if num_rows <= 8 else 16,
        "num_slices": 4,
        "slice_columns": 128 // weight_bytes,
        "num_warps": 4,
        "num_stages": 3 if is_wide else 4,
    }


def round_rows_by_triton(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Round the last axis to 8 bits in one launch: x is about `rounded * step`.

    x: (..., in) float
    Returns (..., in) in `dtype`, int8 or float8_e4m3fn, and (..., 1) float32.
    """
    x = x.contiguous()
    rounded = torch.empty(x.shape, dtype=dtype, device=x.device)
    step = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    _rounded_rows[(step.numel(),)](
        *(x, rounded, step, x.shape[-1]),
        is_int8=dtype == torch.int8,
        block_columns=BLOCK_COLUMNS,
    )
    return rounded, step


def nibble_product(
    x: Tensor, halves: Tensor, scale: Tensor, zero_point: Tensor | None, group_size: int
) -> Tensor:
    """Multiply x with 4-bit weights in groups, (integer - zero_point) * scale.

    x:      (rows, in) float
    halves: (out, in / 2) uint8, column j in the low half, j + in / 2 in the high half
    scale:  (out, in / group_size) float; zero_point the same in int8, or None
    group_size: a power of two; a row has an even number of groups
    Returns (rows, out) in x's type.
    """
    x = x.contiguous()
    num_rows, num_outputs = len(x), len(halves)
    out = x.new_empty((num_rows, num_outputs))
    grid = (triton.cdiv(num_outputs, BLOCK_ROWS), num_rows)
    _nibble_product[grid](
        *(x, halves, scale, scale if zero_point is None else zero_point, out),
        *(num_outputs, halves.shape[1], scale.shape[1] // 2),
        has_zero=zero_point is not None,
        group_size=group_size,
        block_rows=BLOCK_ROWS,
        block_groups=max(1, BLOCK_GROUP_BYTES // group_size),
    )
    return out


@triton.jit
def _rounded_rows(
    x_at,
    rounded_at,
    step_at,
    num_columns,
    is_int8: tl.constexpr,
    block_columns: tl.constexpr,
):
    row = tl.program_id(0)
    columns = tl.arange(0, block_columns)
    x_at += row.to(tl.int64) * num_columns
    rounded_at += row.to(tl.int64) * num_columns
    step = _step(x_at, num_columns, is_int8, block_columns)
    tl.store(step_at + row, step)
    for start in range(0, num_columns, block_columns):
        at = start + columns
        is_column = at < num_columns
        x = tl.load(x_at + at, mask=is_column, other=0.0).to(tl.float32) / step
        levels = _rounded(x, is_int8)
        tl.store(rounded_at + at, levels.to(rounded_at.dtype.element_ty), mask=is_column)


@triton.jit
def _step(x_at, num_columns, is_int8: tl.constexpr, block_columns: tl.constexpr):
    """Return the value of one level of a row's rounded values."""
    columns = tl.arange(0, block_columns)
    largest = tl.zeros((block_columns,), tl.float32)
    for start in range(0, num_columns, block_columns):
        at = start + columns
        x = tl.load(x_at + at, mask=at < num_columns, other=0.0).to(tl.float32)
        largest = _larger(largest, tl.abs(x))
    limit = 127.5 if is_int8 else 448.0
    return _larger(tl.reduce(largest, 0, _larger), 1e-12) / limit


@triton.jit
def _larger(a, b):
    """Return the larger of two; what is no number stays none, so that a broken row is seen."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _smaller(a, b):
    """Return the smaller of two; what is no number stays none."""
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _rounded(levels, is_int8: tl.constexpr):
    """Return levels rounded as the 8-bit type holds them, still float32."""
    if is_int8:
        # Halves go outwards: the row's largest input is 127.5 or -127.5, which becomes -128.
        nearest = tl.where(levels < 0, tl.ceil(levels - 0.5), tl.floor(levels + 0.5))
        rounded = _larger(_smaller(nearest, 127.0), -128.0)
    else:
        limited = _larger(_smaller(levels, 448.0), -448.0)
        rounded = limited.to(tl.float8e4nv).to(tl.float32)
    return rounded


@triton.jit
def _byte_product(
    x_at,
    step_at,
    values_at,
    scale_at,
    out_at,
    num_rows,
    num_outputs,
    num_columns,
    values_stride,
    rounds_inputs: tl.constexpr,
    is_int8: tl.constexpr,
    block_outputs: tl.constexpr,
    block_rows: tl.constexpr,
    num_slices: tl.constexpr,
    slice_columns: tl.constexpr,
):
    outputs = tl.program_id(0) * block_outputs + tl.arange(0, block_outputs)
    rows = tl.program_id(1) * block_rows + tl.arange(0, block_rows)
    slices = tl.arange(0, num_slices) * slice_columns
    columns = slices[:, None] + tl.arange(0, slice_columns)[None, :]
    is_output = outputs < num_outputs
    is_row = rows < num_rows
    starts = outputs.to(tl.int64) * values_stride  # a large head exceeds 32 bits
    weights_at = values_at + starts[None, :, None] + columns[:, None, :]
    inputs_at = x_at + rows[None, None, :] * num_columns + columns[:, :, None]

    sum_type: tl.constexpr = tl.int32 if rounds_inputs and is_int8 else tl.float32
    total = tl.zeros((num_slices, block_outputs, block_rows), sum_type)
    for start in range(0, num_columns, num_slices * slice_columns):
        is_column = start + columns < num_columns
        weights_mask = is_output[None, :, None] & is_column[:, None, :]
        weights = tl.load(weights_at + start, mask=weights_mask, other=0.0)
        x_mask = is_row[None, None, :] & is_column[:, :, None]
        x = tl.load(inputs_at + start, mask=x_mask, other=0.0)
        if not rounds_inputs:
            weights = weights.to(x.dtype)
        total = tl.dot(weights, x, total, input_precision="ieee", out_dtype=sum_type)
    result = tl.sum(total, axis=0).to(tl.float32)
    scale = tl.load(scale_at + outputs, mask=is_output, other=0.0).to(tl.float32)
    if rounds_inputs:
        result *= tl.load(step_at + rows, mask=is_row, other=0.0)[None, :]
    out_at += rows[None, :] * num_outputs + outputs[:, None]
    mask = is_output[:, None] & is_row[None, :]
    tl.store(out_at, result * scale[:, None], mask=mask)


@triton.jit
def _nibble_product(
    x_at,
    halves_at,
    scale_at,
    zero_at,
    out_at,
    num_outputs,
    num_bytes,
    num_groups,
    has_zero: tl.constexpr,
    group_size: tl.constexpr,
    block_rows: tl.constexpr,
    block_groups: tl.constexpr,
):
    row = tl.program_id(1)
    outputs = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    is_output = outputs < num_outputs
    groups = tl.arange(0, block_groups)
    within = tl.arange(0, group_size)
    x_at += row * num_bytes * 2
    starts = outputs.to(tl.int64)[:, None, None] * num_bytes
    scale_starts = outputs.to(tl.int64)[:, None] * num_groups * 2

    total = tl.zeros((block_rows, block_groups), tl.float32)
    for first in range(0, num_groups, block_groups):
        group = first + groups
        is_group = group < num_groups
        at = group[:, None] * group_size + within[None, :]
        x_low = tl.load(x_at + at, mask=is_group[:, None], other=0.0).to(tl.float32)
        x_high = tl.load(x_at + num_bytes + at, mask=is_group[:, None], other=0.0).to(tl.float32)
        mask = is_output[:, None, None] & is_group[None, :, None]
        pairs = tl.load(halves_at + starts + at[None, :, :], mask=mask, other=0)
        low = (pairs & 15).to(tl.float32) - 8.0
        high = (pairs >> 4).to(tl.float32) - 8.0
        low_sum = tl.sum(low * x_low[None, :, :], axis=2)
        high_sum = tl.sum(high * x_high[None, :, :], axis=2)
        scale_mask = is_output[:, None] & is_group[None, :]
        low_at = scale_starts + group[None, :]
        high_at = low_at + num_groups
        if has_zero:
            low_zero = tl.load(zero_at + low_at, mask=scale_mask, other=0).to(tl.float32)
            high_zero = tl.load(zero_at + high_at, mask=scale_mask, other=0).to(tl.float32)
            low_sum -= low_zero * tl.sum(x_low, axis=1)[None, :]
            high_sum -= high_zero * tl.sum(x_high, axis=1)[None, :]
        low_scale = tl.load(scale_at + low_at, mask=scale_mask, other=0.0).to(tl.float32)
        high_scale = tl.load(scale_at + high_at, mask=scale_mask, other=0.0).to(tl.float32)
        total += low_sum * low_scale + high_sum * high_scale
    result = tl.sum(total, axis=1)
    tl.store(out_at + row * num_outputs + outputs, result, mask=is_output)
