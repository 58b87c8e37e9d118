"""Rotary frequencies that change with a text's length, held at those of the longest text.

transformers chooses them anew in every pass, by the longest text of its batch: a prompt's numbers
would depend on its neighbours, and keys that are kept would not fit the queries that follow.
Engines choose once, when they start, by the longest text that they accept; so does this.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from quantdraft.checkpoints.configs import num_positions
from quantdraft.checkpoints.frequencies import CHANGING


def fix_frequencies(model: nn.Module) -> None:
    """Give every rotary embedding of a transformers model one set of frequencies for all texts."""
    for module in model.modules():
        for layer_type, kind in _kinds(module):
            if kind in CHANGING:
                _fix(module, layer_type, kind)


def _kinds(module: nn.Module) -> Iterator[tuple[str | None, str]]:
    """Yield the kinds of a module's frequencies, by type of layer where these have their own."""
    found: Any = getattr(module, "rope_type", None)
    if isinstance(found, str):
        yield None, found
    elif isinstance(found, dict):
        yield from list(found.items())


def _fix(module: Any, layer_type: str | None, kind: str) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = module.config
    values = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
    prefix = "" if layer_type is None else f"{layer_type}_"
    if not values.get("alpha"):  # Hunyuan's own scaling is the same for every length already
        frequencies, scaling = ROPE_INIT_FUNCTIONS[kind](
            config,
            getattr(module, f"{prefix}inv_freq").device,
            seq_len=num_positions(config.to_dict()),
            layer_type=layer_type,
        )
        module.register_buffer(f"{prefix}inv_freq", frequencies, persistent=False)
        setattr(module, f"{prefix}attention_scaling", scaling)
    # What is of this kind is not computed again.
    if layer_type is None:
        module.rope_type = "default"
    else:
        module.rope_type[layer_type] = "default"
