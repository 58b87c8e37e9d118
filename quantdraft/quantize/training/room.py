"""The memory that a training needs, said before it starts."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.tensors.free_memory import available_bytes
from quantdraft.checkpoints.weights import FLOAT_DTYPES
from quantdraft.errors import CheckpointError

# Of a weight: the float, its gradient, two moments, the stored number that is multiplied with, and
# what the optimizer and the rounding make on the way.
WEIGHT_BYTES = 4 + 4 + 8 + 4 + 4
LOGIT_BYTES = 20  # as the model gives it, in float32, its softmax and its gradient
LOGITS_AT_ONCE = 2**26  # of one pass: 1.3 GB
# Numbers of a token and layer that wait for the backward pass, by the widths they have.
NUM_HIDDEN, NUM_INNER, FLOAT_BYTES = 14, 4, 4


class TrainingBytes(NamedTuple):
    """Bytes by what needs them."""

    weights: int
    activations: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.activations

    @property
    def sentence(self) -> str:
        """Return it in words."""
        return (
            f"training needs about {self.total / 1e9:.1f} GB: {self.weights / 1e9:.1f} for "
            f"weights, gradients and moments, {self.activations / 1e9:.1f} for a pass"
        )


def tokens_a_pass(vocab_size: int, batch_tokens: int, longest: int) -> int:
    """Return how many tokens one pass may have: an update's, or as many as their logits allow."""
    return max(longest, min(max(batch_tokens, longest), LOGITS_AT_ONCE // vocab_size))


def training_bytes(source: Checkpoint, num_tokens: int) -> TrainingBytes:
    """Return what training a draft takes. num_tokens: of one pass."""
    config = source.text_config
    infos = source.tensors.values()
    num_weights = sum(math.prod(each.shape) for each in infos if each.dtype in FLOAT_DTYPES)
    hidden = int(config.get("hidden_size") or 0)
    inner = int(config.get("intermediate_size") or 4 * hidden)
    layers = int(config.get("num_hidden_layers") or 1)
    per_token = layers * (NUM_HIDDEN * hidden + NUM_INNER * inner) * FLOAT_BYTES
    logits = int(config["vocab_size"]) * LOGIT_BYTES
    return TrainingBytes(num_weights * WEIGHT_BYTES, num_tokens * (per_token + logits))


def require_training_room(
    source: Checkpoint, num_tokens: int, device: torch.device
) -> TrainingBytes:
    """Return the bytes that training needs. Raises CheckpointError where the device has fewer."""

    needed = training_bytes(source, num_tokens)
    free = available_bytes(device)
    if free is not None and needed.total > free:
        raise CheckpointError(
            f"'{source.name}' cannot be trained on {device}: {needed.sentence}, and "
            f"{free / 1e9:.1f} GB are free. Use a smaller --max-length and --batch-tokens, or a "
            "device with more memory."
        )
    return needed
