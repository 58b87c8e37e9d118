"""Join projections of one input into one product: fewer, larger reads of memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from quantdraft.checkpoints.tensors.unpacking import Unpacked
from quantdraft.engines.native.weight_sources import Weight


def stack_weights(weights: Sequence[Weight]) -> Weight | None:
    """Stack the weights, (sum of out, in); None where their scales do not allow it.

    Every row keeps its own integers and scales, so each output stays the same.
    """
    first = weights[0]
    if isinstance(first, Tensor):
        dense = [weight for weight in weights if isinstance(weight, Tensor)]
        return torch.cat(dense) if len(dense) == len(weights) else None
    quantized = [weight for weight in weights if isinstance(weight, Unpacked)]
    if len(quantized) < len(weights) or not _are_alike(quantized):
        return None
    zero_points = [weight.zero_point for weight in quantized]
    return quantized[0]._replace(
        integers=torch.cat([weight.integers for weight in quantized]),
        scale=torch.cat([weight.scale for weight in quantized]),
        zero_point=None
        if zero_points[0] is None
        else torch.cat([z for z in zero_points if z is not None]),
    )


def stack_biases(biases: Sequence[Tensor | None], rows: Sequence[int]) -> Tensor | None:
    """Join the biases, with zeros for a missing one; None where all are missing."""
    if all(bias is None for bias in biases):
        return None
    return torch.cat(
        [torch.zeros(n) if b is None else b.float() for b, n in zip(biases, rows, strict=True)]
    )


def _are_alike(weights: Sequence[Unpacked]) -> bool:
    facts = {(w.integers.dtype, w.group_size, w.block, w.zero_point is None) for w in weights}
    return len(facts) == 1 and not any(
        # A block of scales would span two projections, or each has an order of its own.
        (w.block is not None and len(w.integers) % w.block[0]) or w.column_order is not None
        for w in weights
    )


class JoinedLinears(nn.Module):
    """Projections that could not be stacked: each is computed alone, and the outputs are joined."""

    def __init__(self, parts: Sequence[nn.Module], widths: Sequence[int]) -> None:
        """widths: the outputs of each part."""
        super().__init__()
        self.parts, self.widths = nn.ModuleList(parts), list(widths)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., sum of out)."""
        return torch.cat([part(x) for part in self.parts], dim=-1)
