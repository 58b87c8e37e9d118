"""Sources of an engine's weights: a stored checkpoint, or random numbers in a real shape.

Random weights serve latency alone: a step's time does not depend on what the numbers are.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.formats import WeightFormat
from quantdraft.checkpoints.stored_formats import HEAD
from quantdraft.checkpoints.tensors.unpacking import (
    Codebook,
    Unpacked,
    module_tensors,
    quantized_modules,
    read_tensor,
    unpack,
)
from quantdraft.engines.kernels.bitsandbytes import code_table
from quantdraft.errors import NoKernelError
from quantdraft.quantize.ledger import byte_ledger, project, untied_tensors
from quantdraft.quantize.recipe import Recipe
from quantdraft.quantize.recipe_formats import formats_by_module
from quantdraft.record.step_bytes import Ledger

Weight = Unpacked | Codebook | Tensor
# Random numbers are drawn once and repeated: drawing 8 billion of them would take minutes.
POOL_SIZE = 1 << 20
RANDOM_FORMATS = {"int4", "int8", "int8-weight-only", "fp8", "fp8-block", "llm-int8", "nf4", "fp4"}
WEIGHT_SPREAD = 0.02  # as models are initialised; activations then stay finite through all layers


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """The tensors of a checkpoint's files."""

    checkpoint: Checkpoint
    formats: Mapping[str, WeightFormat]  # of the quantized modules; every other Linear is dense

    @property
    def name(self) -> str:
        """The checkpoint's directory."""
        return str(self.checkpoint.path)

    @property
    def config(self) -> dict[str, Any]:
        """The checkpoint's config.json."""
        return self.checkpoint.config

    @property
    def ledger(self) -> Ledger:
        """From the files' headers."""
        return byte_ledger(self.checkpoint)

    def has(self, name: str) -> bool:
        """Return True when the files hold the tensor."""
        return name in self.checkpoint.tensors

    def tensor(self, name: str) -> Tensor:
        """Read one tensor that is not quantized, in its stored float type."""
        return read_tensor(self.checkpoint, name)

    def weight(self, module: str) -> Weight:
        """Read one Linear's weight: integers and scales if quantized, else (out, in) float."""
        fmt = self.formats.get(module)
        if fmt is None:
            return self.tensor(f"{module}.weight")
        return unpack(module_tensors(self.checkpoint, module), module, fmt)


def stored_weights(checkpoint: Checkpoint) -> StoredWeights:
    """Return the source of a checkpoint on disk."""
    return StoredWeights(checkpoint, quantized_modules(checkpoint))


@dataclass(frozen=True)  # without slots: what is derived is kept
class RandomWeights:
    """Random numbers in the shape of `shape`, quantized as `recipe` would; the same every time."""

    shape: Checkpoint  # config and tensor list of a published model, without files
    recipe: Recipe | None
    seed: int = 0

    checkpoint: None = None

    @property
    def name(self) -> str:
        """Shape and recipe."""
        return f"{self.shape.name} {self.recipe.name if self.recipe else 'bf16'} (random weights)"

    @property
    def config(self) -> dict[str, Any]:
        """The published config; a head of its own where the recipe quantizes a tied one."""
        is_untied = f"{HEAD}.weight" in self._tensors
        return self.shape.config | {"tie_word_embeddings": not is_untied}

    @cached_property
    def formats(self) -> Mapping[str, WeightFormat]:
        """What the recipe makes of every Linear."""
        return {} if self.recipe is None else formats_by_module(self.recipe, self._tensors)

    @property
    def ledger(self) -> Ledger:
        """What the recipe's checkpoint would come to."""
        return byte_ledger(self.shape) if self.recipe is None else project(self.shape, self.recipe)

    @cached_property
    def _tensors(self) -> Mapping[str, Any]:
        return (
            self.shape.tensors if self.recipe is None else untied_tensors(self.shape, self.recipe)
        )

    def has(self, name: str) -> bool:
        """Return True when a model of this shape has the tensor."""
        return name in self._tensors

    def tensor(self, name: str) -> Tensor:
        """Return ones for a norm, else numbers as models are initialised, in bf16."""
        shape = self._tensors[name].shape
        if len(shape) == 1 and name.endswith("norm.weight"):
            return torch.ones(shape, dtype=torch.bfloat16)
        pool = torch.randn(POOL_SIZE, generator=self._generator(name)) * WEIGHT_SPREAD
        return _tile(pool.to(torch.bfloat16), shape)

    def weight(self, module: str) -> Weight:
        """Return random integers with scales of the size a real weight has, or random floats."""
        fmt = self.formats.get(module)
        if fmt is None:
            return self.tensor(f"{module}.weight")
        if fmt.name not in RANDOM_FORMATS or fmt.is_double:
            double = " with quantized scales" if fmt.is_double else ""
            name = f"{fmt.name}{double}"
            raise NoKernelError(f"no random weights are made for the format {name}")
        rows, columns = self._tensors[f"{module}.weight"].shape
        if fmt.name in {"nf4", "fp4"}:
            return _random_codebook(fmt, rows, columns, self._generator(module))
        return _random_integers(fmt, rows, columns, self._generator(module))

    def _generator(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed + zlib.crc32(name.encode()))


# A model's config and weights, each read when it is asked for.
WeightSource = StoredWeights | RandomWeights


def _random_integers(
    fmt: WeightFormat, rows: int, columns: int, generator: torch.Generator
) -> Unpacked:
    if fmt.kind == "float":
        values = torch.randn(POOL_SIZE, generator=generator) * 100
        integers = _tile(values.to(torch.float8_e4m3fn).view(torch.int8), (rows, columns))
        integers, largest = integers.view(torch.float8_e4m3fn), 100.0
    else:
        half = 2 ** (fmt.num_bits - 1)
        pool = torch.randint(-half, half, (POOL_SIZE,), generator=generator, dtype=torch.int8)
        integers, largest = _tile(pool, (rows, columns)), half / 3**0.5
    scale = torch.full(fmt.scale_shape((rows, columns)), WEIGHT_SPREAD / largest)
    return Unpacked(integers, scale, None, fmt.group_size, fmt.block)


def _random_codebook(
    fmt: WeightFormat, rows: int, columns: int, generator: torch.Generator
) -> Codebook:
    pool = torch.randint(0, 256, (POOL_SIZE,), generator=generator, dtype=torch.uint8)
    block_size = fmt.group_size or columns
    scale = torch.full((-(-rows * columns // block_size),), 2 * WEIGHT_SPREAD)
    table = code_table(fmt.name)
    return Codebook(_tile(pool, (rows, columns // 2)), table, scale, block_size, None, fmt.name)


def _tile(pool: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Repeat the pool's numbers to fill the shape."""
    size = int(torch.Size(shape).numel())
    return pool.repeat(-(-size // len(pool)))[:size].reshape(shape)
