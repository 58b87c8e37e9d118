"""Draft heads as their publishers store them, with random weights: config.json and safetensors.

Sizes: hidden 256, 4 heads of 64, 2 of keys and values, intermediate 512, target vocabulary 512,
draft vocabulary 128. Names and shapes are those that vLLM 0.32 and SGLang load.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

HIDDEN, INTER, VOCAB, DRAFT_VOCAB, KV, RANK = 256, 512, 512, 128, 128, 32
Shapes = dict[str, tuple[int, ...]]
DECODER: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": INTER,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": VOCAB,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "attention_bias": False,
    "mlp_bias": False,
}


def _speculators(kind: str, model_type: str, **extra: Any) -> dict[str, Any]:
    return {
        "architectures": [f"{kind.title()}DraftModel"],
        "speculators_model_type": kind,
        "speculators_config": {
            "algorithm": kind,
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 4}],
            "verifier": {"name_or_path": "org/target", "architectures": ["LlamaForCausalLM"]},
        },
        "transformer_layer_config": {**DECODER, "model_type": model_type},
        **extra,
    }


def _layer(prefix: str, qkv_inputs: int = HIDDEN) -> Shapes:
    attention = {
        "q_proj": (HIDDEN, qkv_inputs),
        "k_proj": (KV, qkv_inputs),
        "v_proj": (KV, qkv_inputs),
        "o_proj": (HIDDEN, HIDDEN),
    }
    mlp = {"gate_proj": (INTER, HIDDEN), "up_proj": (INTER, HIDDEN), "down_proj": (HIDDEN, INTER)}
    shapes: Shapes = {f"{prefix}self_attn.{n}.weight": s for n, s in attention.items()}
    shapes |= {f"{prefix}mlp.{n}.weight": s for n, s in mlp.items()}
    norms = ("input_layernorm", "post_attention_layernorm")
    return shapes | {f"{prefix}{n}.weight": (HIDDEN,) for n in norms}


def _eagle3(prefix: str) -> Shapes:
    return {
        **_layer(prefix, 2 * HIDDEN),
        f"{prefix}hidden_norm.weight": (HIDDEN,),
        "fc.weight": (HIDDEN, 3 * HIDDEN),
        "norm.weight": (HIDDEN,),
        "lm_head.weight": (DRAFT_VOCAB, HIDDEN),
        "d2t": (DRAFT_VOCAB,),
        "t2d": (VOCAB,),
    }


def _dflash() -> Shapes:
    layers: Shapes = {}
    for index in range(2):
        layers |= _layer(f"layers.{index}.")
        layers |= {f"layers.{index}.self_attn.{n}.weight": (64,) for n in ("q_norm", "k_norm")}
    outer = {"fc.weight": (HIDDEN, 2 * HIDDEN), "hidden_norm.weight": (HIDDEN,)}
    return {**layers, **outer, "norm.weight": (HIDDEN,)}


def _dspark() -> Shapes:
    return {
        **_dflash(),
        "markov_head.markov_w1.weight": (VOCAB, RANK),
        "markov_head.markov_w2.weight": (VOCAB, RANK),
        "confidence_head.proj.weight": (1, HIDDEN + RANK),
        "confidence_head.proj.bias": (1,),
    }


def _nextn() -> Shapes:
    """DeepSeek's layer 61: latent attention and 4 experts."""
    at = "model.layers.61."
    shapes: Shapes = {f"{at}{n}.weight": (HIDDEN,) for n in ("enorm", "hnorm", "shared_head.norm")}
    shapes |= {f"{at}eh_proj.weight": (HIDDEN, 2 * HIDDEN)}
    shapes |= {f"{at}{n}.weight": (VOCAB, HIDDEN) for n in ("embed_tokens", "shared_head.head")}
    attention = {
        "q_a_proj": (128, HIDDEN),
        "q_b_proj": (HIDDEN, 128),
        "kv_a_proj_with_mqa": (144, HIDDEN),
        "kv_b_proj": (HIDDEN, 128),
        "o_proj": (HIDDEN, HIDDEN),
    }
    shapes |= {f"{at}self_attn.{n}.weight": s for n, s in attention.items()}
    mlp = {"gate_proj": (128, HIDDEN), "up_proj": (128, HIDDEN), "down_proj": (HIDDEN, 128)}
    for expert in range(4):
        shapes |= {f"{at}mlp.experts.{expert}.{n}.weight": s for n, s in mlp.items()}
    return shapes | {f"{at}mlp.gate.weight": (4, HIDDEN)}


def _qwen3_next() -> Shapes:
    norms = ("norm", "pre_fc_norm_hidden", "pre_fc_norm_embedding")
    shapes = {**_layer("mtp.layers.0."), "mtp.fc.weight": (HIDDEN, 2 * HIDDEN)}
    return shapes | {f"mtp.{name}.weight": (HIDDEN,) for name in norms}


LAYOUTS: dict[str, tuple[dict[str, Any], Shapes]] = {
    "eagle3": (
        {
            **DECODER,
            "architectures": ["LlamaForCausalLMEagle3"],
            "model_type": "llama",
            "draft_vocab_size": DRAFT_VOCAB,
            "tie_word_embeddings": False,
        },
        _eagle3("midlayer."),
    ),
    "eagle3-speculators": (
        _speculators("eagle3", "llama", draft_vocab_size=DRAFT_VOCAB),
        {**_eagle3("layers.0."), "embed_tokens.weight": (VOCAB, HIDDEN)},
    ),
    "dflash": (
        {
            **DECODER,
            "architectures": ["DFlashDraftModel"],
            "model_type": "qwen3",
            "num_hidden_layers": 2,
            "block_size": 16,
            "dflash_config": {"mask_token_id": 500, "target_layer_ids": [1, 3]},
            "tie_word_embeddings": True,  # the target's, as z-lab's configs have it
        },
        _dflash(),
    ),
    "dspark": (
        {
            **DECODER,
            "architectures": ["Qwen3DSparkModel"],
            "model_type": "qwen3",
            "num_hidden_layers": 2,
            "markov_rank": RANK,
            "block_size": 7,
            "mask_token_id": 500,
        },
        _dspark(),
    ),
    "mtp-qwen3-next": (
        {
            **DECODER,
            "architectures": ["Qwen3NextForCausalLM"],
            "model_type": "qwen3_next",
            "num_hidden_layers": 48,
            "num_nextn_predict_layers": 1,
        },
        _qwen3_next(),
    ),
    "mtp-deepseek": (
        {
            **DECODER,
            "architectures": ["DeepseekV3ForCausalLM"],
            "model_type": "deepseek_v3",
            "num_hidden_layers": 61,
            "num_nextn_predict_layers": 1,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
        },
        _nextn(),
    ),
}


def write_head(directory: Path, layout: str, seed: int = 0) -> Path:
    """Write a head of a published layout in bfloat16, its tables of ids as they are stored."""
    config, shapes = LAYOUTS[layout]
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: _tensor(name, shape, generator) for name, shape in shapes.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def edit_head(path: Path, tensors: dict[str, Any], config: dict[str, Any]) -> None:
    """Replace tensors and fields of the config of a stored head; None removes."""
    found = {**load_file(path / "model.safetensors"), **tensors}
    save_file({n: t for n, t in found.items() if t is not None}, path / "model.safetensors")
    fields = {**json.loads((path / "config.json").read_text(encoding="utf-8")), **config}
    fields = {name: value for name, value in fields.items() if value is not None}
    (path / "config.json").write_text(json.dumps(fields), encoding="utf-8")


def _tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if name == "d2t":
        return torch.arange(shape[0]) * 3
    if name == "t2d":
        return torch.arange(shape[0]) % 4 == 0
    values = torch.randn(shape, generator=generator) * 0.05
    return values if name.startswith("confidence_head") else values.to(torch.bfloat16)
