"""Schemes say what is stored; the names that engines match are matched alike here."""

from __future__ import annotations

import pytest

from quantdraft.checkpoints.formats import SCHEMES
from quantdraft.checkpoints.stored_formats import kv_scales, linear_modules, matches, stored_format
from quantdraft.checkpoints.weights import TensorInfo
from quantdraft.quantize.recipe import bundled_recipe_names, load_recipe
from quantdraft.quantize.recipe_formats import (
    formats_by_module,
    has_one_group,
    ignored_names,
    weight_format,
)
from tests.stored import llama_tensors

TENSORS = {n: TensorInfo(d, s, "model.safetensors") for n, (d, s) in llama_tensors().items()}
GROUP = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "strategy": "group"}}
GROUP["weights"] |= {"group_size": 128, "symmetric": True}  # type: ignore[index]


def test_every_bundled_recipe_loads_and_is_described() -> None:
    names = bundled_recipe_names()
    required = {"fp8", "fp8-block", "int8", "int8-weight-only", "int4", "int4-gptq", "identity"}
    assert required <= set(names)
    for name in names:
        recipe = load_recipe(name)
        assert recipe.scheme in {*SCHEMES, "none"}
        if not has_one_group(recipe):
            assert "vLLM" in recipe.summary


def test_linear_modules_leave_out_embeddings_and_norms() -> None:
    found = list(linear_modules(TENSORS))
    assert len(found) == 7
    assert not any("embed" in name or "norm" in name for name in found)


def test_ignored_names_match_under_any_prefix() -> None:
    ignored = ignored_names(load_recipe("int4"), TENSORS)
    assert matches("lm_head", ignored)
    assert matches("draft_model.lm_head", ignored)
    assert matches("model.embed_tokens", ignored)
    assert not matches("model.layers.0.mlp.up_proj", ignored)
    assert not matches("lm_head", ignored_names(load_recipe("int4-head8"), TENSORS))


@pytest.mark.parametrize(
    ("stored", "module"),
    [
        ("vision_embed_tokens.weight", "vision_embed_tokens"),  # Fuyu's tower is one module
        ("biogpt.layers.0.fc1.weight", "output_projection"),  # tied, and not stored
        ("gpt_neox_japanese.embed_in.weight", "embed_out"),
        ("model.embeddings.tok_embeddings.weight", "decoder"),
        ("cls.predictions.transform.dense.weight", "cls.predictions.decoder"),
        ("transformer.w.weight", "transformer.w"),  # CTRL's embedding
    ],
)
def test_heads_towers_and_embeddings_of_other_names_are_ignored(stored: str, module: str) -> None:
    tensors = {stored: TENSORS["model.layers.0.mlp.up_proj.weight"]}
    found = linear_modules(tensors | {f"{module}.weight": tensors[stored]})
    ignored = ignored_names(load_recipe("int4"), tensors)
    assert module not in found
    assert matches(module, ignored)
    assert not matches("model.layers.0.mlp.up_proj", ignored)


def test_head_lever_gives_the_head_a_format() -> None:
    tensors = TENSORS | {"lm_head.weight": TENSORS["model.embed_tokens.weight"]}
    formats = formats_by_module(load_recipe("int4-head8"), tensors)
    assert formats["lm_head"] == SCHEMES["W8A16"]
    assert formats["model.layers.0.mlp.up_proj"] == SCHEMES["W4A16"]
    assert "lm_head" not in formats_by_module(load_recipe("int4"), tensors)


def test_config_groups_read_back_as_the_format_they_were_made_from() -> None:
    quantization = {"config_groups": {"group_0": GROUP}, "ignore": ["lm_head"]}
    assert stored_format(quantization, "model.layers.0.mlp.up_proj") == SCHEMES["W4A16"]
    assert stored_format(quantization, "lm_head") is None


def test_what_a_recipe_configures_reads_back_as_its_format() -> None:
    """compressed-tensors' own words for a format, and the format again."""
    pytest.importorskip("compressed_tensors")
    from quantdraft.quantize.backends.config_groups import quantization_config

    for name in bundled_recipe_names():
        recipe = load_recipe(name)
        if recipe.backend == "llmcompressor" and recipe.scheme != "none":
            config = quantization_config(recipe, TENSORS).model_dump(mode="json")
            found = stored_format(config, "model.layers.0.mlp.up_proj")
            assert found == weight_format(recipe), name


def test_gptq_and_bitsandbytes_configs_are_read() -> None:
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}
    fmt = stored_format(gptq, "model.layers.0.mlp.up_proj")
    assert fmt == weight_format(load_recipe("int4-gptq-gptqmodel"))
    assert stored_format(gptq, "lm_head") is None
    double = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    double["bnb_4bit_use_double_quant"] = True
    assert stored_format(double, "model.layers.0.mlp.up_proj") == SCHEMES["NF4_DOUBLE"]
    assert stored_format(double, "lm_head") is None


def test_scales_of_a_quantized_cache_lie_beside_each_attention() -> None:
    scales = kv_scales(TENSORS)
    assert sorted(scales) == [
        "model.layers.0.self_attn.k_scale",
        "model.layers.0.self_attn.v_scale",
    ]
    assert all(info.shape == (1,) for info in scales.values())


def test_a_named_group_wins_over_the_class() -> None:
    weights = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
    head = {"targets": ["re:.*lm_head$"], "weights": weights}
    quantization = {"config_groups": {"group_0": GROUP, "head": head}}
    assert stored_format(quantization, "lm_head") == SCHEMES["W8A16"]
