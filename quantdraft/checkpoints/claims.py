"""Check that a checkpoint whose config says "quantized" is: from its config and files' headers."""

from __future__ import annotations

from collections.abc import Mapping

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.stored_formats import KV_SCALES, linear_modules, stored_format
from quantdraft.checkpoints.weights import FLOAT_DTYPES

# Methods whose files this package reads, and the endings of their scales' names.
READ_METHODS: Mapping[str, tuple[str, ...]] = {
    "compressed-tensors": (".weight_scale",),
    "gptq": (".scales",),
    "bitsandbytes": (".absmax", ".SCB"),
}


def claims_but_not_quantized(checkpoint: Checkpoint) -> str | None:
    """Return why a checkpoint that claims to be quantized is not, or None. Reads headers alone."""
    quantization = checkpoint.quantization
    if quantization is None:
        return None
    method = quantization.get("quant_method", "compressed-tensors")
    claim = f"'{checkpoint.path}' claims {method} quantization, but holds"
    if method not in READ_METHODS:
        if all(info.dtype in FLOAT_DTYPES for info in checkpoint.tensors.values()):
            return f"{claim} only float weights."
        return None
    dense = [
        module
        for module in linear_modules(checkpoint.tensors)
        if checkpoint.tensors[f"{module}.weight"].dtype in FLOAT_DTYPES
        and stored_format(quantization, module) is not None
    ]
    if dense:
        dtype = checkpoint.tensors[f"{dense[0]}.weight"].dtype
        return (
            f"'{checkpoint.path}' claims {method} quantization, but {len(dense)} layers hold "
            f"{dtype} weights, the first {dense[0]!r}. Quantize the draft again."
        )
    ends = READ_METHODS[method] + (KV_SCALES if quantization.get("kv_cache_scheme") else ())
    if not any(name.endswith(ends) for name in checkpoint.tensors):
        return f"{claim} no scales."
    return None
