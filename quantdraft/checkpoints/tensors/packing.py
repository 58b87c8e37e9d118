"""Unpack integers of 2 to 8 bits from the words that libraries store them in."""

from __future__ import annotations

import torch
from torch import Tensor

from quantdraft.errors import CheckpointError

# AutoAWQ's GEMM kernel keeps the even outputs of each eight first: field i holds output ORDER[i].
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def unpack_int32(packed: Tensor, num_bits: int, num_columns: int) -> Tensor:
    """Undo the packing of offset integers into words: a stream of bits, lowest first.

    A field of 3, 5, 6 or 7 bits may run on into the next word, in GPTQ's files and in those of
    compressed-tensors.

    packed: (rows, words) int32
    Returns (rows, num_columns) int8 in [-2**(num_bits-1), 2**(num_bits-1)).
    """
    if 8 % num_bits:
        return _unpack_odd(packed, num_bits, num_columns)
    octets = packed.contiguous().view(torch.uint8)  # lowest first, as every machine here stores
    width = 8
    while width > num_bits:  # the two halves of a field become the two bytes of a word, in order
        width //= 2
        words = octets.to(torch.int16)
        words |= words << 8 - width
        octets = words.bitwise_and_((2**width - 1) * 0x0101).view(torch.uint8)
    # Below 0 a byte wraps around: read as signed, it is the difference.
    signed: Tensor = octets[:, :num_columns].sub(2 ** (num_bits - 1)).view(torch.int8)
    return signed


def _unpack_odd(packed: Tensor, num_bits: int, num_columns: int) -> Tensor:
    if num_bits > 8:
        raise CheckpointError(f"weights of {num_bits} bits are not read: use 8 or fewer.")
    start = torch.arange(num_columns) * num_bits
    words = packed.long() & 0xFFFFFFFF
    words = torch.nn.functional.pad(words, (0, 1))
    low = words[:, start // 32] >> start % 32
    high = words[:, start // 32 + 1] << 32 - start % 32
    signed: Tensor = ((low | high) & 2**num_bits - 1) - 2 ** (num_bits - 1)
    return signed.to(torch.int8)


def pack_stream(fields: Tensor, num_bits: int) -> Tensor:
    """Pack (rows, columns) fields in [0, 2**num_bits) as GPTQ does; (rows, words) int32."""
    rows, columns = fields.shape
    num_words = -(-columns * num_bits // 32)
    words = torch.zeros(rows, num_words + 1, dtype=torch.int64)
    start = torch.arange(columns) * num_bits
    shifted = fields.long() << start % 32
    words.index_add_(1, start // 32, shifted & 0xFFFFFFFF)
    words.index_add_(1, start // 32 + 1, shifted >> 32)
    words = words[:, :num_words]
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def unpack_awq(packed: Tensor) -> Tensor:
    """Undo AutoAWQ's GEMM packing of eight 4-bit outputs into each word.

    packed: (rows, words) int32
    Returns (rows, 8 * words) int8 in [-8, 8), outputs in their own order.
    """
    fields = unpack_int32(packed, 4, packed.shape[1] * 8).view(len(packed), -1, 8)
    ordered = torch.empty_like(fields)
    ordered[..., list(AWQ_ORDER)] = fields
    return ordered.flatten(1)


def unpack_rows_in_bytes(packed: Tensor) -> Tensor:
    """Undo ModelOpt's packing of two outputs into each byte, the earlier in the low half.

    packed: (out / 2, in) uint8, two's complement
    Returns (out, in) int8.
    """
    fields = torch.stack([packed & 15, packed >> 4], dim=1).flatten(0, 1).to(torch.int8)
    return torch.where(fields > 7, fields - 16, fields)
