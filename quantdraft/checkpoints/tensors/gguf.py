"""The weights of a GGUF file, dequantized by transformers. What it does not read is refused."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.common.quiet import quiet
from quantdraft.errors import CheckpointError


def write_dequantized(file: Path, source: Checkpoint, output: Path) -> None:
    """Write a GGUF's weights in float32, under the names that its full-precision model has.

    Raises CheckpointError for a file that cannot be read, or that is not of this model.
    """
    try:
        with quiet(lambda message: None):
            model = AutoModelForCausalLM.from_pretrained(
                str(file.parent), gguf_file=file.name, dtype=torch.float32
            )
    except (ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"'{file}' cannot be read: {error}") from error
    found = model.state_dict()
    missing = [n for n, t in source.tensors.items() if n not in found or found[n].shape != t.shape]
    if missing:
        raise CheckpointError(
            f"'{file}' is not of the draft '{source.path}': {missing[0]!r} is not in it, or has "
            "another shape."
        )
    weights = {name: found[name].contiguous().clone() for name in source.tensors}
    save_file(weights, output, {"format": "pt"})
