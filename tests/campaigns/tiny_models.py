"""Tiny models of any model type that transformers knows: its default config, with small sizes.

Every list of layer kinds keeps one layer of each kind. Random weights, bfloat16, the tokenizer of
the embedded pair.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.architectures import TEXT, WINDOW, add_noise, copy_tokenizer, save_model, spread_weights

MAX_PARAMETERS = 30_000_000
LEAST_LAYERS = 2
# Sizes by what they are called; a field that a config does not have is left alone.
_NAMES: Mapping[int, str] = {
    128: """
        d_model n_embd emb_dim dim_model embedding_size embedding_dim ffn_hidden_size
        ffn_dim decoder_ffn_dim encoder_ffn_dim moe_intermediate_size
        shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size
        dense_intermediate_size dim_ff dff d_inner moe_shared_expert_intermediate_size
        intermediate_size_mlp feed_forward_size mlp_dim q_lora_rank kv_lora_rank
        word_embed_proj_dim input_embedding_size output_embedding_size
        pronunciation_embed_dim shape_embed_dim lru_width attention_hidden_size
        backbone_hidden_size hidden_size_per_layer_input router_hidden_size o_lora_rank
        out_hidden_size vision_output_dim projector_input_dim projector_output_dim
        linear_head_dim hidden_size_global ple_embed_dim
    """,
    2: """
        n_layer n_layers num_layers decoder_layers encoder_layers num_encoder_layers
        num_decoder_layers depth num_blocks num_global_layers conf_num_hidden_layers
        num_layers_per_stack kv_n_heads num_kv_heads swa_num_key_value_heads
        linear_num_key_heads num_experts_per_tok num_experts_per_token moe_topk moe_top_k
        moe_k o_groups global_attn_every_n_layers attn_layer_period no_rope_layer_interval
    """,
    4: """
        n_head n_heads num_heads decoder_attention_heads encoder_attention_heads
        attention_heads num_encoder_attention_heads num_decoder_attention_heads
        swa_num_attention_heads linear_num_value_heads linear_num_heads num_experts
        n_routed_experts num_local_experts moe_num_experts conf_num_attention_heads
        zero_expert_num hc_mult
    """,
    1: """
        n_shared_experts num_shared_experts moe_num_shared_experts n_group topk_group
        num_expert_group mamba_n_groups n_groups first_k_dense_replace attn_layer_offset
    """,
    32: """
        qk_rope_head_dim qk_nope_head_dim v_head_dim swa_head_dim d_head linear_key_head_dim
        linear_value_head_dim index_head_dim dim_head kv_channels attention_head_size
        rotary_dim base_channels mamba_d_head mamba_head_dim mamba_headdim
    """,
    8: """
        mamba_n_heads mamba_num_heads n_mamba_heads mamba_chunk_size chunk_size
        mamba_dt_rank time_step_rank
    """,
    16: """
        state_size ssm_state_size mamba_d_state hc_lowrank adapter_rank sliding_window
        window_size attention_chunk_size sliding_window_size keep_window_size
        attention_window_size local_attention index_topk index_n_heads
    """,
    512: """
        n_positions n_ctx max_seq_len context_length max_source_positions
        max_target_positions original_max_position_embeddings model_max_length
        position_bias_max_distance
    """,
    4096: """
        vocab_size_per_layer_input decoder_vocab_size ngram_vocab_size_base
        encoder_hash_byte_group_vocab shape_vocab_size audio_vocab_size
    """,
    64: """
        qk_head_dim
    """,
    0: """
        num_kv_shared_layers num_nextn_predict_layers
    """,
    256: """
        mamba_d_ssm
    """,
    28: """
        image_size
    """,
    14: """
        patch_size
    """,
}
SIZES: Mapping[str, int] = {
    **{name: size for size, names in _NAMES.items() for name in names.split()},
    **{name: size for name, size in TEXT.items() if not name.endswith("_token_id")},
}
END_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
OTHER_TOKEN = 4000  # of images and of sounds: no text of the tests has it
# Absent by default and needed, or out of step with the sizes above.
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
_SOUND = {"text_encoder": {"model_type": "t5"}, "audio_encoder": {"model_type": "encodec"}}
FIELDS: Mapping[str, Mapping[str, Any]] = {
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"sliding_attention": _MROPE, "full_attention": _MROPE},
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1}
    | {"first_k_dense_replace": 1},
    "dbrx": {"num_key_value_heads": 2}
    | {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2}
    | {"first_k_dense_replace": 1},
    "emu3": {
        "vocabulary_map": {"<image>": 4000, "<|visual token 000000|>": 4001, "<|extra_200|>": 4002}
    },
    "gemma4_text": {"per_layer_config": {"1": {"head_dim": 64}}},
    "gemma4_unified_text": {"per_layer_config": {"1": {"head_dim": 64}}},
    "hrm_text": {"num_hidden_layers": 16},  # of each stack 2, in 2 cycles of 3 and 1
    "hunyuan_v1_dense": {"head_dim": 32},
    "hunyuan_v1_moe": {"head_dim": 32},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 32},
    "musicgen": _SOUND | {"decoder": {"model_type": "musicgen_decoder"}},
    "musicgen_melody": _SOUND | {"decoder": {"model_type": "musicgen_melody_decoder"}},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": {"indexer_n_heads": 16, "indexer_kv_heads": 1, "indexer_head_dim": 32}
    | {"indexer_budget": 16, "indexer_compress_ratio": 4},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [64, 64]},
    "zamba": {"num_hidden_layers": 4, "attention_hidden_size": 256, "attention_head_dim": 64}
    | {"layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"]}
    | {"num_key_value_heads": 4},
    "zaya": {"num_experts_per_tok": 1},
    "zamba2": {"attention_hidden_size": 256, "attention_head_dim": 64, "num_key_value_heads": 4},
}
# Configs within them that are absent by default: their model types.
PARTS: Mapping[str, Mapping[str, str]] = {
    "gemma4_assistant": {"text_config": "gemma4_text"},
    "gemma4_unified_assistant": {"text_config": "gemma4_unified_text"},
}
LEFT_OUT = {"per_layer_config"}  # by the numbers of layers that are no longer there


def tiny_config(model_type: str) -> Any:
    """Return a small config of a model type."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[model_type]
    fields = _small_fields(config_class().to_dict())
    for name, part in PARTS.get(model_type, {}).items():
        fields[name] = tiny_config(part).to_dict()
    return config_class(**fields)


def _small_fields(default: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is given to a config's class, in place of its defaults."""
    lists = _by_layer(default)
    layers = max([LEAST_LAYERS, *(len(_different(each)) for each in lists.values())])
    fields: dict[str, Any] = {}
    for name, value in default.items():
        if name in lists:
            fields[name] = (_different(value) * layers)[:layers]
        elif name in END_TOKENS:
            fields[name] = 0
        elif name.endswith(("_token_id", "_token_index")) and isinstance(value, int):
            fields[name] = OTHER_TOKEN
        elif name in SIZES and type(value) is int and value > 0:
            fields[name] = SIZES[name]
        elif name.endswith("_config") and isinstance(value, dict):
            fields[name] = _small_part(value)
    if "num_hidden_layers" in default:
        fields["num_hidden_layers"] = layers
    if "kv_lora_rank" in default:  # latent attention: every head has keys of its own
        fields["num_key_value_heads"] = SIZES["num_attention_heads"]
    return fields | FIELDS.get(default.get("model_type", ""), {})


def _small_part(default: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config within a config: its own values, in small."""
    from transformers import PretrainedConfig

    usual = PretrainedConfig().to_dict().keys() - {"model_type"}
    own = {k: v for k, v in default.items() if k not in usual and k not in LEFT_OUT}
    own = own if own.get("model_type") else {k: v for k, v in own.items() if k != "model_type"}
    return own | _small_fields(own)


def _by_layer(default: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the fields that hold a list of as many values as there are layers."""
    depths = (default.get(name) for name in ("num_hidden_layers", "n_layer", "num_layers"))
    depth = next((each for each in depths if isinstance(each, int)), 0)
    return {
        name: value
        for name, value in default.items()
        if isinstance(value, list) and len(value) == depth > 1
    }


def _different(values: Sequence[Any]) -> list[Any]:
    """Return the different values of a list, in their order, and sizes small."""
    found = [value for index, value in enumerate(values) if value not in values[:index]]
    return [TEXT["intermediate_size"] if type(v) is int and v > WINDOW else v for v in found]


def model_class(config: Any) -> Any:
    """Return the class in which models of this config are published."""
    import transformers
    from transformers.models.auto import modeling_auto

    for names in (
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    ):
        if config.model_type in names:
            return getattr(transformers, names[config.model_type])
    raise LookupError(config.model_type)


def save_tiny_pair(model_type: str, directory: Path) -> tuple[Path, Path]:
    """Write a target and a draft of a model type; return their directories.

    Where no tiny model can be built, the directories hold the config and no layer.
    """
    try:
        target = _random_model(tiny_config(model_type))
    except Exception as error:  # each architecture checks its config in its own way
        print(f"{model_type}: no tiny model ({type(error).__name__}: {error})"[:300], flush=True)
        return _save_stub(model_type, directory / "target"), _save_stub(
            model_type, directory / "draft"
        )
    save_model(add_noise(copy.deepcopy(target), 0.1), directory / "draft")
    save_model(target, directory / "target")
    return directory / "target", directory / "draft"


def _random_model(config: Any) -> Any:
    import torch

    made = model_class(config)
    with torch.device("meta"):
        count = sum(math.prod(each.shape) for each in made(config).parameters())
    if count > MAX_PARAMETERS:
        raise ValueError(f"{count:,} parameters, more than {MAX_PARAMETERS:,}")
    torch.manual_seed(0)
    return spread_weights(made(config))


def _save_stub(model_type: str, directory: Path) -> Path:
    """Write a directory with a config of this model type and an embedding table."""
    import torch
    from safetensors.torch import save_file

    directory.mkdir(parents=True)
    (directory / "config.json").write_text(
        json.dumps({"model_type": model_type, **FIELDS.get(model_type, {})})
    )
    table = torch.zeros(TEXT["vocab_size"], TEXT["hidden_size"], dtype=torch.bfloat16)
    save_file({"model.embed_tokens.weight": table}, directory / "model.safetensors")
    copy_tokenizer(directory)
    return directory
