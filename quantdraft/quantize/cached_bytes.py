"""Bytes of what a draft keeps between steps: keys and values of each token, and recurrent states.

They follow from the shapes of the projections, as a config may leave out what its library assumes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.heads.inside import inner_names
from quantdraft.checkpoints.parts import tower_tensors
from quantdraft.checkpoints.weights import ELEMENT_BYTES, FLOAT_DTYPES, TensorInfo

# What puts out keys and values: a projection each; one of latent attention, whose output is what an
# engine keeps; or one for queries, keys and values together.
_KEYS, _LATENT = r"(.*)\.k_proj", r"(.*)\.kv_a_proj_with_mqa"
_FUSED = r"(.*)\.(?:qkv_proj|query_key_value|c_attn|Wqkv|W_pack|qkv|wqkv|qkv_layer)"
_STATES = ("state_size", "mamba_d_state", "ssm_state_size", "d_state")
_HYBRID_PATTERNS = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4}


class CachedBytes(NamedTuple):
    """Bytes that a step at batch 1 reads besides weights."""

    kv: int  # a token of the context, of layers that see all of it
    windowed_kv: int = 0  # a token of the context, of layers with a sliding window
    window: int = 0  # tokens that these see; 0: there are none
    state: int = 0  # states of recurrent layers and short convolutions, whatever the context


def cached_bytes(checkpoint: Checkpoint, num_bits: int | None) -> CachedBytes:
    """Return what a model keeps; num_bits: of keys and values, None: as the embedding's floats."""
    dtype = checkpoint.tensors[checkpoint.embedding_name].dtype
    element_bytes = ELEMENT_BYTES[dtype] if dtype in FLOAT_DTYPES else 2
    kv_bytes = element_bytes if num_bits is None else num_bits // 8
    config, window = checkpoint.text_config, _window(checkpoint.text_config)
    full = windowed = 0
    for layer, width in _kv_widths(checkpoint):
        if window and _is_windowed(config, layer):
            windowed += width * kv_bytes
        else:
            full += width * kv_bytes
    state = _num_state_elements(checkpoint) * element_bytes
    return CachedBytes(full, windowed, window if windowed else 0, state)


def _kv_widths(checkpoint: Checkpoint) -> Iterator[tuple[int, int]]:
    """Yield layer and elements of one token's keys and values, for every attention layer."""
    shapes = dict(_text_shapes(checkpoint))
    found = False
    for module, rows in shapes.items():
        if "cross_attn" in module or "crossattention" in module:
            continue
        if match := re.fullmatch(_KEYS, module):
            values = shapes.get(f"{match[1]}.v_proj", rows)
            width = (rows or 0) + (values or 0) or _width_by_config(checkpoint.text_config)
        elif re.fullmatch(_LATENT, module):
            width = rows or _latent_by_config(checkpoint.text_config)
        elif re.fullmatch(_FUSED, module):
            width = _width_by_config(checkpoint.text_config)
        else:
            continue
        found = True
        yield _layer_of(module), width
    if not found and not _has_recurrence(checkpoint):  # attention of names that are not known here
        config = checkpoint.text_config
        for layer in range(int(config.get("num_hidden_layers") or config.get("n_layer") or 0)):
            yield layer, _width_by_config(config)


def _text_shapes(checkpoint: Checkpoint) -> Iterator[tuple[str, int | None]]:
    """Yield every module with a matrix, and its outputs; None where the format hides them."""
    unread = tower_tensors(checkpoint.tensors) | set(inner_names(checkpoint.tensors))
    for name, info in checkpoint.tensors.items():
        module, _, parameter = name.rpartition(".")
        if name in unread or len(info.shape) != 2:
            continue
        if parameter in {"weight", "weight_packed"}:
            is_flat = info.dtype == "U8" and info.shape[1] == 1  # bitsandbytes' 4 bits
            yield module, None if is_flat else info.shape[0]
        elif parameter == "qweight":
            yield module, info.shape[1]


def _width_by_config(config: Mapping[str, Any]) -> int:
    num_heads = config.get("num_attention_heads") or config.get("n_head") or 0
    hidden_size = config.get("hidden_size") or config.get("n_embd") or 0
    head_dim = config.get("head_dim") or (hidden_size // num_heads if num_heads else 0)
    num_kv_heads = config.get("num_key_value_heads") or num_heads
    return int(2 * num_kv_heads * head_dim)


def _latent_by_config(config: Mapping[str, Any]) -> int:
    return int(config.get("kv_lora_rank") or 0) + int(config.get("qk_rope_head_dim") or 0)


def _layer_of(module: str) -> int:
    numbers = re.findall(r"\.(\d+)\.", f"{module}.")
    return int(numbers[0]) if numbers else 0


def _window(config: Mapping[str, Any]) -> int:
    if config.get("use_sliding_window") is False:
        return 0
    return int(config.get("sliding_window") or config.get("attention_chunk_size") or 0)


def _is_windowed(config: Mapping[str, Any], layer: int) -> bool:
    """Return True for a layer that sees a window; older configs say it by a rule of their type."""
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and layer < len(kinds):
        return kinds[layer] in {"sliding_attention", "chunked_attention"}
    pattern = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern")
    every = pattern or _HYBRID_PATTERNS.get(str(config.get("model_type")))
    if isinstance(every, int):
        return (layer + 1) % every != 0
    if str(config.get("model_type")).startswith("qwen"):
        return layer >= int(config.get("max_window_layers") or 0)
    return True


def _has_recurrence(checkpoint: Checkpoint) -> bool:
    return any(name.endswith(".A_log") for name in checkpoint.tensors)


def _num_state_elements(checkpoint: Checkpoint) -> int:
    """Return the elements of all states: inputs of short convolutions, and matrices."""
    towers, config = tower_tensors(checkpoint.tensors), checkpoint.text_config
    total = 0
    for name, info in checkpoint.tensors.items():
        if name in towers:
            continue
        is_short = len(info.shape) == 3 and info.shape[1] == 1
        if is_short and name.endswith((".conv1d.weight", ".conv.weight")):
            total += math.prod(info.shape)
        elif name.endswith(".A_log"):
            total += _matrix_elements(checkpoint.tensors, name.removesuffix("A_log"), info, config)
    return total


def _matrix_elements(
    tensors: Mapping[str, TensorInfo], mixer: str, decay: TensorInfo, config: Mapping[str, Any]
) -> int:
    """Return the elements of one layer's state: of Mamba, Mamba 2, or linear attention."""
    if len(decay.shape) == 2:
        return math.prod(decay.shape)
    heads = decay.shape[0]
    key, value = config.get("linear_key_head_dim"), config.get("linear_value_head_dim")
    if key and value:
        return heads * int(key) * int(value)
    state = next((int(config[name]) for name in _STATES if config.get(name)), 0)
    convolution = tensors.get(f"{mixer}conv1d.weight")
    if convolution is None or not state:
        return 0
    # The convolution runs over the inputs and over B and C, each one state a group.
    groups = next((int(config[n]) for n in ("n_groups", "mamba_n_groups") if config.get(n)), 1)
    return max(0, convolution.shape[0] - 2 * groups * state) * state
