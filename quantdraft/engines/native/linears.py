"""Build a model's Linears from a source of weights, each with its fastest kernel.

Projections of one input become one product where they can: fewer, larger reads of memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from quantdraft.checkpoints.formats import WeightFormat
from quantdraft.checkpoints.tensors.unpacking import Codebook, Unpacked
from quantdraft.engines.kernels.choice import fastest_linear
from quantdraft.engines.kernels.trials import held_bytes
from quantdraft.engines.native.weight_sources import Weight, WeightSource
from quantdraft.errors import NoKernelError


class Linears:
    """Builds a model's Linears from a source, and remembers which kernels they got."""

    def __init__(
        self, source: WeightSource, dtype: torch.dtype, device: torch.device, rows: tuple[int, ...]
    ) -> None:
        self.source, self.dtype, self.device, self.rows = source, dtype, device, rows
        self.kernels: set[str] = set()
        self.quantized_bytes = self.promised_bytes = 0

    def one(self, module: str, tied_to: Tensor | None = None) -> nn.Module:
        """Return the Linear of one module; a tied head takes the embedding table itself."""
        weight = self.source.weight(module) if tied_to is None else tied_to
        return self._build(module, weight, self._bias(module))

    def fused(self, modules: Sequence[str]) -> nn.Module:
        """Return Linears of one input as one Linear where their formats allow it."""
        weights = [self.source.weight(module) for module in modules]
        joined = stack_weights(weights) if len({self._format(m) for m in modules}) == 1 else None
        biases = [self._bias(module) for module in modules]
        rows = [len(each if isinstance(each, Tensor) else each.integers) for each in weights]
        if joined is None:
            parts = zip(modules, weights, biases, strict=True)
            return JoinedLinears([self._build(*part) for part in parts], rows)
        return self._build(modules[0], joined, _stack_biases(biases, rows))

    def tensor(self, name: str) -> Tensor:
        """Return an unquantized tensor in the compute type, on the device."""
        return self.source.tensor(name).to(self.device, self.dtype)

    def table(self, name: str) -> Tensor:
        """Return an embedding table, in the narrower of its stored type and the compute type."""
        stored = self.source.tensor(name).to(self.device)
        return stored if stored.dtype.itemsize < self.dtype.itemsize else stored.to(self.dtype)

    def _build(self, module: str, weight: Weight, bias: Tensor | None) -> nn.Module:
        try:
            linear = fastest_linear(
                weight, bias, self._format(module), self.dtype, self.device, self.rows
            )
        except ValueError as error:
            raise NoKernelError(
                f"the {self.device.type} kernel cannot take {module}: {error}"
            ) from error
        self.kernels.add(str(linear.kernel))
        fmt = self.source.formats.get(module)
        if fmt is not None and not isinstance(weight, Tensor):
            self.quantized_bytes += largest_packing(linear)
            self.promised_bytes += promised_bytes(weight, fmt)
        return linear

    def _format(self, module: str) -> str:
        fmt = self.source.formats.get(module)
        return "dense" if fmt is None else fmt.name

    def _bias(self, module: str) -> Tensor | None:
        name = f"{module}.bias"
        return self.source.tensor(name) if self.source.has(name) else None


class JoinedLinears(nn.Module):
    """Projections that could not be stacked: each is computed alone, and the outputs are joined."""

    def __init__(self, parts: Sequence[nn.Module], widths: Sequence[int]) -> None:
        """widths: the outputs of each part."""
        super().__init__()
        self.parts, self.widths = nn.ModuleList(parts), list(widths)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., sum of out)."""
        return torch.cat([part(x) for part in self.parts], dim=-1)


def largest_packing(linear: nn.Module) -> int:
    """Return the bytes of a Linear's weight; of several packings, those of the largest."""
    return max(held_bytes(part) for part in getattr(linear, "parts", (linear,)))


def promised_bytes(weight: Unpacked | Codebook, fmt: WeightFormat) -> int:
    """Return the bytes of a weight in its format: its integers, and 16 bits for each scale."""
    if isinstance(weight, Codebook):
        nested = 0 if weight.double is None else weight.double.scale.nbytes
        return weight.integers.nbytes + weight.scale.nbytes + nested
    zeros = 0 if weight.zero_point is None else weight.zero_point.numel()
    bits = (weight.integers.numel() + zeros) * fmt.num_bits
    return bits // 8 + 2 * weight.scale.numel()


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


def _stack_biases(biases: Sequence[Tensor | None], rows: Sequence[int]) -> Tensor | None:
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
