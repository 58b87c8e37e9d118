"""Shapes against published parameter counts, and against the models transformers builds of them."""

from __future__ import annotations

import math

import pytest

from quantdraft.checkpoints.shapes import shape_checkpoint, shape_config, shape_names
from quantdraft.errors import OptionError
from quantdraft.quantize.ledger import byte_ledger, project
from quantdraft.quantize.recipe import load_recipe
from quantdraft.record.step_bytes import ceiling

# Exact counts of the safetensors (a tied head counted once), as model cards round them.
NUM_PARAMETERS = {
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
}


def test_every_shape_has_a_published_count():
    assert set(shape_names()) == set(NUM_PARAMETERS)


@pytest.mark.parametrize("name", NUM_PARAMETERS)
def test_parameters_are_as_many_as_published(name):
    shapes = [info.shape for info in shape_checkpoint(name).tensors.values()]
    assert sum(math.prod(shape) for shape in shapes) == NUM_PARAMETERS[name]


@pytest.mark.parametrize("name", ["llama-3.2-1b", "qwen3-8b", "qwen2.5-0.5b", "smollm2-135m"])
def test_tensors_are_those_of_the_model_that_transformers_builds(name):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    plain = shape_config(name)
    config = AutoConfig.for_model(**plain)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    wanted = {n: tuple(p.shape) for n, p in model.named_parameters()}  # a tied head appears once
    found = {n: info.shape for n, info in shape_checkpoint(name).tensors.items()}
    assert found == wanted
    assert model.config.architectures == plain["architectures"] == [type(model).__name__]


def test_the_rope_of_llama_32_is_scaled_as_published():
    from transformers import AutoConfig

    rope = AutoConfig.for_model(**shape_config("llama-3.2-1b")).rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["rope_theta"]) == ("llama3", 32.0, 500000.0)


def test_the_ledger_takes_a_shape_like_any_checkpoint():
    draft = shape_checkpoint("llama-3.2-1b")
    before = byte_ledger(draft)
    assert before.head_bytes == 128256 * 2048 * 2  # tied, and read as a head
    assert before.kv_bytes_per_context_token == 2 * 16 * 8 * 64 * 2
    after = project(draft, load_recipe("int4"))
    body = 16 * (2 * 2048 * 2048 + 2 * 512 * 2048 + 3 * 2048 * 8192)
    assert before.attention_bytes + before.mlp_bytes == 2 * body
    # 4 bits a weight and a bf16 scale for each 128 of them
    assert after.attention_bytes + after.mlp_bytes == body // 2 + 2 * body // 128
    assert 2.0 < ceiling(before, after) < 2.6


def test_an_unknown_shape_is_one_line_with_the_names():
    with pytest.raises(
        OptionError,
        match=r"no shape 'llama-4'. Did you mean 'llama-3.2-3b'\? There are: llama-3.2-1b, .*360m",
    ):
        shape_checkpoint("llama-4")
