"""Unpack 4- and 8-bit floats with one scale for a small group: NVFP4, MXFP4 and MXFP8.

E2M1 has the values 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives, two in a byte, the first in the
low half. MX scales are bare exponents (E8M0, bias 127), after the OCP Microscaling Formats (MX)
specification, v1.0. NVFP4's are E4M3 numbers times a float for the whole matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantdraft.checkpoints.formats import WeightFormat
from quantdraft.errors import CheckpointError

# Twice the value of each 4-bit code: whole numbers, so that they fit integers exactly.
DOUBLED_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def unpack_microscaled(
    values: Tensor, scale: Tensor, global_scale: Tensor | None, fmt: WeightFormat
) -> tuple[Tensor, Tensor]:
    """Return integers and scales of a stored weight: weight = integer * scale.

    values:       (out, in / 2) uint8 for 4 bits, (out, in) float8_e4m3fn for 8
    scale:        (out, groups) float8_e4m3fn (NVFP4), or uint8 exponents (MX)
    global_scale: (1,) float, NVFP4 only; the stored scales are that many times too large
    Returns (out, in) int8, twice the 4-bit value, or float8_e4m3fn; and (out, groups) float32.
    Raises CheckpointError where a type is another than the format's.
    """
    is_e8m0 = fmt.scale_type == "e8m0"
    _require(scale, torch.uint8 if is_e8m0 else torch.float8_e4m3fn, fmt)
    scales = exponents(scale) if is_e8m0 else scale.float()
    if global_scale is not None:
        scales = scales / global_scale.float()
    if fmt.num_bits == 8:
        _require(values, torch.float8_e4m3fn, fmt)
        return values, scales
    _require(values, torch.uint8, fmt)
    return unpack_e2m1(values), scales / 2


def unpack_e2m1(packed: Tensor) -> Tensor:
    """Unpack (rows, bytes) uint8 into (rows, 2 * bytes) int8, twice each 4-bit float's value."""
    table = torch.tensor(DOUBLED_E2M1, dtype=torch.int8, device=packed.device)
    codes = torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten(1)
    unpacked: Tensor = table[codes.long()]
    return unpacked


def exponents(stored: Tensor) -> Tensor:
    """Return the powers of two that E8M0 bytes stand for, float32."""
    return torch.exp2(stored.float() - 127)


def round_to_e2m1(values: Tensor) -> Tensor:
    """Return each value's nearest 4-bit float, ties to the even code; beyond ±6 it is ±6."""
    magnitude = values.abs().clamp(max=6)
    step = torch.exp2(magnitude.clamp(min=1).log2().floor() - 1)
    rounded: Tensor = (magnitude / step).round() * step * values.sign()
    return rounded


def _require(tensor: Tensor, dtype: torch.dtype, fmt: WeightFormat) -> None:
    if tensor.dtype != dtype:
        raise CheckpointError(
            f"a {fmt.name} weight is stored as {tensor.dtype} where {dtype} belongs: "
            "the checkpoint claims to be quantized and is not."
        )
