"""Round keys and values as a checkpoint's quantized cache does, in a loaded transformers model.

compressed-tensors' own hooks do it, whatever library wrote the scales: FP8 under one scale for all
keys of a layer and one for its values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.dense_view import cache_scheme
from quantdraft.checkpoints.tensors.unpacking import read_tensor
from quantdraft.errors import CheckpointError

# Where writers put a layer's scale, after the attention's name.
_ENDINGS = {
    "k": ("k_scale", "k_proj.k_scale", "k_proj.output_scale", "kv_scale"),
    "v": ("v_scale", "v_proj.v_scale", "v_proj.output_scale", "kv_scale"),
}
_LAYER = re.compile(r".*?(layers\.\d+\..*?attn|layers\.\d+\.attention)$")


def round_cache(checkpoint: Checkpoint, model: nn.Module, settings: Mapping[str, Any]) -> None:
    """Hook every attention to round its keys and values in FP8; a layer without scales has 1.

    settings: the quantization config
    Raises CheckpointError for a cache of another type.
    """
    require_fp8_cache(checkpoint, settings)
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationStatus,
        apply_quantization_config,
    )

    values = QuantizationArgs(num_bits=8, type="float", strategy="tensor", dynamic=False)
    config = QuantizationConfig(
        config_groups={}, kv_cache_scheme=values, quantization_status=QuantizationStatus.FROZEN
    )
    apply_quantization_config(model, config)
    for name, attention in model.named_modules():
        for letter in ("k", "v"):
            scale = getattr(attention, f"{letter}_scale", None)
            if isinstance(scale, Tensor):
                stored = _stored_scale(checkpoint, name, letter)
                with torch.no_grad():
                    scale.copy_(torch.ones(1) if stored is None else stored.reshape(1))


def require_fp8_cache(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> None:
    """Raise CheckpointError for a cache of keys and values that is not FP8 under one scale."""
    scheme = cache_scheme(settings)
    is_fp8 = scheme in ("FP8", "static")  # ModelOpt's word, and AutoFP8's
    if isinstance(scheme, dict):
        is_one = scheme.get("strategy") in {None, "tensor"} and not scheme.get("dynamic")
        is_fp8 = scheme.get("type") == "float" and scheme.get("num_bits") == 8 and is_one
    if not is_fp8:
        raise CheckpointError(
            f"'{checkpoint.path}' asks for a cache of keys and values of the kind {scheme!r}; read "
            "is FP8 under one scale. Export the draft with that, or without a quantized cache."
        )


def _stored_scale(checkpoint: Checkpoint, attention: str, letter: str) -> Tensor | None:
    """Return a layer's scale, by the attention's name from `layers` on: prefixes differ."""
    found = _LAYER.fullmatch(attention)
    own = attention if found is None else found.group(1)
    for ending in _ENDINGS[letter]:
        wanted = f"{own}.{ending}"
        for name in checkpoint.tensors:
            if name == wanted or name.endswith(f".{wanted}"):
                return read_tensor(checkpoint, name).float()
    return None
