"""Measure how far stored weights are from the draft's own, without the library that stored them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.formats import WeightFormat
from quantdraft.checkpoints.weights import FLOAT_DTYPES
from quantdraft.errors import CheckpointError

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
# Largest misfit of a layer's scales, for an error ε: a part for noise, and one of ε². Rounding is
# nearly uncorrelated with what it rounds to, so the best factor of n weights is 1 − ε² ± ε/√n:
# 0.015 for INT4 in groups of 128, 0.035 after GPTQ, 0.033 for FP4, under 0.01 for 8 bits. Another
# layer's scales, each the largest of as many weights, differ at random, and so do the factors: the
# misfit is then about ε itself, 0.12 to 0.4, where ε is still within its limit.
MISFIT_NOISE, MISFIT_OF_ROUNDING = 0.03, 1.5
NUM_FITS = 4  # of rows and columns in turn; each leaves a tenth of what was left, or less


class Deviation(NamedTuple):
    """The difference between one layer's stored weight and the draft's own."""

    error: float  # ‖W − Ŵ‖ / ‖W‖
    offset: float  # |mean| / root mean square of the differences, in [0, 1]
    misfit: float  # root mean square of how far the best factor of each scale is from 1

    @property
    def misfit_limit(self) -> float:
        """What rounding explains of the misfit, at this error."""
        return MISFIT_NOISE + MISFIT_OF_ROUNDING * self.error**2


def error_limit(fmt: WeightFormat) -> float:
    """Return the largest error that rounding in the format explains."""
    limit = WEIGHT_ERROR_LIMITS.get((fmt.num_bits, fmt.kind))
    if limit is None:
        raise CheckpointError(f"weights of {fmt.num_bits} bits ({fmt.kind}) are not checked here.")
    return limit


def require_small(errors: Mapping[str, Deviation], formats: Mapping[str, WeightFormat]) -> None:
    """Raise CheckpointError for the first layer that rounding does not explain."""
    for module, found in errors.items():
        error, offset, misfit = found
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
        if not misfit <= found.misfit_limit:
            raise CheckpointError(
                f"{module!r} has scales that do not fit the draft's own weights (each off by about "
                f"{misfit:.0%}, limit {found.misfit_limit:.0%}), as another layer's would: its "
                "scales are corrupt."
            )


@dataclass(frozen=True, slots=True)
class ComparedWeights:
    """A candidate's weights as we dequantize them, each measured when it is first read.

    Reading and dequantizing is most of the work, so the pass that multiplies by a weight is also
    the one that compares it with the draft's.

    moves_scales: layers exchanged scale with their neighbours, as in AWQ: W is then the draft's
    own weight times the factor of each row and column that brings it closest to Ŵ
    """

    source: Checkpoint
    candidate: Checkpoint
    formats: Mapping[str, WeightFormat]
    moves_scales: bool = False
    errors: dict[str, Deviation] = field(default_factory=dict)
    advance: Callable[[float], None] = lambda num_modules: None  # as each is measured

    def weight(self, module: str) -> Tensor:
        """Return a module's weight, (out, in) float32."""
        from quantdraft.checkpoints.tensors.unpacking import dequantize, stored_weight

        fmt = self.formats[module]
        found = dequantize(stored_weight(self.candidate, module, fmt))
        if module not in self.errors:
            own = source_weight(self.source, module)
            reference = rescale_to(own, found) if self.moves_scales else own
            self.errors[module] = measure_deviation(found, reference, _weights_a_scale(fmt, found))
            self.advance(1)
        return found

    def all_errors(self) -> dict[str, Deviation]:
        """Return the errors of all modules, in the checkpoint's order; measure those that lack."""
        for module in self.formats:
            if module not in self.errors:
                self.weight(module)
        return {module: self.errors[module] for module in self.formats}


def _weights_a_scale(fmt: WeightFormat, weight: Tensor) -> int:
    """Return how many neighbours along a row share a scale; of a block, those of one row."""
    columns = weight.shape[1]
    length = fmt.block[1] if fmt.block else fmt.group_size or columns
    return length if weight.numel() % length == 0 else columns


def measure_deviation(
    found: Tensor, reference: Tensor, weights_a_scale: int | None = None
) -> Deviation:
    """Measure error, offset and misfit of a weight; all are 0 for an exact copy."""
    difference = found - reference
    distance = float(difference.norm())
    spread = distance / math.sqrt(difference.numel())
    offset = float(difference.mean().abs()) / spread if spread > 0 else 0.0
    runs = (-1, weights_a_scale or found.shape[-1])
    misfit = scale_misfit(found.reshape(runs), reference.reshape(runs))
    length = float(reference.norm())
    error = distance / length if length > 0 else math.inf if distance > 0 else 0.0
    return Deviation(error, offset, misfit)


def scale_misfit(found: Tensor, reference: Tensor) -> float:
    """Return the root mean square of factor − 1 for the factors that fit each row to its reference.

    found, reference: (runs, weights that share a scale); a run of zeros has no factor
    """
    import torch

    energy = torch.linalg.vecdot(found, found)
    factors = torch.linalg.vecdot(found, reference)[energy > 0] / energy[energy > 0]
    return float((factors - 1).square().mean().sqrt()) if len(factors) else 0.0


def rescale_to(weight: Tensor, like: Tensor) -> Tensor:
    """Return the weight with a factor for each row and column, chosen to come closest to `like`."""
    import torch

    def best_factors(scaled: Tensor, dim: int) -> Tensor:
        energy = (scaled**2).sum(dim, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        return (scaled * like).sum(dim, keepdim=True) / energy

    rows = torch.ones(len(weight), 1)
    columns = torch.ones(1, weight.shape[1])
    for _ in range(NUM_FITS):
        columns = best_factors(weight * rows, 0)
        rows = best_factors(weight * columns, 1)
    return weight * columns * rows


def source_weight(source: Checkpoint, module: str) -> Tensor:
    """Read a module's own weight, (out, in) float32; a tied head's is the embedding table."""
    from quantdraft.checkpoints.tensors.unpacking import read_tensor

    name = f"{module}.weight"
    return read_tensor(source, name if name in source.tensors else source.embedding_name).float()


def unquantized_names(checkpoint: Checkpoint) -> list[str]:
    """Return the float tensors that belong to no quantized module."""
    from quantdraft.checkpoints.tensors.unpacking import quantized_modules

    owners = tuple(f"{module}." for module in quantized_modules(checkpoint))
    return [
        name
        for name, info in checkpoint.tensors.items()
        if info.dtype in FLOAT_DTYPES and not (name.startswith(owners) and ".bias" not in name)
    ]


def require_unchanged(source: Checkpoint, candidate: Checkpoint) -> None:
    """Raise CheckpointError unless every tensor that keeps its name keeps its bytes.

    Tables of ids (d2t, t2d) count too: a wrong one maps every proposal to another token. Quantized
    weights that keep their name (FP8, INT8) are compared by `ComparedWeights`.
    """
    from quantdraft.checkpoints.tensors.unpacking import quantized_modules

    quantized = {f"{module}.weight" for module in quantized_modules(candidate)}
    for name in sorted(candidate.tensors.keys() & source.tensors.keys() - quantized):
        if not _is_same(source, candidate, name):
            raise CheckpointError(
                f"{name!r} should be unchanged, and the written one differs from the draft's."
            )


def _is_same(source: Checkpoint, candidate: Checkpoint, name: str) -> bool:
    import torch

    from quantdraft.checkpoints.tensors.unpacking import read_rows

    def octets(rows: Tensor) -> Tensor:
        return rows.contiguous().reshape(-1).view(torch.uint8)

    before, after = source.tensors[name], candidate.tensors[name]
    if (before.dtype, before.shape) != (after.dtype, after.shape):
        return False
    pieces = zip(read_rows(source, name), read_rows(candidate, name), strict=True)
    return all(torch.equal(octets(one), octets(other)) for one, other in pieces)
