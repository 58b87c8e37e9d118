"""Each kernel's module computes what its integers and scales say."""

from __future__ import annotations

import pytest
import torch

from quantdraft.kernels import NoKernelError, kernel_for
from quantdraft.kernels.cpu import Int4Linear, Int8DynamicLinear, Int8WeightOnlyLinear

OUT, IN = 96, 256


def made(kernel, num_bits: int, group_size: int, zero_point: bool = False):
    """A module of random integers, its inputs, and the product of its dequantized weights."""
    generator = torch.Generator().manual_seed(0)
    low, high = -(2 ** (num_bits - 1)), 2 ** (num_bits - 1)
    integers = torch.randint(low, high, (OUT, IN), generator=generator).to(torch.int8)
    scale = torch.rand((OUT, IN // group_size), generator=generator) * 0.01 + 0.001
    zeros = None
    if zero_point:
        zeros = torch.randint(low, high, scale.shape, generator=generator).to(torch.int8)
    bias = torch.randn(OUT, generator=generator)
    values = integers.float()
    if zeros is not None:
        values = values - zeros.float().repeat_interleave(group_size, 1)
    weight = values * scale.repeat_interleave(group_size, 1)
    x = torch.randn((2, 3, IN), generator=generator)
    return kernel(integers, scale, zeros, bias, torch.float32), x, x @ weight.T + bias


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("zero_point", [False, True])
def test_int4_equals_the_dequantized_product(group_size, zero_point):
    module, x, wanted = made(Int4Linear, 4, group_size, zero_point)
    assert module(x).shape == wanted.shape
    assert relative_error(module(x), wanted) < 1e-5


def test_int8_weight_only_equals_the_dequantized_product():
    module, x, wanted = made(Int8WeightOnlyLinear, 8, IN)
    assert relative_error(module(x), wanted) < 1e-5


def test_int8_dynamic_is_within_the_rounding_of_its_activations():
    module, x, wanted = made(Int8DynamicLinear, 8, IN)
    # A 7-bit step of the largest input (about 3.3 sigma of 768) is 2 * 3.3 / 127 = 0.052 sigma; its
    # rounding error is a step over sqrt(12), 0.015 of the inputs' and so of the outputs' spread.
    assert relative_error(module(x), wanted) < 0.03


def test_int8_dynamic_holds_at_the_extremes_where_16_bit_sums_would_saturate():
    integers = torch.full((OUT, IN), 127, dtype=torch.int8)
    module = Int8DynamicLinear(integers, torch.ones(OUT, 1), None, None, torch.float32)
    x = torch.ones(1, IN)
    assert relative_error(module(x), torch.full((1, OUT), 127.0 * IN)) < 0.02


def test_int4_holds_a_quarter_of_the_bytes_of_bf16():
    module, _, _ = made(Int4Linear, 4, 128)
    assert module.packed.nbytes == OUT * IN // 2


def test_formats_without_a_kernel_say_so():
    with pytest.raises(NoKernelError, match="no cpu kernel computes in fp8"):
        kernel_for("cpu", "fp8")


def test_scales_in_groups_are_refused_by_a_kernel_of_rows():
    with pytest.raises(ValueError, match="one scale a row"):
        made(Int8WeightOnlyLinear, 8, 128)
