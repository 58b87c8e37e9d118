"""Tiny pairs of many architectures: random weights, bfloat16, the embedded pair's tokenizer.

`save_pair(name, directory)` writes one; the fixture `architecture_pair` writes each once a session.
Weights are wider apart than usual, so that text varies; the draft is the target with noise.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
NUM_LAYERS = 2

# Widths are multiples of 128: the groups of int4.
TEXT: Mapping[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
# A window shorter than the texts of the tests, so that it matters.
WINDOW = 16


def _text(config_name: str, without: tuple[str, ...] = (), **fields: Any) -> Callable[[], Any]:
    """Return what builds a config by its class's name: `TEXT`, less some fields, plus others."""

    def build() -> Any:
        import transformers

        kept = {name: value for name, value in TEXT.items() if name not in without}
        return getattr(transformers, config_name)(**{**kept, **fields})

    return build


def _phi3_long() -> Any:
    """Long-RoPE: short factors up to 64 positions, long ones from there."""
    short, long = [1.0] * 16, [1.0 + index / 4 for index in range(16)]
    return _text(
        "Phi3Config",
        ("head_dim",),
        original_max_position_embeddings=64,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": short,
            "long_factor": long,
            "original_max_position_embeddings": 64,
        },
    )()


def _gemma3_vision() -> Any:
    """A Gemma 3 of text and images, as most of them are published."""
    text = _text("Gemma3TextConfig", sliding_window=WINDOW, layer_types=_kinds("sliding"))()
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    from transformers import Gemma3Config

    config = Gemma3Config(text_config=text.to_dict(), vision_config=vision, mm_tokens_per_image=4)
    config.image_token_index = config.image_token_id = 4000
    config.boi_token_index, config.eoi_token_index = 4001, 4002
    return config


def _kinds(first: str) -> list[str]:
    """Return the kinds of the layers: the first of this one, the last of full attention."""
    return [f"{first}_attention"] * (NUM_LAYERS - 1) + ["full_attention"]


NO_ATTENTION = (
    "head_dim",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "max_position_embeddings",
)
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 128}

ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "llama": _text("LlamaConfig"),
    "llama-dynamic": _text(
        "LlamaConfig",
        max_position_embeddings=64,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    ),
    "llama-yarn": _text(
        "LlamaConfig",
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    ),
    "mistral": _text("MistralConfig", sliding_window=WINDOW),
    "qwen2": _text("Qwen2Config", ("head_dim",)),
    "qwen3": _text("Qwen3Config"),
    "gemma2": _text(
        "Gemma2Config", sliding_window=WINDOW, query_pre_attn_scalar=32, tie_word_embeddings=False
    ),
    "gemma3": _text(
        "Gemma3TextConfig",
        sliding_window=WINDOW,
        layer_types=_kinds("sliding"),
        tie_word_embeddings=False,
    ),
    "gemma3-vision": _gemma3_vision,
    "phi": _text("PhiConfig", ("head_dim",)),
    "phi3-long": _phi3_long,
    "granite": _text("GraniteConfig", ("head_dim",)),
    "olmo2": _text("Olmo2Config", ("head_dim",)),
    "glm4": _text("Glm4Config"),
    "cohere": _text("CohereConfig", ("head_dim",)),
    "smollm3": _text("SmolLM3Config", ("head_dim",), no_rope_layers=[1, 0]),
    "nemotron": _text("NemotronConfig"),
    "starcoder2": _text(
        "Starcoder2Config", ("head_dim",), sliding_window=WINDOW, tie_word_embeddings=False
    ),
    "stablelm": _text("StableLmConfig", ("head_dim",)),
    "gpt2": _text("GPT2Config", ("head_dim", "num_key_value_heads", "intermediate_size")),
    "qwen3-moe": _text("Qwen3MoeConfig", num_experts=4, **EXPERTS),
    "mixtral": _text("MixtralConfig", num_local_experts=4, num_experts_per_tok=2),
    "gpt-oss": _text(
        "GptOssConfig",
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=WINDOW,
        layer_types=_kinds("sliding"),
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    "deepseek-v3": _text(
        "DeepseekV3Config",
        ("head_dim",),
        num_key_value_heads=4,
        q_lora_rank=128,
        kv_lora_rank=128,
        qk_nope_head_dim=32,
        qk_rope_head_dim=32,
        v_head_dim=32,
        n_routed_experts=4,
        n_shared_experts=1,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        **EXPERTS,
    ),
    "mamba": _text("MambaConfig", NO_ATTENTION, state_size=16, time_step_rank=8),
    "mamba2": _text(
        "Mamba2Config",
        NO_ATTENTION,
        num_heads=8,
        head_dim=32,
        state_size=16,
        n_groups=1,
        chunk_size=8,
    ),
    "falcon-h1": _text(
        "FalconH1Config",
        mamba_d_ssm=256,
        mamba_n_heads=8,
        mamba_d_head=32,
        mamba_d_state=16,
        mamba_chunk_size=8,
    ),
    "bamba": _text(
        "BambaConfig",
        ("head_dim",),
        attn_layer_indices=[1],
        mamba_n_heads=8,
        mamba_d_head=32,
        mamba_d_state=16,
        mamba_chunk_size=8,
    ),
    "jamba": _text(
        "JambaConfig",
        ("head_dim",),
        num_experts=4,
        num_experts_per_tok=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=16,
        mamba_dt_rank=8,
        use_mamba_kernels=False,
    ),
    "qwen3-next": _text(
        "Qwen3NextConfig",
        num_experts=4,
        shared_expert_intermediate_size=128,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=32,
        linear_value_head_dim=32,
        **EXPERTS,
    ),
    "lfm2": _text(
        "Lfm2Config",
        ("head_dim",),
        layer_types=["conv", "full_attention"],
        block_multiple_of=128,
        block_auto_adjust_ff_dim=False,
    ),
}


def save_pair(name: str, directory: Path, noise: float = 0.1) -> tuple[Path, Path]:
    """Write a target and a draft of an architecture; return their directories.

    noise: of the draft's weights, relative to each weight's standard deviation
    """
    target = _random_model(ARCHITECTURES[name]())
    draft = add_noise(copy.deepcopy(target), noise)
    save_model(target, directory / "target")
    save_model(draft, directory / "draft")
    return directory / "target", directory / "draft"


def _random_model(config: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, Gemma3ForConditionalGeneration

    torch.manual_seed(0)
    if config.model_type == "gemma3":
        return spread_weights(Gemma3ForConditionalGeneration(config))
    return spread_weights(AutoModelForCausalLM.from_config(config))


def spread_weights(model: Any) -> Any:
    """Return the model with its matrices' weights wider apart."""
    import torch

    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() >= 2:
                weight.mul_(3.0)
    return model


def add_noise(model: Any, noise: float) -> Any:
    """Return the model with noise on its matrices, relative to their standard deviations."""
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() >= 2:
                drawn = torch.randn(weight.shape, generator=generator)
                weight.add_(drawn * weight.std() * noise)
    return model


def save_model(model: Any, directory: Path) -> None:
    """Write a model in bfloat16, with the tokenizer of the embedded pair."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.save_pretrained(directory)
    copy_tokenizer(directory)


def copy_tokenizer(directory: Path) -> None:
    """Copy the embedded pair's tokenizer into a directory."""
    from quantdraft.checkpoints.reference import pair_dir

    for name in TOKENIZER_FILES:
        shutil.copyfile(pair_dir() / "target" / name, directory / name)
