"""How far stored weights are from the draft's own, read without the library that stored them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from quantdraft.checkpoint import Checkpoint
from quantdraft.errors import CheckpointError
from quantdraft.schemes import WeightFormat
from quantdraft.weights import FLOAT_DTYPES

if TYPE_CHECKING:
    from torch import Tensor

# Largest relative error ‖W − Ŵ‖ / ‖W‖ of one layer, by bits and kind. What rounding costs on
# normally distributed weights: INT4 in groups of 128, step = 2·2.7σ/15 and error step/√12, so 0.10;
# GPTQ moves weights off the nearest integer on purpose, up to about twice that. INT8 per row, step
# = 2·3.5σ/255: 0.008. FP8 with 3 mantissa bits: 0.026. FP4 with one mantissa bit: 0.09 to 0.13, the
# most where scales are powers of two. NF4 0.09. A largest weight of 10σ (INT4) or 60σ (INT8) still
# passes. Scales multiplied at random by [0, 2] give √(1/3) = 0.58.
WEIGHT_ERROR_LIMITS = {
    (4, "int"): 0.5,
    (8, "int"): 0.15,
    (8, "float"): 0.08,
    (4, "float"): 0.4,
    (4, "nf4"): 0.4,
    (4, "fp4"): 0.4,
}
# Largest |mean| / root mean square of W − Ŵ over a layer. Errors of rounding cancel: of n weights
# 1/√n is left. Zero points off by one, as optimum's writer of GPTQ checkpoints has them, move each
# weight by a step in one direction: 0.93 and more, at an error of 0.4 that GPTQ itself could cost.
MAX_OFFSET = 0.5
NUM_FITS = 4  # of rows and columns in turn; each leaves a tenth of what was left, or less


class Deviation(NamedTuple):
    """How one layer's stored weight differs from the draft's own."""

    error: float  # ‖W − Ŵ‖ / ‖W‖
    offset: float  # |mean| / root mean square of the differences, in [0, 1]


def error_limit(fmt: WeightFormat) -> float:
    """The largest error that rounding in the format explains."""
    limit = WEIGHT_ERROR_LIMITS.get((fmt.num_bits, fmt.kind))
    if limit is None:
        raise CheckpointError(f"weights of {fmt.num_bits} bits ({fmt.kind}) are not checked here.")
    return limit


def require_small(errors: Mapping[str, Deviation], formats: Mapping[str, WeightFormat]) -> None:
    """Raise CheckpointError for the first layer that rounding does not explain."""
    for module, (error, offset) in errors.items():
        limit = error_limit(formats[module])
        if not error <= limit:
            raise CheckpointError(
                f"{module!r} is {error:.3f} away from the draft's own weights, more than rounding "
                f"explains ({limit}): its scales or integers are corrupt."
            )
        if not offset <= MAX_OFFSET:
            raise CheckpointError(
                f"{module!r} is off to one side of the draft's own weights (mean over spread of "
                f"the differences {offset:.2f}, limit {MAX_OFFSET}): its zero points are corrupt."
            )


def weight_errors(
    source: Checkpoint, candidate: Checkpoint, moves_scales: bool = False
) -> dict[str, Deviation]:
    """How far each quantized module is from its own weight, Ŵ from the stored numbers.

    moves_scales: layers have traded scale with their neighbours, as in AWQ: W is then the draft's
    own weight times the factor of each row and column that brings it closest to Ŵ
    """
    from quantdraft.unpacking import dequantized, stored_weights

    errors = {}
    for module, weight in stored_weights(candidate):
        own, found = source_weight(source, module), dequantized(weight)
        reference = rescaled(own, found) if moves_scales else own
        errors[module] = deviation(found, reference)
    return errors


def deviation(found: Tensor, reference: Tensor) -> Deviation:
    """The relative error, and how one-sided it is; an exact copy has neither."""
    difference = found - reference
    spread = float(difference.square().mean().sqrt())
    offset = float(difference.mean().abs()) / spread if spread > 0 else 0.0
    return Deviation(float(difference.norm() / reference.norm()), offset)


def rescaled(weight: Tensor, like: Tensor) -> Tensor:
    """The weight with a factor for each row and column, chosen to come closest to `like`."""
    import torch

    rows = torch.ones(len(weight), 1)
    columns = torch.ones(1, weight.shape[1])
    for _ in range(NUM_FITS):
        scaled = weight * rows
        columns = (scaled * like).sum(0, keepdim=True) / (scaled**2).sum(0, keepdim=True).clamp(
            min=torch.finfo(torch.float32).tiny
        )
        scaled = weight * columns
        rows = (scaled * like).sum(1, keepdim=True) / (scaled**2).sum(1, keepdim=True).clamp(
            min=torch.finfo(torch.float32).tiny
        )
    return weight * columns * rows


def source_weight(source: Checkpoint, module: str) -> Tensor:
    """A module's full-precision weight, (out, in) float32; a tied head is the embedding table."""
    from quantdraft.ledger import embedding_name
    from quantdraft.unpacking import read_tensor

    name = f"{module}.weight"
    return read_tensor(source, name if name in source.tensors else embedding_name(source)).float()


def unquantized_names(checkpoint: Checkpoint) -> list[str]:
    """Tensors that the checkpoint keeps in floats and that belong to no quantized module."""
    from quantdraft.unpacking import quantized_modules

    owners = tuple(f"{module}." for module in quantized_modules(checkpoint))
    return [
        name
        for name, info in checkpoint.tensors.items()
        if info.dtype in FLOAT_DTYPES and not (name.startswith(owners) and ".bias" not in name)
    ]


def changed_tensor(source: Checkpoint, candidate: Checkpoint) -> str | None:
    """The first tensor that was to stay as it was and did not, or None."""
    import torch

    from quantdraft.unpacking import read_tensor

    for name in unquantized_names(candidate):
        if name in source.tensors:
            before, after = read_tensor(source, name), read_tensor(candidate, name)
            if before.dtype != after.dtype or not torch.equal(before, after):
                return name
    return None
