"""The package's own C kernels: they compute what their integers and scales say."""

from __future__ import annotations

import pytest
import torch

from quantdraft.checkpoints.formats import SCHEMES
from quantdraft.checkpoints.tensors.rounding import round_inputs
from quantdraft.checkpoints.tensors.unpacking import Unpacked, dequantize
from quantdraft.engines.kernels.c_library import VARIABLE, available_sets
from quantdraft.engines.kernels.few_rows import (
    Bf16FewRowsLinear,
    F32FewRowsLinear,
    Int4FewRowsLinear,
    Int8DynamicFewRowsLinear,
    Int8FewRowsLinear,
    compiled_library,
)
from quantdraft.engines.kernels.operations import Program
from quantdraft.engines.native.model import EXACT_KERNELS

try:
    compiled_library()
except ValueError as lacking:
    pytest.skip(f"not offered on this machine: {lacking}", allow_module_level=True)


@pytest.fixture(params=available_sets(), autouse=True)
def instructions(request, monkeypatch) -> str:
    """Every test runs on each instruction set that this CPU has."""
    monkeypatch.setenv(VARIABLE, request.param)
    return request.param


ALL_ROWS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 33]
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
    wanted = x.double() @ dequantize(weight).double().T + bias
    found = kernel(weight, bias, torch.float32)(x)
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("rows", ALL_ROWS)
@pytest.mark.parametrize("group_size", [32, 64, 128, 256])
@pytest.mark.parametrize("zero_point", [False, True])
def test_int4_equals_the_dequantized_product(rows, group_size, zero_point):
    weight = random_weight(4, group_size, zero_point, out=37)
    # A zero point's products are as large as the weights', and are rounded alike.
    assert error_of(Int4FewRowsLinear, weight, rows) < TOLERANCE * (2 if zero_point else 1)


@pytest.mark.parametrize("rows", ALL_ROWS)
def test_int8_equals_the_dequantized_product(rows):
    assert error_of(Int8FewRowsLinear, random_weight(8, None, False, out=37), rows) < TOLERANCE


@pytest.mark.parametrize("rows", ALL_ROWS)
@pytest.mark.parametrize("out", [1, 3, 4, 37])
@pytest.mark.parametrize("columns", [32, 96, IN])
def test_int8_dynamic_rounds_as_the_format_says_and_adds_exactly(rows, out, columns):
    generator = torch.Generator().manual_seed(rows)
    weight = random_weight(8, None, False, out)
    weight = weight._replace(integers=weight.integers[:, :columns].contiguous())
    spread = torch.logspace(-3, 3, rows)[:, None]  # a scale of its own for every row
    x = torch.randn(rows, columns, generator=generator) * spread
    x[rows // 2] *= 0.0
    found = Int8DynamicFewRowsLinear(weight, None, torch.float32)(x)
    levels_times_scale = round_inputs(x, SCHEMES["W8A8"]).double()
    wanted = levels_times_scale @ dequantize(weight).double().T
    # The whole number, the product of both scales and their product are rounded, 2^-24 each; the
    # reference has inputs that are rounded products themselves, and weights: 2^-24 of every term.
    terms = levels_times_scale.abs() @ dequantize(weight).double().abs().T
    assert ((found - wanted).abs() <= 3 * 2**-24 * wanted.abs() + 2 * 2**-24 * terms).all()


def test_int8_dynamic_sums_of_whole_numbers_are_exact():
    generator = torch.Generator().manual_seed(0)
    integers = torch.randint(-128, 128, (9, IN), generator=generator).to(torch.int8)
    x = torch.randint(-127, 127, (7, IN), generator=generator).float()
    x[:, 0] = -127.5  # the largest: one step is then 1, and it becomes -128
    weight = Unpacked(integers, torch.ones(9, 1), None, None, None)
    found = Int8DynamicFewRowsLinear(weight, None, torch.float32)(x)
    assert torch.equal(found.double(), x.round().double() @ integers.double().T)


@pytest.mark.parametrize("rows", ALL_ROWS)
@pytest.mark.parametrize("columns", [16, 48, IN])
def test_bf16_weights_and_float32_inputs_are_summed_in_float32(rows, columns):
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(37, columns, generator=generator).to(torch.bfloat16)
    assert_summed_in_float32(Bf16FewRowsLinear, weight, rows)


@pytest.mark.parametrize("rows", ALL_ROWS)
@pytest.mark.parametrize("columns", [1, 7, 33, IN])
def test_float32_weights_of_any_width_are_summed_in_float32(rows, columns):
    generator = torch.Generator().manual_seed(rows)
    assert_summed_in_float32(F32FewRowsLinear, torch.randn(37, columns, generator=generator), rows)


def assert_summed_in_float32(kernel, weight: torch.Tensor, rows: int) -> None:
    generator = torch.Generator().manual_seed(100 + rows)
    bias = torch.randn(37, generator=generator)
    x = torch.randn(rows, weight.shape[1], generator=generator)
    module = kernel(weight, bias, torch.float32)
    product = x.double() @ weight.double().T
    wanted = product + bias
    # Sums of n float32 products are within n / 2 units of 2^-24 at worst, and the bias's sum is
    # rounded; rounding inputs to bfloat16, the mistake to catch, would cost 2^-9.
    allowed = weight.shape[1] * 2**-25 * product.norm() + 2**-24 * wanted.norm()
    assert (module(x) - wanted).norm() <= allowed
    assert module.weight.data_ptr() == weight.data_ptr(), "the checkpoint's tensor is used as it is"
    assert module.kernel in EXACT_KERNELS


def test_a_kernels_name_tells_its_instruction_set(instructions):
    weight = random_weight(8, None, False, out=5)
    kernel = Int8DynamicFewRowsLinear(weight, None, torch.float32).kernel
    assert kernel == f"int8_dynamic_few_rows_{instructions}"
    assert kernel not in EXACT_KERNELS


def test_what_the_kernels_cannot_take_is_said():
    with pytest.raises(ValueError, match="not stored in bfloat16"):
        Bf16FewRowsLinear(torch.ones(4, 32), None, torch.float32)
    with pytest.raises(ValueError, match="24 columns are not a multiple of 16"):
        Bf16FewRowsLinear(torch.ones(4, 24, dtype=torch.bfloat16), None, torch.float32)
    for given, dtype in ((torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)):
        with pytest.raises(ValueError, match="not stored and multiplied in float32"):
            F32FewRowsLinear(torch.ones(4, 32, dtype=given), None, dtype)
    for kernel in (Int8FewRowsLinear, Int8DynamicFewRowsLinear):
        with pytest.raises(ValueError, match="48 columns are not a multiple of 32"):
            kernel(of_one_value(1, 4, 48), None, torch.float32)
    with pytest.raises(ValueError, match="more than 65536 columns leave 32 bits"):
        Int8DynamicFewRowsLinear(of_one_value(1, 4, 65536 + 32), None, torch.float32)


def of_one_value(value: int, out: int, columns: int) -> Unpacked:
    integers = torch.full((out, columns), value, dtype=torch.int8)
    return Unpacked(integers, torch.ones(out, 1), None, None, None)


@pytest.mark.parametrize("value", [-128, 127])
@pytest.mark.parametrize("sign", [-5.0, 5.0])
def test_sums_at_the_extremes_stay_within_32_bits(value, sign):
    module = Int8FewRowsLinear(of_one_value(value, 3, IN), None, torch.float32)
    assert torch.allclose(module(torch.full((1, IN), sign)), torch.full((1, 3), value * sign * IN))


@pytest.mark.parametrize("value", [-128, 127])
@pytest.mark.parametrize("level", [-128, 127])
def test_the_largest_sums_of_bytes_stay_within_32_bits(value, level):
    module = Int8DynamicFewRowsLinear(of_one_value(value, 5, 65536), None, torch.float32)
    x = torch.full((2, 65536), level / 128)
    x[:, 0] = -1.0  # the largest
    step = torch.tensor(1.0) / 127.5
    levels = (x / step).round().clamp(-128, 127).double().sum(1, keepdim=True)
    wanted = value * levels * step.double()
    # The whole number and its product with the step are rounded, 2^-24 each.
    assert ((module(x) - wanted).abs() <= 2 * 2**-24 * wanted.abs()).all()


@pytest.mark.parametrize("group_size", [32, 64, 128, 256])
def test_4_bit_weights_and_zeros_at_the_extremes(group_size):
    for value, zero in ((-8, 7), (7, -8)):
        scale = torch.ones(5, IN // group_size)
        zeros = torch.full_like(scale, zero, dtype=torch.int8)
        integers = torch.full((5, IN), value, dtype=torch.int8)
        module = Int4FewRowsLinear(
            Unpacked(integers, scale, zeros, group_size, None), None, torch.float32
        )
        wanted = torch.full((3, 5), 2.0 * (value - zero) * IN)
        assert torch.allclose(module(torch.full((3, IN), 2.0)), wanted)


def test_columns_are_taken_in_the_weights_order():
    weight = random_weight(4, 64, True, out=5)
    order = torch.randperm(IN, generator=torch.Generator().manual_seed(0))
    module = Int4FewRowsLinear(weight._replace(column_order=order), None, torch.float32)
    x = torch.randn(2, IN, generator=torch.Generator().manual_seed(1))
    wanted = x[:, order] @ dequantize(weight).T
    assert (module(x) - wanted).norm() / wanted.norm() < 2 * TOLERANCE


def one_of_each(out: int = 5) -> list[torch.nn.Module]:
    eight = random_weight(8, None, False, out)
    generator = torch.Generator().manual_seed(out)
    dense = torch.randn(out, IN, generator=generator)
    return [
        Int4FewRowsLinear(random_weight(4, 64, True, out), None, torch.float32),
        Int4FewRowsLinear(random_weight(4, 128, False, out), None, torch.float32),
        Int8FewRowsLinear(eight, None, torch.float32),
        Int8DynamicFewRowsLinear(eight, None, torch.float32),
        Bf16FewRowsLinear(dense.to(torch.bfloat16), None, torch.float32),
        F32FewRowsLinear(dense, None, torch.float32),
    ]


def test_zeros_give_zero_and_what_is_no_number_stays_none_in_its_row():
    for module in one_of_each():
        assert (module(torch.zeros(3, IN)) == 0).all()
        assert (module(torch.full((1, IN), 1e-42))).abs().max() < 1e-36  # steps of no whole bits
        for bad in (float("nan"), float("inf"), float("-inf")):
            x = torch.ones(3, IN)
            x[1, 7] = bad
            found = module(x)
            assert not found[1].isfinite().any()
            assert found[[0, 2]].isfinite().all()


@pytest.mark.parametrize("rows", [1, 3])
def test_an_operation_writes_into_columns_of_a_wider_matrix(rows):
    x = torch.randn(rows, IN, generator=torch.Generator().manual_seed(rows))
    for module in one_of_each(out=6):
        wide = torch.full((rows, 16), 7.0)
        operation = module.as_operation(x, wide[:, 5:11], room)
        Program([operation]).run()
        assert torch.equal(wide[:, 5:11], module(x))
        assert (wide[:, :5] == 7).all()
        assert (wide[:, 11:] == 7).all()


def room(num_bytes: int) -> torch.Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8)


def test_the_dtype_of_the_input_is_the_outputs():
    module = Int4FewRowsLinear(random_weight(4, 128, False, out=5), None, torch.bfloat16)
    assert module(torch.ones(2, 3, IN, dtype=torch.bfloat16)).shape == (2, 3, 5)
    assert module(torch.ones(1, IN, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("kind", ["int4", "int4 in order", "int8", "int8 dynamic", "bf16", "f32"])
def test_a_kernel_as_an_operation_computes_what_it_computes(rows, has_bias, kind):
    generator = torch.Generator().manual_seed(rows)
    bias = torch.randn(37, generator=generator) if has_bias else None
    dense = torch.randn(37, IN, generator=generator)
    if kind == "bf16":
        module = Bf16FewRowsLinear(dense.to(torch.bfloat16), bias, torch.float32)
    elif kind == "f32":
        module = F32FewRowsLinear(dense, bias, torch.float32)
    elif kind.startswith("int8"):
        made = Int8DynamicFewRowsLinear if kind == "int8 dynamic" else Int8FewRowsLinear
        module = made(random_weight(8, None, False, out=37), bias, torch.float32)
    else:
        order = torch.randperm(IN, generator=generator) if kind == "int4 in order" else None
        packed = random_weight(4, 64, True, out=37)._replace(column_order=order)
        module = Int4FewRowsLinear(packed, bias, torch.float32)
    x, out = torch.randn(rows, IN, generator=generator), torch.empty(rows, 37)
    program = Program([module.as_operation(x, out, room)])
    for _ in range(2):
        program.run()
        assert torch.equal(out, module(x))
        x.mul_(-3.0)  # it reads its input anew in every run
