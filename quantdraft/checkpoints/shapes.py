"""Published models without weights: a config, and the tensors that their files would list.

The byte ledger and the native engine take such a checkpoint like any other, so the latency of a
model of real size can be measured without its weights. Acceptance cannot: it is in the weights.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.weights import FLOAT_NAMES, SINGLE_FILE, TensorInfo
from quantdraft.errors import CheckpointError, OptionError, nearest

SHAPES_FILE = Path(__file__).with_name("shapes.yaml")
DTYPE = "BF16"
DECODERS = frozenset({"llama", "mistral", "qwen2", "qwen3"})  # their tensors are listed here


def shape_names() -> list[str]:
    """Return the names of the shapes, in the order of the file."""
    return list(_shapes())


def shape_config(name: str) -> dict[str, Any]:
    """Return the shape's part of a published config.json; OptionError lists the names."""
    shapes = _shapes()
    if name not in shapes:
        hint = nearest(name, shapes)
        raise OptionError(f"no shape {name!r}.{hint} There are: {', '.join(shapes)}.")
    return dict(shapes[name])


def shape_checkpoint(name: str) -> Checkpoint:
    """Return a bf16 checkpoint of that shape as its headers would describe it; no file exists."""
    config = shape_config(name)
    return Checkpoint(Path(name), config, config_tensors(config, name))


def config_tensors(config: dict[str, Any], where: str) -> dict[str, TensorInfo]:
    """Return the tensors that the files of a decoder of this config list, in its own float type.

    where: the file, for errors. Raises CheckpointError for another family, which may have experts
    or shared parts that a config does not list.
    """
    family = config.get("model_type")
    if family not in DECODERS:
        raise CheckpointError(
            f"'{where}' is of model type {family!r}: the tensors follow from the config only for "
            f"{', '.join(sorted(DECODERS))}. Give a directory with its safetensors."
        )
    whole = _with_defaults(config, where)
    dtype = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
    stored = next((code for code, name in FLOAT_NAMES.items() if name == dtype), DTYPE)
    return {
        name: TensorInfo(stored, shape, SINGLE_FILE)
        for name, shape in _tensor_shapes(whole).items()
    }


def _with_defaults(config: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the config with what transformers takes for granted where a key is absent."""
    needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    missing = [key for key in (*needed, "vocab_size") if not config.get(key)]
    if missing:
        raise CheckpointError(f"'{where}' has no {missing[0]!r}: its tensors are not known.")
    heads = config["num_attention_heads"]
    return config | {
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
    }


@cache
def _shapes() -> dict[str, dict[str, Any]]:
    plain = yaml.safe_load(SHAPES_FILE.read_text(encoding="utf-8"))
    shapes: dict[str, dict[str, Any]] = plain["shapes"]
    return shapes


def _tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return every tensor of a Llama, Qwen2 or Qwen3 decoder; matrices are (out, in)."""
    hidden, table = config["hidden_size"], (config["vocab_size"], config["hidden_size"])
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": table}
    layer = _layer_shapes(config)
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = table
    return shapes


def _layer_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, wide, head_dim = (config[k] for k in ("hidden_size", "intermediate_size", "head_dim"))
    queries = config["num_attention_heads"] * head_dim
    keys = config["num_key_value_heads"] * head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (wide, hidden),
        "mlp.up_proj.weight": (wide, hidden),
        "mlp.down_proj.weight": (hidden, wide),
    }
    if config["model_type"] == "qwen2":
        for name, size in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            shapes[f"self_attn.{name}.bias"] = (size,)
    if config["model_type"] == "qwen3":
        shapes |= {f"self_attn.{name}.weight": (head_dim,) for name in ("q_norm", "k_norm")}
    return shapes
