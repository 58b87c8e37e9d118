"""The input of a backend, and what the calibrating ones make of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.weights import FLOAT_NAMES
from quantdraft.errors import RecipeError
from quantdraft.quantize.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor


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

    def start_calibration(self) -> None:
        """Seed torch, and tell on how many samples the library calibrates."""
        import torch

        torch.manual_seed(self.recipe.seed or 0)
        num_tokens = sum(len(sample) for sample in self.samples)
        self.progress(f"calibrating on {len(self.samples)} samples, {num_tokens} tokens")

    def batches(self) -> list[dict[str, Tensor]]:
        """Return batches of one sample, so that no padding enters the statistics."""
        import torch

        rows = [torch.tensor([sample]) for sample in self.samples]
        return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in rows]

    def refusal(self, error: Exception) -> RecipeError:
        """Return the error of a library that refuses the draft, as one line."""
        lines = str(error).strip().splitlines() or [type(error).__name__]
        # pydantic says in its first line how many errors there are, then which.
        num_said = 3 if "validation error" in lines[0] else 1
        said = ": ".join(line.strip() for line in lines[:num_said])
        return RecipeError(f"recipe {self.recipe.name!r} cannot be applied to this draft: {said}")
