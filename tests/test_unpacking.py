"""Stored integers come back as they were packed, and stand for the right weights."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from quantdraft.errors import CheckpointError  # noqa: E402
from quantdraft.schemes import SCHEMES  # noqa: E402
from quantdraft.unpacking import (  # noqa: E402
    Unpacked,
    dequantized,
    rounded_inputs,
    unpack_int32,
    unpacked,
)


def test_nibbles_are_lowest_first_and_offset_by_8() -> None:
    word = sum((value + 8) << (4 * i) for i, value in enumerate([-8, -7, -1, 0, 1, 2, 3]))
    packed = torch.tensor([[word]], dtype=torch.int32)
    assert unpack_int32(packed, 4, 7).tolist() == [[-8, -7, -1, 0, 1, 2, 3]]


def test_highest_field_survives_the_sign_bit() -> None:
    packed = torch.tensor([[-1]], dtype=torch.int32)  # every field is all ones
    assert unpack_int32(packed, 4, 8).tolist() == [[7] * 8]
    assert unpack_int32(packed, 8, 4).tolist() == [[127] * 4]


@pytest.mark.parametrize("num_bits", [4, 8])
@pytest.mark.parametrize("columns", [64, 20])
def test_unpacks_what_compressed_tensors_packs(num_bits: int, columns: int) -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    low, high = -(2 ** (num_bits - 1)), 2 ** (num_bits - 1)
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(low, high, (6, columns), generator=generator).to(torch.int8)
    packed = helpers.pack_to_int32(values, num_bits)
    assert torch.equal(unpack_int32(packed, num_bits, columns), values)


def test_group_scales_spread_over_their_groups() -> None:
    integers = torch.ones(2, 4, dtype=torch.int8)
    scale = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    weight = Unpacked(integers, scale, None, 2, None)
    assert dequantized(weight).tolist() == [[1, 1, 2, 2], [3, 3, 4, 4]]


def test_block_scales_spread_over_cut_blocks() -> None:
    integers = torch.ones(3, 3, dtype=torch.int8)
    scale = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    weight = Unpacked(integers, scale, None, None, (2, 2))
    assert dequantized(weight).tolist() == [[1, 1, 2], [1, 1, 2], [3, 3, 4]]


def test_zero_point_is_subtracted_before_scaling() -> None:
    weight = Unpacked(
        torch.tensor([[5, 7]], dtype=torch.int8),
        torch.tensor([[0.5]]),
        torch.tensor([[3]], dtype=torch.int8),
        None,
        None,
    )
    assert dequantized(weight).tolist() == [[1.0, 2.0]]


def test_dense_weight_under_an_int8_format_is_refused() -> None:
    tensors = {"m.weight": torch.zeros(2, 2), "m.weight_scale": torch.ones(2, 1)}
    with pytest.raises(CheckpointError, match="claims to be quantized and is not"):
        unpacked(tensors, "m", SCHEMES["W8A8"])


def test_missing_scale_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"lacks 'm\.weight_scale'"):
        unpacked({}, "m", SCHEMES["W4A16"])


def test_int8_inputs_are_rounded_per_token_to_within_half_a_step() -> None:
    inputs = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    rounded = rounded_inputs(inputs, SCHEMES["W8A8"])
    step = inputs.abs().amax(-1, keepdim=True) / 127.5
    assert ((rounded - inputs).abs() <= 0.5 * step * 1.001).all()
    assert not torch.equal(rounded, inputs)


def test_weight_only_schemes_leave_inputs_alone() -> None:
    inputs = torch.randn(2, 8)
    assert rounded_inputs(inputs, SCHEMES["W4A16"]) is inputs
