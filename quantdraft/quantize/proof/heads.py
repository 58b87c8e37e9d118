"""The proof of a quantized draft head, which is not run.

Tensors, bytes and weights are compared with the source's. Logits are not: a head computes from its
target's hidden states, and has no forward pass of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.heads import DraftHead
from quantdraft.checkpoints.stored_formats import linear_modules, matches, stored_format
from quantdraft.checkpoints.weights import FLOAT_DTYPES
from quantdraft.errors import CheckpointError
from quantdraft.quantize.proof.weights import Deviation, error_limit, require_small, weight_errors

if TYPE_CHECKING:
    pass

SCALE_SUFFIXES = (".weight_scale", ".weight_global_scale")


def require_excluded(head: DraftHead, candidate: Checkpoint) -> None:
    """Raise CheckpointError where the config or the tensors quantize what the family excludes."""
    patterns = [pattern for each in head.family.excluded for pattern in each.patterns]
    for module in linear_modules(head.tensors):
        if not matches(module, patterns):
            continue
        info = candidate.tensors.get(f"{module}.weight")
        is_claimed = stored_format(candidate.quantization or {}, module) is not None
        if info is None or info.dtype not in FLOAT_DTYPES or is_claimed:
            raise CheckpointError(
                f"{module!r} is quantized, and engines read it raw in {head.family.title} heads."
            )


def require_finite_scales(candidate: Checkpoint) -> None:
    """Raise CheckpointError for a scale of weights that is no number, or below 0."""
    from quantdraft.checkpoints.tensors.unpacking import read_tensor

    for name in candidate.tensors:
        if name.endswith(SCALE_SUFFIXES):
            scale = read_tensor(candidate, name).float()
            if not bool(((scale >= 0) & scale.isfinite()).all()):
                raise CheckpointError(f"{name!r} holds a value that is no scale (NaN, inf, < 0).")


def widest_deviation(source: Checkpoint, candidate: Checkpoint) -> tuple[int, float, float]:
    """Return the number of quantized layers, the largest relative error among them, and its limit.

    Raises CheckpointError for a layer that is further away than rounding explains, or for none.
    """
    from quantdraft.checkpoints.tensors.unpacking import quantized_modules

    formats = quantized_modules(candidate)
    errors: dict[str, Deviation] = weight_errors(source, candidate)
    if not errors:
        raise CheckpointError(f"'{candidate.path}' holds no quantized layer.")
    require_small(errors, formats)
    widest = max(errors, key=lambda module: errors[module].error)
    return len(formats), errors[widest].error, error_limit(formats[widest])


def reason_without_logits(head: DraftHead) -> str:
    """Return why a head's logits are not part of its proof."""
    return (
        f"logits were not compared: a draft head ({head.family.title}) has no forward pass "
        "without its target"
    )
