"""4-bit floats and their scales, against the values of the specification."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from quantdraft.checkpoints.formats import SCHEMES  # noqa: E402
from quantdraft.checkpoints.tensors.microscaling import (  # noqa: E402
    exponents,
    round_to_e2m1,
    unpack_e2m1,
    unpack_microscaled,
)
from quantdraft.errors import CheckpointError  # noqa: E402

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def test_every_code_stands_for_its_value_and_the_low_half_comes_first():
    codes = torch.arange(16, dtype=torch.uint8)
    packed = (codes[0::2] | (codes[1::2] << 4)).unsqueeze(0)
    values = unpack_e2m1(packed).float() / 2
    assert values.tolist() == [[*E2M1, *(-v for v in E2M1)]]


def test_exponents_are_powers_of_two_around_127():
    assert exponents(torch.tensor([126, 127, 130], dtype=torch.uint8)).tolist() == [0.5, 1.0, 8.0]


def test_values_round_to_the_nearest_and_ties_to_the_even_code():
    given = [0.24, 0.25, 0.26, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 5.01, 9.0, -2.4]
    expected = [0.0, 0.0, 0.5, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0, 6.0, -2.0]
    assert round_to_e2m1(torch.tensor(given)).tolist() == expected


def test_rounding_equals_compressed_tensors():
    utils = pytest.importorskip("compressed_tensors.quantization.utils.fp4_utils")
    values = torch.randn(4096, generator=torch.Generator().manual_seed(0)) * 3
    assert torch.equal(round_to_e2m1(values), utils.cast_to_fp4(values.clamp(-6, 6)))


def test_nvfp4_divides_by_the_global_scale():
    packed = torch.tensor([[0x72]], dtype=torch.uint8)  # codes 2 (1.0) and 7 (6.0)
    scale = torch.tensor([[4.0]]).to(torch.float8_e4m3fn)
    integers, scales = unpack_microscaled(packed, scale, torch.tensor([8.0]), SCHEMES["NVFP4A16"])
    assert (integers.float() * scales).tolist() == [[0.5, 3.0]]


def test_mxfp4_scales_are_exponents():
    packed = torch.tensor([[0x72]], dtype=torch.uint8)
    scale = torch.tensor([[129]], dtype=torch.uint8)
    integers, scales = unpack_microscaled(packed, scale, None, SCHEMES["MXFP4"])
    assert (integers.float() * scales).tolist() == [[4.0, 24.0]]


def test_dense_weight_under_an_fp4_format_is_refused():
    with pytest.raises(CheckpointError, match="claims to be quantized and is not"):
        unpack_microscaled(
            torch.zeros(2, 16), torch.zeros(2, 1, dtype=torch.uint8), None, SCHEMES["MXFP4"]
        )
