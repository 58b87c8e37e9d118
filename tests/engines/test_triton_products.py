"""Triton's products in its interpreter, on a CPU, against float64. Run by `make test-triton`.

The interpreter rounds a value to FP8 wrongly (126 becomes 64), so that inputs of FP8 products are
FP8 values whose step is 1. It cuts bfloat16 results off instead of rounding: results are float32.
"""

from __future__ import annotations

import os
from types import ModuleType

import pytest
import torch
from torch import Tensor

from quantdraft.checkpoints.formats import SCHEMES
from quantdraft.checkpoints.tensors.rounding import round_inputs
from quantdraft.checkpoints.tensors.unpacking import Unpacked, dequantize
from quantdraft.engines.kernels.dequantizing import pack_halves

pytestmark = [
    pytest.mark.triton,
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]

FP8 = torch.float8_e4m3fn
SCHEME = {torch.int8: "W8A8", FP8: "FP8_DYNAMIC"}
# Sums of up to some thousand float32 products: their roundings are 2**-24 each, and independent.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def products() -> ModuleType:
    """The products as the interpreter runs them; without it these tests fail."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.fail("these tests run in Triton's interpreter: make test-triton")
    from quantdraft.engines.kernels import triton_products

    return triton_products


def byte_weight(dtype: torch.dtype, columns: int, outputs: int, seed: int = 0) -> Unpacked:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-128, 128, (outputs, columns), generator=generator)
    scale = torch.rand((outputs, 1), generator=generator) * 1e-2 + 1e-3
    return Unpacked(values.float().to(dtype), scale, None, None, None)


def nibble_weight(columns: int, outputs: int, group_size: int, has_zero: bool) -> Unpacked:
    generator = torch.Generator().manual_seed(0)
    integers = torch.randint(-8, 8, (outputs, columns), generator=generator).to(torch.int8)
    scale = torch.rand((outputs, columns // group_size), generator=generator) * 1e-2 + 1e-3
    zeros = torch.randint(-8, 8, scale.shape, generator=generator).to(torch.int8)
    return Unpacked(integers, scale, zeros if has_zero else None, group_size, None)


def inputs(rows: int, columns: int, dtype: torch.dtype = torch.int8) -> Tensor:
    """Normal numbers; for FP8 values of that type whose largest is its limit, so that step is 1."""
    x = torch.randn((rows, columns), generator=torch.Generator().manual_seed(1))
    if dtype == FP8:
        x = (x * 100).to(FP8).float()
        x[:, -1] = 448.0
    return x


def off(found: Tensor, wanted: Tensor) -> float:
    """The largest error of a row, relative to that row's norm."""
    return float(((found.double() - wanted).norm(dim=1) / wanted.norm(dim=1)).max())


def exact(x: Tensor, weight: Unpacked, is_rounded: bool = False) -> Tensor:
    """The product in float64, of inputs rounded as the weight's scheme says."""
    if is_rounded:
        x = round_inputs(x, SCHEMES[SCHEME[weight.integers.dtype]])
    return x.double() @ dequantize(weight).double().T


@pytest.mark.parametrize("dtype", [torch.int8, FP8])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_handed_on_and_spoils_no_other_row(products, dtype, number):
    weight = byte_weight(dtype, columns=96, outputs=5)
    x = inputs(4, 96, dtype)
    wanted = products.byte_product(x, weight.integers, weight.scale[:, 0])
    x[2, 50] = number
    for rounds_inputs in (True, False):
        found = products.byte_product(x, weight.integers, weight.scale[:, 0], rounds_inputs)
        assert not found[2].isfinite().any()
        assert found[[0, 1, 3]].isfinite().all()
        if rounds_inputs:
            assert torch.equal(found[[0, 1, 3]], wanted[[0, 1, 3]])
    rounded, step = products.round_rows_by_triton(x, dtype)
    assert not (rounded.float() * step)[2, 50].isfinite()
    assert step.isfinite().tolist() == [[True], [True], [False], [True]]


@pytest.mark.parametrize(
    ("group_size", "has_zero"), [(32, True), (64, False), (128, True), (256, False)]
)
@pytest.mark.parametrize("rows", [1, 16])
def test_four_bit_products_are_exact(products, group_size, has_zero, rows):
    weight = nibble_weight(2 * 3 * group_size, 37, group_size, has_zero)
    x = inputs(rows, 6 * group_size)
    halves = pack_halves(weight.integers)
    found = products.nibble_product(x, halves, weight.scale, weight.zero_point, group_size)
    assert off(found, exact(x, weight)) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.int8, FP8])
@pytest.mark.parametrize("rounds_inputs", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 8, 9, 16, 17])
def test_eight_bit_products_are_exact(products, dtype, rounds_inputs, rows):
    weight = byte_weight(dtype, columns=1040, outputs=37)
    x = inputs(rows, 1040, dtype)
    found = products.byte_product(x, weight.integers, weight.scale[:, 0], rounds_inputs)
    assert off(found, exact(x, weight, rounds_inputs)) < TOLERANCE


@pytest.mark.parametrize("columns", [1, 15, 500, 513, 3000])
def test_columns_of_any_number_are_summed_to_the_last(products, columns):
    weight = byte_weight(torch.int8, columns, outputs=17)
    x = inputs(3, columns)
    for rounds_inputs in (True, False):
        found = products.byte_product(x, weight.integers, weight.scale[:, 0], rounds_inputs)
        assert off(found, exact(x, weight, rounds_inputs)) < TOLERANCE


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, TOLERANCE), (torch.float16, 2**-11)]
)
@pytest.mark.parametrize("rows", [1, 2, 8, 9, 16])
@pytest.mark.parametrize("columns", [1, 500, 1040])
def test_products_of_floats_are_exact(products, dtype, tolerance, rows, columns):
    """float16 stands for bfloat16: the interpreter multiplies that type's bits as integers."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn((37, columns), generator=generator).to(dtype)
    x = inputs(rows, columns).to(dtype)
    found = products.byte_product(x, weight, torch.ones(37), rounds_inputs=False)
    assert found.dtype == dtype
    assert off(found, x.double() @ weight.double().T) < tolerance


def test_wide_tiles_give_the_same_as_narrow_ones(products, monkeypatch):
    weight = byte_weight(torch.int8, columns=640, outputs=45)
    x = inputs(9, 640)
    narrow = products.byte_product(x, weight.integers, weight.scale[:, 0])
    monkeypatch.setattr(products, "WIDE_OUTPUTS", 45)
    assert products.byte_tile(9, 45)["block_outputs"] == 32
    assert torch.equal(products.byte_product(x, weight.integers, weight.scale[:, 0]), narrow)


def test_weights_beyond_two_to_the_31st_byte_are_found(products):
    weight = byte_weight(torch.int8, columns=64, outputs=18)
    far = torch.empty(17 * 2**27 + 64, dtype=torch.int8)  # mapped, and touched in 18 places
    values = far.as_strided((18, 64), (2**27, 1))
    values.copy_(weight.integers)
    x = inputs(2, 64)
    for rounds_inputs in (True, False):
        found = products.byte_product(x, values, weight.scale[:, 0], rounds_inputs)
        assert off(found, exact(x, weight, rounds_inputs)) < TOLERANCE


def test_extreme_levels_do_not_overflow(products):
    """The largest input and the smallest weight, -128 both, in 8,192 columns."""
    weight = byte_weight(torch.int8, columns=8192, outputs=16)
    weight.integers.fill_(-128)
    x = torch.full((1, 8192), -1.0)
    found = products.byte_product(x, weight.integers, weight.scale[:, 0])
    assert off(found, exact(x, weight, is_rounded=True)) < TOLERANCE
