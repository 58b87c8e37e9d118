"""Stored integers come back as they were packed, and stand for the right weights."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from quantdraft.checkpoints.checkpoint import Checkpoint, open_checkpoint  # noqa: E402
from quantdraft.checkpoints.formats import SCHEMES  # noqa: E402
from quantdraft.checkpoints.tensors.packing import unpack_int32  # noqa: E402
from quantdraft.checkpoints.tensors.unpacking import (  # noqa: E402
    Codebook,
    Unpacked,
    dequantize,
    quantized_modules,
    stored_weight,
    unpack,
)
from quantdraft.errors import CheckpointError  # noqa: E402


def test_nibbles_are_lowest_first_and_offset_by_8() -> None:
    word = sum((value + 8) << (4 * i) for i, value in enumerate([-8, -7, -1, 0, 1, 2, 3]))
    packed = torch.tensor([[word]], dtype=torch.int32)
    assert unpack_int32(packed, 4, 7).tolist() == [[-8, -7, -1, 0, 1, 2, 3]]


def test_highest_field_survives_the_sign_bit() -> None:
    packed = torch.tensor([[-1]], dtype=torch.int32)  # every field is all ones
    assert unpack_int32(packed, 4, 8).tolist() == [[7] * 8]
    assert unpack_int32(packed, 8, 4).tolist() == [[127] * 4]


@pytest.mark.parametrize("num_bits", [2, 4, 8])
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
    assert dequantize(weight).tolist() == [[1, 1, 2, 2], [3, 3, 4, 4]]


def test_block_scales_spread_over_cut_blocks() -> None:
    integers = torch.ones(3, 3, dtype=torch.int8)
    scale = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    weight = Unpacked(integers, scale, None, None, (2, 2))
    assert dequantize(weight).tolist() == [[1, 1, 2], [1, 1, 2], [3, 3, 4]]


def test_zero_point_is_subtracted_before_scaling() -> None:
    weight = Unpacked(
        torch.tensor([[5, 7]], dtype=torch.int8),
        torch.tensor([[0.5]]),
        torch.tensor([[3]], dtype=torch.int8),
        None,
        None,
    )
    assert dequantize(weight).tolist() == [[1.0, 2.0]]


def test_dense_weight_under_an_int8_format_is_refused() -> None:
    tensors = {"m.weight": torch.zeros(2, 2), "m.weight_scale": torch.ones(2, 1)}
    with pytest.raises(CheckpointError, match="claims to be quantized and is not"):
        unpack(tensors, "m", SCHEMES["W8A8"])


def test_missing_scale_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"lacks 'm\.weight_scale'"):
        unpack({}, "m", SCHEMES["W4A16"])


def words(fields: list[list[int]]) -> torch.Tensor:
    """Each row's unsigned 4-bit fields as int32 words, lowest bits first."""
    sums = [
        [
            sum(value << (4 * i) for i, value in enumerate(row[at : at + 8]))
            for at in range(0, len(row), 8)
        ]
        for row in fields
    ]
    return torch.tensor([[w - 2**32 if w >= 2**31 else w for w in row] for row in sums]).int()


def stored_checkpoint(
    directory, tensors: dict[str, torch.Tensor], quantization: dict
) -> Checkpoint:
    save_file({k: v.contiguous() for k, v in tensors.items()}, directory / "model.safetensors")
    config = {"model_type": "llama", "quantization_config": quantization}
    (directory / "config.json").write_text(json.dumps(config))
    return open_checkpoint(directory)


def gptq_checkpoint(directory, group_of_column: list[int], version: str, stored_zero: int):
    """8 outputs of 16 inputs: field (output + input) % 16, scale (group + 1) / 4."""
    fields = [[(out + column) % 16 for column in range(16)] for out in range(8)]
    tensors = {
        "m.q_proj.qweight": words(fields).T,  # packed along the inputs, transposed
        "m.q_proj.qzeros": words([[stored_zero] * 8] * 2),
        "m.q_proj.scales": torch.tensor([[0.25] * 8, [0.5] * 8], dtype=torch.float16),
        "m.q_proj.g_idx": torch.tensor(group_of_column, dtype=torch.int32),
        "m.norm.weight": torch.ones(16),
        "lm_head.weight": torch.ones(8, 16),
    }
    config = {"quant_method": "gptq", "bits": 4, "group_size": 8, "checkpoint_format": version}
    config["sym"] = stored_zero == 7
    return stored_checkpoint(directory, tensors, config)


def only_weight(checkpoint: Checkpoint) -> Unpacked | Codebook:
    """The weight of the one quantized module."""
    ((module, fmt),) = quantized_modules(checkpoint).items()
    return stored_weight(checkpoint, module, fmt)


@pytest.mark.parametrize(("version", "stored_zero"), [("gptq", 4), ("gptq_v2", 5)])
@pytest.mark.parametrize(
    "group_of_column", [[0] * 8 + [1] * 8, [0, 1] * 8, [1, 1, 0, 0, 1, 0, 1, 0] * 2]
)
def test_gptq_checkpoints_are_read_as_published(tmp_path, version, stored_zero, group_of_column):
    checkpoint = gptq_checkpoint(tmp_path, group_of_column, version, stored_zero)
    assert list(quantized_modules(checkpoint)) == ["m.q_proj"]
    weight = only_weight(checkpoint)
    wanted = [
        [((out + column) % 16 - 5) * (group_of_column[column] + 1) / 4 for column in range(16)]
        for out in range(8)
    ]
    assert dequantize(weight).tolist() == wanted
    assert (weight.column_order is None) == (group_of_column == [0] * 8 + [1] * 8)


def test_symmetric_gptq_has_no_zero_point(tmp_path):
    checkpoint = gptq_checkpoint(tmp_path, [0] * 8 + [1] * 8, "gptq", 7)
    weight = only_weight(checkpoint)
    assert weight.zero_point is None
    assert weight.integers[0].tolist() == list(range(-8, 8))


def test_zero_points_under_a_symmetric_gptq_config_are_refused(tmp_path):
    """Of the other checkpoint_format, say: vLLM's kernels for 'sym' do not read them."""
    checkpoint = gptq_checkpoint(tmp_path, [0] * 8 + [1] * 8, "gptq_v2", 7)
    with pytest.raises(CheckpointError, match=r"m\.q_proj\.qzeros.*'sym' true"):
        only_weight(checkpoint)


def test_gptq_groups_of_unequal_size_are_refused(tmp_path):
    checkpoint = gptq_checkpoint(tmp_path, [0] * 9 + [1] * 7, "gptq", 7)
    with pytest.raises(CheckpointError, match="does not put 8 columns in every group"):
        only_weight(checkpoint)


def test_gptq_in_another_libraries_packing_is_refused(tmp_path):
    checkpoint = gptq_checkpoint(tmp_path, [0] * 8 + [1] * 8, "marlin", 7)
    with pytest.raises(CheckpointError, match="checkpoint_format 'marlin'"):
        only_weight(checkpoint)


def nf4_checkpoint(directory, is_double: bool) -> Checkpoint:
    """1 output of 128 inputs: indices 0, 1, ... 15, 0, ...; table of i / 16; scales 2 and 4."""
    indices = [i % 16 for i in range(128)]
    pairs = [indices[i] << 4 | indices[i + 1] for i in range(0, 128, 2)]  # the earlier one high
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [1, 128]}
    own = "m.up_proj.weight"
    tensors = {
        own: torch.tensor(pairs, dtype=torch.uint8)[:, None],
        f"{own}.quant_map": torch.arange(16) / 16,
        f"{own}.absmax": torch.tensor([2.0, 4.0]),
        "m.embed_tokens.weight": torch.ones(4, 4),
    }
    if is_double:  # 2 = 0.5 * 3 + 0.5 and 4 = 3.5 / 3 * 3 + 0.5
        table = torch.zeros(256)
        table[200], table[7] = 0.5, 3.5 / 3
        tensors[f"{own}.absmax"] = torch.tensor([200, 7], dtype=torch.uint8)
        tensors[f"{own}.nested_quant_map"] = table
        tensors[f"{own}.nested_absmax"] = torch.tensor([3.0])
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5}
    text = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    tensors[f"{own}.quant_state.bitsandbytes__nf4"] = text
    config = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": is_double,
    }
    return stored_checkpoint(directory, tensors, config)


@pytest.mark.parametrize("is_double", [False, True])
def test_bitsandbytes_checkpoints_are_read_as_transformers_saves_them(tmp_path, is_double):
    checkpoint = nf4_checkpoint(tmp_path, is_double)
    assert list(quantized_modules(checkpoint)) == ["m.up_proj"]
    weight = only_weight(checkpoint)
    assert isinstance(weight, Codebook)
    assert weight.shape == (1, 128)
    wanted = [i % 16 / 16 * (2.0 if i < 64 else 4.0) for i in range(128)]
    assert dequantize(weight)[0].tolist() == pytest.approx(wanted)


def test_llm_int8_scales_are_largest_values_over_127(tmp_path):
    tensors = {
        "m.up_proj.weight": torch.tensor([[127, -64]], dtype=torch.int8),
        "m.up_proj.SCB": torch.tensor([254.0]),
    }
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    weight = only_weight(stored_checkpoint(tmp_path, tensors, config))
    assert dequantize(weight).tolist() == [[254.0, -128.0]]
