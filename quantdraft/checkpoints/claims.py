"""Check that a checkpoint whose config says "quantized" is: from its config and files' headers."""

from __future__ import annotations

from collections.abc import Mapping

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.dense_view import says_cache
from quantdraft.checkpoints.stored_formats import KV_SCALES, linear_modules, stored_format
from quantdraft.checkpoints.weights import FLOAT_DTYPES

# Of the methods whose files this package reads module by module, the endings of their scales.
SCALES: Mapping[str, tuple[str, ...]] = {
    "compressed-tensors": (".weight_scale",),
    "gptq": (".scales",),
    "awq": (".scales",),
    "bitsandbytes": (".absmax", ".SCB"),
    "fp8": (".weight_scale_inv", ".weight_scale"),
    "fbgemm_fp8": (".weight_scale",),
    "modelopt": (".weight_scale",),
    "modelopt_fp4": (".weight_scale",),
}
# Whose configs list every module that stays in floats; others leave some out (DeepSeek's eh_proj).
LISTS_ALL = frozenset({"compressed-tensors", "gptq", "bitsandbytes"})


def claims_but_not_quantized(checkpoint: Checkpoint) -> str | None:
    """Return why a checkpoint that claims to be quantized is not, or None. Reads headers alone."""
    quantization = checkpoint.quantization
    if quantization is None:
        return None
    method = quantization.get("quant_method", "compressed-tensors")
    claim = f"'{checkpoint.path}' claims {method} quantization, but holds"
    is_float = all(info.dtype in FLOAT_DTYPES for info in checkpoint.tensors.values())
    if is_float and method not in LISTS_ALL:
        return f"{claim} only float weights."
    dense = [
        module
        for module in linear_modules(checkpoint.tensors)
        if method in LISTS_ALL
        and checkpoint.tensors[f"{module}.weight"].dtype in FLOAT_DTYPES
        and stored_format(quantization, module) is not None
    ]
    if dense:
        dtype = checkpoint.tensors[f"{dense[0]}.weight"].dtype
        return (
            f"'{checkpoint.path}' claims {method} quantization, but {len(dense)} layers hold "
            f"{dtype} weights, the first {dense[0]!r}. Quantize the draft again."
        )
    if method not in SCALES:
        return None
    ends = SCALES[method] + (KV_SCALES if says_cache(quantization) else ())
    if not any(name.endswith(ends) for name in checkpoint.tensors):
        return f"{claim} no scales."
    return None
