"""One file format under attack: where its file lies, valid contents, and what reads it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantdraft.errors import QuantDraftError
from tests.campaigns.mutations import mutated

Mutate = Callable[[bytes, Sequence[bytes], random.Random], bytes]


@dataclass(frozen=True)
class Format:
    """One format: where its file lies, valid contents, and what is done with it."""

    name: str
    file: Path
    seeds: tuple[bytes, ...]
    read: Callable[[], object]
    mutate: Mutate
    share: float = 1.0  # of the inputs, by what a read costs: drawing a report takes long


def as_json(seed: bytes, seeds: Sequence[bytes], chance: random.Random) -> bytes:
    return mutated(seed, seeds, chance, is_json=True)


def as_yaml(seed: bytes, seeds: Sequence[bytes], chance: random.Random) -> bytes:
    """JSON is YAML: half of the variants are of the values, half of the text."""
    return mutated(seed, seeds, chance, is_json=seed.startswith(b"{"))


def as_text(seed: bytes, seeds: Sequence[bytes], chance: random.Random) -> bytes:
    return mutated(seed, seeds, chance, is_json=False)


def as_event(seed: bytes, seeds: Sequence[bytes], chance: random.Random) -> bytes:
    if not seed.startswith(b"data: "):
        return as_text(b"data: " + seed, seeds, chance)
    return b"data: " + as_json(seed.removeprefix(b"data: "), seeds, chance).replace(b"\n", b" ")


def is_one_line(error: QuantDraftError) -> bool:
    """True of a message that is there, and stays on its line."""
    return bool(str(error)) and str(error).isprintable()
