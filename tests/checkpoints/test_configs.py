"""What a model directory's JSON may say where this package reads it, and what it may not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.checkpoints.configs import (
    num_positions,
    read_generation_config,
    require_config,
    require_manifest,
)
from quantdraft.engines.findings import float_type
from quantdraft.errors import CheckpointError
from tests.stored import LLAMA_CONFIG, write_checkpoint

HERE = Path("model/config.json")
GROUP = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "strategy": "channel"}}
BY_GROUP = {"num_bits": 4, "type": "int", "strategy": "group"}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"vocab_size": "512"}, "vocab_size"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"vocab_size": 10**30}, "vocab_size"),
        ({"num_key_value_heads": [4, 8]}, "num_key_value_heads"),
        ({"head_dim": float("nan")}, "head_dim"),
        ({"eos_token_id": "0"}, "eos_token_id"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
        ({"text_config": [1]}, "text_config"),
        ({"text_config": {"vocab_size": -1}}, "text_config.vocab_size"),
        ({"transformer_layer_config": 7}, "transformer_layer_config"),
        ({"torch_dtype": 'float32"); import os #'}, "torch_dtype"),
        ({"quantization_config": "gptq"}, "quantization_config"),
        ({"quantization_config": {"quant_method": "gptq"}}, "needs 'bits'"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 0}}, "is 0"),
        ({"quantization_config": {"ignore": ["re:("]}}, "is not a pattern"),
        ({"quantization_config": {"config_groups": {"a": {"weights": {}}}}}, "targets"),
        (
            {"quantization_config": {"config_groups": {"a": GROUP | {"weights": {"type": "int"}}}}},
            "weights.num_bits",
        ),
        (
            {"quantization_config": {"config_groups": {"a": GROUP | {"weights": BY_GROUP}}}},
            "needs a group_size",
        ),
    ],
)
def test_a_field_that_cannot_be_is_named(changes: dict[str, Any], field: str):
    with pytest.raises(CheckpointError, match=field) as caught:
        require_config(LLAMA_CONFIG | changes, HERE)
    assert str(caught.value).startswith("'model/config.json': ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"eos_token_id": [1, 2], "bos_token_id": None, "pad_token_id": -1},
        {"intermediate_size": [8192, 8192]},  # a size a layer, as some publish
        {"dtype": "bfloat16", "torch_dtype": "torch.float16", "rope_theta": 1e6},
        {"dtype": {"text_config": "bfloat16"}},
        {"text_config": LLAMA_CONFIG, "vision_config": {"hidden_size": "any"}},
        {"quantization_config": {"quant_method": "awq", "bits": 4, "zero_point": True}},
        {"quantization_config": {"config_groups": {"a": GROUP}, "ignore": ["re:.*lm_head$"]}},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    ],
)
def test_what_publishers_write_is_read(changes: dict[str, Any]):
    require_config(LLAMA_CONFIG | changes, HERE)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"draft": "org/draft"}, "draft"),
        ({"draft": {"path": 7}}, "draft.path"),
        ({"recipe": {"summary": "x"}}, "recipe.name"),
        ({"recipe": {"name": "x", "scheme": ["W8A8"]}}, "recipe.scheme"),
        ({"calibration": {"prompt_ids": 3}}, "calibration.prompt_ids"),
        ({"sha256": {"config.json": 1}}, "sha256.config.json"),
    ],
)
def test_a_manifest_that_apply_did_not_write_is_refused(changes: dict[str, Any], field: str):
    with pytest.raises(CheckpointError, match=field):
        require_manifest({"schema_version": 1, **changes}, Path("quantdraft.json"))


def test_generation_settings_are_optional_and_checked(tmp_path: Path):
    assert read_generation_config(tmp_path) == {}
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": [1, 2], "temperature": 0.6}))
    assert read_generation_config(tmp_path)["eos_token_id"] == [1, 2]
    for wrong in ('{"eos_token_id": "</s>"}', "[]", "{", "[" * 10_000):
        file.write_text(wrong)
        with pytest.raises(CheckpointError, match=r"generation_config\.json"):
            read_generation_config(tmp_path)


def test_a_directory_is_checked_when_it_is_opened(tmp_path: Path):
    write_checkpoint(tmp_path, config={**LLAMA_CONFIG, "hidden_size": "256"})
    with pytest.raises(CheckpointError, match="hidden_size"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"dtype": "torch.bfloat16"}, "bfloat16"),
        ({"torch_dtype": "float16"}, "float16"),
        ({"text_config": {"dtype": "float32"}}, "float32"),
        ({"dtype": {"a": 1}}, None),
        ({"dtype": "float32) #"}, None),
        ({}, None),
    ],
)
def test_a_float_type_is_a_word_or_not_known(config: dict[str, Any], name: str | None):
    assert float_type(config) == name


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({}, None),
        ({"max_position_embeddings": "4096"}, None),
        ({"max_position_embeddings": 4096}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": None}, 4096),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 8192),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 4}}, 16384),
        # Of these `max_position_embeddings` is what they come to: Llama 3.1, Phi 3.
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, 4096),
        ({"rope_scaling": {"type": "longrope", "long_factor": [1.0, 2.0]}}, 4096),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 4096),
        # Qwen's are written either way.
        (
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 4096,
                }
            },
            16384,
        ),
        (
            {
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 2.0,
                    "original_max_position_embeddings": 2048,
                }
            },
            4096,
        ),
        ({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}}}, 32768),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, 4096),
        ({"rope_scaling": {"type": "linear", "factor": float("inf")}}, 4096),
        ({"rope_scaling": ["linear", 2.0]}, 4096),
    ],
)
def test_positions_are_stretched_as_the_rotary_embedding_says(config, positions):
    known = {"max_position_embeddings": 4096, **config} if config else {}
    assert num_positions(known) == positions
