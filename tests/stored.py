"""Safetensors files written by hand: a header that is known, and zeros for data."""

from __future__ import annotations

import json
import math
from pathlib import Path

from quantdraft.checkpoints.weights import ELEMENT_BYTES

Shapes = dict[str, tuple[str, tuple[int, ...]]]
LLAMA_CONFIG = {
    "model_type": "llama",
    "hidden_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "tie_word_embeddings": True,
}


def llama_tensors(dtype: str = "BF16") -> Shapes:
    """One layer, hidden 256, intermediate 768, 2 of 4 heads for keys, vocabulary 512, tied."""
    attention = {"q_proj": (256, 256), "k_proj": (128, 256), "v_proj": (128, 256)}
    attention["o_proj"] = (256, 256)
    mlp = {"gate_proj": (768, 256), "up_proj": (768, 256), "down_proj": (256, 768)}
    names: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (512, 256)}
    names |= {f"model.layers.0.self_attn.{n}.weight": s for n, s in attention.items()}
    names |= {f"model.layers.0.mlp.{n}.weight": s for n, s in mlp.items()}
    names |= {"model.layers.0.input_layernorm.weight": (256,), "model.norm.weight": (256,)}
    return {name: (dtype, shape) for name, shape in names.items()}


def write_safetensors(path: Path, tensors: Shapes, cut_bytes: int = 0) -> None:
    """A file of zeros with these tensors; the last `cut_bytes` bytes are missing."""
    header, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        end = offset + math.prod(shape) * ELEMENT_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(offset - cut_bytes))


def write_checkpoint(
    directory: Path, tensors: Shapes | None = None, config: dict[str, object] | None = None
) -> Path:
    """A directory with a config and one safetensors file."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config or LLAMA_CONFIG))
    write_safetensors(directory / "model.safetensors", tensors or llama_tensors())
    return directory
