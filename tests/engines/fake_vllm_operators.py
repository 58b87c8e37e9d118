"""vLLM 0.32's operators for CUDA, as it declares them, computed on a CPU in float64.

They check what its C++ checks (strides, alignment, shapes), and undo the layouts that its kernels
read, so that a weight packed wrongly gives a wrong product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

SCHEMAS = (
    "gptq_marlin_repack(Tensor b_q_weight, SymInt size_k, SymInt size_n, int num_bits, "
    "bool is_a_8bit) -> Tensor",
    "marlin_gemm(Tensor a, Tensor? c_or_none, Tensor b_q_weight, Tensor? b_bias_or_none, "
    "Tensor b_scales, Tensor? a_scales, Tensor? global_scale, Tensor? b_zeros_or_none, "
    "Tensor workspace, int b_type_id, SymInt size_m, SymInt size_n, SymInt size_k, "
    "bool use_atomic_add, bool use_fp32_reduce, bool is_zp_float) -> Tensor",
    "machete_prepack_B(Tensor B, ScalarType a_type, int b_type, ScalarType? group_scales_type) "
    "-> Tensor",
    "machete_mm(Tensor A, Tensor B, int b_type, ScalarType? out_type, Tensor? b_group_scales, "
    "Tensor? b_group_zeros, int? b_group_size, Tensor? b_channel_scales, Tensor? a_token_scales, "
    "str? schedule) -> Tensor",
    "cutlass_scaled_mm(Tensor! out, Tensor a, Tensor b, Tensor a_scales, Tensor b_scales, "
    "Tensor? bias) -> ()",
    "cutlass_scaled_mm_supports_block_fp8(int cuda_device_capability) -> bool",
)
BITS = {4 << 8 | 8 << 17 | 1 << 50: 4, 8 << 8 | 128 << 17 | 1 << 50: 8}  # uint4b8, uint8b128
# In which order Marlin's threads read the scales of 64 outputs (groups) or of 32 (whole rows).
GROUP_ORDER = [i + 8 * j for i in range(8) for j in range(8)]
ROW_ORDER = [2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)]


@contextmanager
def declared_operators(**others: Callable[..., object]) -> Iterator[None]:
    """Declare the operators in torch.ops._C; `others` take the place of some, by name."""
    library = torch.library.Library("_C", "FRAGMENT")
    computed = {
        "gptq_marlin_repack": repack,
        "marlin_gemm": marlin,
        "machete_prepack_B": prepack,
        "machete_mm": machete,
        "cutlass_scaled_mm": scaled,
        "cutlass_scaled_mm_supports_block_fp8": lambda capability: capability >= 90,
    }
    for schema in SCHEMAS:
        name = schema.split("(")[0]
        library.define(schema)
        library.impl(name, (computed | others)[name], "CompositeExplicitAutograd")
    try:
        yield
    finally:
        library._destroy()


def repack(words, size_k, size_n, num_bits, is_a_8bit):
    assert words.is_contiguous()
    assert not is_a_8bit
    assert words.shape == (size_k * num_bits // 32, size_n)
    return words.reshape(size_k // 16, size_n * num_bits // 2)


def marlin(a, c, words, bias, scale, a_scales, global_scale, zeros, locks, kind, m, n, k, *flags):
    assert c is bias is a_scales is global_scale is None
    assert zeros.numel() == 0
    assert flags == (False, True, False)
    assert a.is_contiguous()
    assert a.shape == (m, k)
    assert locks.dtype == torch.int32
    assert not locks.any()
    assert n % 64 == 0 == k % 128 or n % 128 == 0 == k % 64
    order = torch.tensor(GROUP_ORDER if len(scale) > 1 else ROW_ORDER)
    as_stored = torch.empty_like(scale).view(-1, len(order))
    as_stored[:, order] = scale.view(-1, len(order))
    bits = BITS[kind]
    weight = unpacked(words.reshape(k * bits // 32, n), bits)
    return scaled_product(a, weight, as_stored.view(scale.shape))


def prepack(words, a_type, kind, scale_type):
    assert words.stride(0) == 1  # column after column
    assert a_type == scale_type
    assert BITS[kind] == 4
    return words.clone()


def machete(a, words, kind, out_type, scale, zeros, group_size, channel, token, schedule):
    assert out_type is zeros is channel is token is schedule is None
    assert a.is_contiguous()
    assert scale.is_contiguous()
    assert group_size in (64, 128)
    weight = unpacked(words, BITS[kind])
    assert len(scale) * group_size == len(weight)
    return scaled_product(a, weight, scale)


def scaled(out, a, b, a_scale, b_scale, bias):
    assert bias is None
    assert out.dtype in (torch.bfloat16, torch.float16)
    assert (a.stride(1), b.stride(0), out.stride(1)) == (1, 1, 1)
    assert b.stride(1) % 16 == 0
    assert out.stride(0) % 16 == 0
    assert a_scale.dtype == b_scale.dtype == torch.float32
    values, weight = a.double(), b.double()
    if a_scale.numel() == len(a) and b_scale.numel() == b.shape[1]:
        assert a_scale.is_contiguous()
        assert b_scale.is_contiguous()
        values, weight = values * a_scale.view(-1, 1), weight * b_scale.view(1, -1)
    else:
        assert len(a) % 4 == 0
        assert a_scale.shape == (len(a), len(b) // 128)
        assert a_scale.stride() == (1, len(a))
        assert b_scale.shape == (len(b) // 128, b.shape[1] // 128)
        assert b_scale.stride() == (1, len(b) // 128)
        values = values * a_scale.repeat_interleave(128, 1)
        weight = weight * b_scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
    out.copy_((values @ weight).to(out.dtype))


def unpacked(words: Tensor, bits: int) -> Tensor:
    """Integers, (in, out), of words whose lowest bits hold the first of their columns."""
    places = torch.arange(32 // bits)[None, :, None] * bits
    unsigned = ((words.to(torch.int64) & 0xFFFFFFFF)[:, None, :] >> places) & (2**bits - 1)
    return unsigned.reshape(-1, words.shape[1]) - 2 ** (bits - 1)


def scaled_product(a: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """The product with integers, (in, out), scaled by groups, (groups, out)."""
    wide = scale.double().repeat_interleave(len(weight) // len(scale), 0)
    return (a.double() @ (weight * wide)).to(a.dtype)
