"""Rotary embeddings whose frequencies depend on a text's length: which these are, and the word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantdraft.checkpoints.configs import num_positions

CHANGING = ("longrope", "su", "dynamic")  # as transformers names them; "su" is longrope's old name


def frequencies_note(name: str, config: Mapping[str, Any]) -> str | None:
    """Return which frequencies a model is measured with; None where it has one set alone.

    config: the language model's own part
    """
    for values in _rotary_sections(config):
        kind = values.get("rope_type", values.get("type"))
        if kind == "dynamic" and not values.get("alpha"):
            return (
                f"'{name}' has rotary frequencies that depend on the length (dynamic). All its "
                f"texts are measured with those of its longest, {num_positions(config)} tokens, "
                "as vLLM and SGLang serve them; transformers changes them from token to token."
            )
        if kind in CHANGING and (original := _original(values, config)) is not None:
            return _long_note(name, config, original)
    return None


def _long_note(name: str, config: Mapping[str, Any], original: int) -> str:
    positions = num_positions(config)
    if positions is None or positions <= original:
        return f"'{name}' has two sets of rotary factors (longrope): the short ones are measured."
    return (
        f"'{name}' has two sets of rotary factors (longrope). All its texts are measured with the "
        f"long ones, as an engine serves them whose longest text exceeds {original} tokens (vLLM: "
        f"--max-model-len, by default {positions}). For one that is limited to {original}, set "
        f"max_position_embeddings to {original} in config.json."
    )


def _original(values: Mapping[str, Any], config: Mapping[str, Any]) -> int | None:
    key = "original_max_position_embeddings"
    original = values.get(key) or config.get(key)
    return original if isinstance(original, int) else None


def _rotary_sections(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the sections of a config that describe rotary embeddings: one, or one a layer type."""
    found = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(found, Mapping):
        return []
    return [found, *(each for each in found.values() if isinstance(each, Mapping))]
