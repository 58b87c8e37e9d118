"""The input of a backend. Plain data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.weights import FLOAT_NAMES
from quantdraft.quantize.recipe import Recipe


@dataclass(frozen=True, slots=True)
class QuantizationJob:
    """One recipe on one draft.

    The backend writes config.json and the safetensors into `output`, which exists; the tokenizer
    and the rest are copied by the caller. Where the recipe quantizes the head, `source` has one of
    its own.
    """

    recipe: Recipe
    source: Checkpoint
    output: Path
    device: str
    samples: tuple[tuple[int, ...], ...]  # token ids to calibrate on; empty for a data-free recipe
    progress: Callable[[str], None]

    @property
    def source_dtype(self) -> str:
        """The source's own float type, by torch's name: that of its largest tensor."""
        largest = max(self.source.tensors.values(), key=lambda info: info.num_bytes)
        return FLOAT_NAMES[largest.dtype]
