"""The package's own C kernels: they compute what their integers and scales say."""

from __future__ import annotations

import pytest
import torch

from quantdraft.kernels.few_rows import (
    Bf16FewRowsLinear,
    Int4FewRowsLinear,
    Int8FewRowsLinear,
    compiled_library,
)
from quantdraft.kernels.operations import Program
from quantdraft.unpacking import Unpacked, dequantized

try:
    compiled_library()
except ValueError as lacking:
    pytest.skip(f"not offered on this machine: {lacking}", allow_module_level=True)

IN = 512
# An input is at most half a step of its group's largest over 32767 away, a step over sqrt(12) in
# the mean; the largest of 256 normal numbers is about 3 sigma: 3 / 32767 / sqrt(12) = 2.6e-5.
TOLERANCE = 5e-5


def random_weight(num_bits: int, group_size: int | None, zero_point: bool, out: int) -> Unpacked:
    generator = torch.Generator().manual_seed(out)
    half = 2 ** (num_bits - 1)
    integers = torch.randint(-half, half, (out, IN), generator=generator).to(torch.int8)
    scale = torch.rand(out, 1 if group_size is None else IN // group_size, generator=generator)
    zeros = None
    if zero_point:
        zeros = torch.randint(-half, half, scale.shape, generator=generator).to(torch.int8)
    return Unpacked(integers, scale * 0.01 + 0.001, zeros, group_size, None)


def error_of(kernel, weight: Unpacked, rows: int) -> float:
    generator = torch.Generator().manual_seed(rows)
    bias = torch.randn(len(weight.integers), generator=generator)
    x = torch.randn(rows, IN, generator=generator)
    wanted = x.double() @ dequantized(weight).double().T + bias
    found = kernel(weight, bias, torch.float32)(x)
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("group_size", [32, 64, 128, 256])
@pytest.mark.parametrize("zero_point", [False, True])
def test_int4_equals_the_dequantized_product(rows, group_size, zero_point):
    weight = random_weight(4, group_size, zero_point, out=37)
    # A zero point's products are as large as the weights', and are rounded alike.
    assert error_of(Int4FewRowsLinear, weight, rows) < TOLERANCE * (2 if zero_point else 1)


@pytest.mark.parametrize("rows", [1, 4, 7])
def test_int8_equals_the_dequantized_product(rows):
    assert error_of(Int8FewRowsLinear, random_weight(8, None, False, out=37), rows) < TOLERANCE


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("columns", [16, 48, IN])
def test_bf16_weights_and_float32_inputs_are_summed_in_float32(rows, columns):
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(37, columns, generator=generator).to(torch.bfloat16)
    bias = torch.randn(37, generator=generator)
    x = torch.randn(rows, columns, generator=generator)
    module = Bf16FewRowsLinear(weight, bias, torch.float32)
    wanted = x.double() @ weight.double().T + bias
    # Sums of n float32 products are within n / 2 units of 2^-24 at worst; rounding inputs to
    # bfloat16, the mistake to catch, would cost 2^-9.
    assert (module(x) - wanted).norm() < columns * 2**-25 * wanted.norm()
    assert module.weight.data_ptr() == weight.data_ptr(), "the checkpoint's tensor is used as it is"


def test_what_the_bf16_kernel_cannot_take_is_said():
    with pytest.raises(ValueError, match="not stored in bfloat16"):
        Bf16FewRowsLinear(torch.ones(4, 32), None, torch.float32)
    with pytest.raises(ValueError, match="24 columns are no multiple of 16"):
        Bf16FewRowsLinear(torch.ones(4, 24, dtype=torch.bfloat16), None, torch.float32)


def test_sums_at_the_extremes_stay_within_32_bits():
    lowest = torch.full((3, IN), -128, dtype=torch.int8)
    module = Int8FewRowsLinear(
        Unpacked(lowest, torch.ones(3, 1), None, None, None), None, torch.float32
    )
    assert torch.allclose(module(torch.full((1, IN), 5.0)), torch.full((1, 3), -128.0 * 5 * IN))


def test_columns_are_taken_in_the_weights_order():
    weight = random_weight(4, 64, True, out=5)
    order = torch.randperm(IN, generator=torch.Generator().manual_seed(0))
    module = Int4FewRowsLinear(weight._replace(column_order=order), None, torch.float32)
    x = torch.randn(2, IN, generator=torch.Generator().manual_seed(1))
    wanted = x[:, order] @ dequantized(weight).T
    assert (module(x) - wanted).norm() / wanted.norm() < 2 * TOLERANCE


def test_zeros_give_zero_and_what_is_no_number_stays_none():
    modules = [
        Int4FewRowsLinear(random_weight(4, 64, False, out=5), None, torch.float32),
        Int8FewRowsLinear(random_weight(8, None, False, out=5), None, torch.float32),
        Bf16FewRowsLinear(torch.ones(5, IN, dtype=torch.bfloat16), None, torch.float32),
    ]
    for module in modules:
        assert (module(torch.zeros(1, IN)) == 0).all()
        for bad in (float("nan"), float("inf")):
            x = torch.zeros(1, IN)
            x[0, 7] = bad
            assert not module(x).isfinite().any()


def test_the_dtype_of_the_input_is_the_outputs():
    module = Int4FewRowsLinear(random_weight(4, 128, False, out=5), None, torch.bfloat16)
    assert module(torch.ones(2, 3, IN, dtype=torch.bfloat16)).shape == (2, 3, 5)
    assert module(torch.ones(1, IN, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("kind", ["int4", "int4 in order", "int8", "bf16"])
def test_a_kernel_as_an_operation_computes_what_it_computes(rows, has_bias, kind):
    generator = torch.Generator().manual_seed(rows)
    bias = torch.randn(37, generator=generator) if has_bias else None
    if kind == "bf16":
        weight = torch.randn(37, IN, generator=generator).to(torch.bfloat16)
        module = Bf16FewRowsLinear(weight, bias, torch.float32)
    elif kind == "int8":
        module = Int8FewRowsLinear(random_weight(8, None, False, out=37), bias, torch.float32)
    else:
        order = torch.randperm(IN, generator=generator) if kind == "int4 in order" else None
        packed = random_weight(4, 64, True, out=37)._replace(column_order=order)
        module = Int4FewRowsLinear(packed, bias, torch.float32)
    x, out = torch.randn(rows, IN, generator=generator), torch.empty(rows, 37)
    program = Program([module.as_operation(x, out, lambda n: torch.empty(n, dtype=torch.uint8))])
    for _ in range(2):
        program.run()
        assert torch.equal(out, module(x))
        x.mul_(-3.0)  # it reads its input anew in every run
