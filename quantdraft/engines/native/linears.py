"""Build a model's Linears from a source of weights, each with its fastest kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from quantdraft.checkpoints.formats import WeightFormat
from quantdraft.checkpoints.tensors.unpacking import Codebook, Unpacked
from quantdraft.engines.kernels.choice import fastest_linear
from quantdraft.engines.kernels.trials import held_bytes
from quantdraft.engines.native.fusing import JoinedLinears, stack_biases, stack_weights
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
        return self._build(modules[0], joined, stack_biases(biases, rows))

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
