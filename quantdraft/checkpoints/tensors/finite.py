"""Refuse weights that are no numbers: NaN and infinity, in files and in a loaded model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.tensors.unpacking import read_rows
from quantdraft.checkpoints.weights import FLOAT_DTYPES
from quantdraft.errors import CheckpointError


def require_finite_files(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError, naming the tensor, where a stored float is NaN or infinite.

    Every float of the files is read: for a draft, not for a target.
    """
    for name, info in checkpoint.tensors.items():
        if info.dtype in FLOAT_DTYPES and not all(map(_is_finite, read_rows(checkpoint, name))):
            raise _not_finite(checkpoint.path, name, "")


def require_finite_model(model: Any, path: Path) -> None:
    """Raise CheckpointError, naming the parameter, where a loaded weight is NaN or infinite."""
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not _is_finite(weight):
            dtype = str(weight.dtype).removeprefix("torch.")
            raise _not_finite(path, name, f", loaded as {dtype}")


def _is_finite(weight: torch.Tensor) -> bool:
    """Return True when a tensor has no NaN and no infinity: its least and greatest number tell."""
    if weight.numel() == 0 or weight.is_meta or weight.dtype.itemsize < 2:
        return True
    low, high = torch.aminmax(weight.detach())
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _not_finite(path: Path, name: str, how: str) -> CheckpointError:
    return CheckpointError(
        f"'{path}' holds NaN or infinite numbers in {name!r}{how}: everything computed with it "
        "would be too. Download or copy it again, or ask who trained it."
    )
