"""What a draft is, by its config and headers: differences that may explain its acceptance."""

from __future__ import annotations

import math
from dataclasses import dataclass

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.dense_view import dense_view

# Where a config may say what its model was trained on. Nothing else is taken for it.
DOMAIN_KEYS = ("training_domain", "training_data", "domain")
WORDS = {
    "num_layers": "layers",
    "hidden_size": "hidden size",
    "num_heads": "heads",
    "num_kv_heads": "KV heads",
    "mlp_size": "MLP size",
    "vocab_size": "vocabulary",
    "family": "family",
    "training_domain": "training domain",
}


@dataclass(frozen=True, slots=True)
class Traits:
    """The shape of a draft; a field is None where the config does not say."""

    family: str
    num_parameters: int  # however they are packed
    num_layers: int | None
    hidden_size: int | None
    num_heads: int | None
    num_kv_heads: int | None
    mlp_size: int | None
    vocab_size: int | None
    training_domain: str | None

    def differences(self, other: Traits) -> list[str]:
        """Return each difference as `layers 6 against 2`, this one's first."""
        pairs = [(word, getattr(self, key), getattr(other, key)) for key, word in WORDS.items()]
        return [
            f"{word} {'not stated' if a is None else a} against {'not stated' if b is None else b}"
            for word, a, b in pairs
            if a != b
        ]


def traits_of(checkpoint: Checkpoint) -> Traits:
    """Read the traits from the config, and the number of parameters from the headers."""
    config = checkpoint.text_config

    def number(*keys: str) -> int | None:
        found = next((config[key] for key in keys if config.get(key) is not None), None)
        return found if isinstance(found, int) else None

    stated = (checkpoint.config.get(key) for key in DOMAIN_KEYS)
    domain = next((value for value in stated if value), None)
    return Traits(
        family=str(checkpoint.config.get("model_type", "unknown")),
        num_parameters=sum(math.prod(tensor.shape) for tensor in dense_view(checkpoint).values()),
        num_layers=number("num_hidden_layers", "n_layer"),
        hidden_size=number("hidden_size", "n_embd"),
        num_heads=number("num_attention_heads", "n_head"),
        num_kv_heads=number("num_key_value_heads", "num_attention_heads", "n_head"),
        mlp_size=number("intermediate_size", "n_inner"),
        vocab_size=number("vocab_size"),
        training_domain=None if domain is None else str(domain),
    )
