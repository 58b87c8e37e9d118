"""Which of the target's layers a head reads, and which id masks a slot, as its config spells them.

The fields and their order are those of vLLM 0.32 (v1/worker/gpu/spec_decode): EAGLE-3's ids count
the embedding as 0, so that id i is what layer i - 1 puts out; DFlash's and DSpark's name the layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SECTIONS = ("dflash_config", "eagle_config")
# Field -> what is added to an id of it to count the embedding as 0.
LAYER_FIELDS = {
    "eagle_aux_hidden_state_layer_ids": 0,
    "aux_hidden_state_layer_ids": 0,
    "layer_ids": 0,
    "target_layer_ids": 1,
    "dspark_target_layer_ids": 1,
}
MASK_FIELDS = ("mask_token_id", "dspark_noise_token_id", "pard_token", "ptd_token_id")
EAGLE3_LAYERS = 3  # that a head reads whose config names none


@dataclass(frozen=True, slots=True)
class Captured:
    """The layers whose outputs a head reads, with the field of the config that names them."""

    field: str
    ids: list[Any]
    offset: int  # to an id that counts the embedding as 0

    def problem(self, num_layers: int | None) -> str | None:
        """Return what is wrong with the list, by itself and for a target of so many layers."""
        is_whole = all(type(each) is int for each in self.ids)
        if not is_whole or min(self.ids) < -self.offset or len(set(self.ids)) < len(self.ids):
            return (
                f"{self.field} is {self.ids!r}, and lists layers of the target, each once, from "
                f"{-self.offset} on"
            )
        highest = None if num_layers is None else num_layers - self.offset
        if highest is not None and max(self.ids) > highest:
            return (
                f"{self.field} is {self.ids!r}, and the target has {num_layers} layers: {highest} "
                "is its last id"
            )
        return None


def captured_layers(config: Mapping[str, Any]) -> Captured | None:
    """Return the layers that a config names; None where it leaves them to the engine."""
    for field, value in _fields(config, tuple(LAYER_FIELDS)):
        if isinstance(value, list) and value:
            return Captured(field, value, LAYER_FIELDS[field.rpartition(".")[2]])
    return None


def num_captured(config: Mapping[str, Any], default: int) -> tuple[int, str]:
    """Return how many layers' outputs `fc` reads, and the words for where that stands."""
    number = config.get("num_aux_hidden_states")
    if type(number) is int:
        return number, f"num_aux_hidden_states is {number}"
    found = captured_layers(config)
    if found is None:
        return default, f"no list of layers in the config, which means {default}"
    return len(found.ids), f"{found.field} has {len(found.ids)}"


def reads_no_layers(config: Mapping[str, Any]) -> bool:
    """Return True where the config says that the head reads the last hidden state alone."""
    return any(value is False for _, value in _fields(config, ("use_aux_hidden_state",)))


def mask_token(config: Mapping[str, Any]) -> tuple[str, Any] | None:
    """Return the field and the id of the token that stands in a block's open slots, if any."""
    found = ((field, value) for field, value in _fields(config, MASK_FIELDS) if value is not None)
    return next(found, None)


def _fields(config: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Yield the fields of those names that are there: of the sections and of the top."""
    sections: list[tuple[str, Mapping[str, Any]]] = [("", config)]
    for name in SECTIONS:
        section = config.get(name)
        if isinstance(section, Mapping):
            sections.append((f"{name}.", section))
    for name in names:
        for prefix, section in sections:
            if name in section:
                yield f"{prefix}{name}", section[name]
