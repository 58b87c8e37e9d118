"""The ids that end a response, by a loaded model or by the files of a stored one. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.configs import read_generation_config


def end_token_ids(model: Any) -> tuple[int, ...]:
    """Ids that end a response: the generation config's, else the config's; there may be none."""
    configs = (getattr(model, "generation_config", None), model.config.get_text_config())
    return first_token_ids(*(getattr(config, "eos_token_id", None) for config in configs))


def stored_end_token_ids(checkpoint: Checkpoint) -> tuple[int, ...]:
    """The same of a model that is not loaded."""
    generation = read_generation_config(checkpoint.path)
    return first_token_ids(
        generation.get("eos_token_id"), checkpoint.text_config.get("eos_token_id")
    )


def first_token_ids(*fields: int | Sequence[int] | None) -> tuple[int, ...]:
    """The ids of the first `eos_token_id` field that holds any: one id, several, or None."""
    ids = next((field for field in fields if field is not None), ())
    return (ids,) if isinstance(ids, int) else tuple(ids)
