"""The families of draft heads, read from `families.yaml`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from quantdraft.errors import OptionError

FAMILIES_FILE = Path(__file__).with_name("families.yaml")
# Prefixes of a head's names: none, the model's, or those of the layers of MTP modules.
PREFIX = r"(.*\.)?"


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Modules that stay in floats, with the reason and its source."""

    modules: tuple[str, ...]  # patterns of the last parts of a name
    reason: str
    source: str

    @property
    def patterns(self) -> list[str]:
        """Un-anchored patterns, as a recipe's `ignore` has them: engines add prefixes."""
        return [f"re:{PREFIX}{module}$" for module in self.modules]


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of draft head. Its patterns match names under any prefix."""

    name: str
    title: str
    speculators_types: tuple[str, ...]
    architectures: str
    evidence: tuple[str, ...]  # tensors that a config without a telling name must come with
    required: tuple[str, ...]  # tensors without which it is damaged
    can_quantize_head: bool
    excluded: tuple[Exclusion, ...]
    looked_up: tuple[str, ...]  # tables of which a step reads a row
    methods: Mapping[str, Mapping[str, Any]]  # engine -> what it calls this

    def missing(self, patterns: Iterable[str], names: Iterable[str]) -> list[str]:
        """Return the patterns that none of the tensors' names match."""
        known = list(names)
        return [p for p in patterns if not any(re.fullmatch(PREFIX + p, name) for name in known)]


def _read_families() -> dict[str, Family]:
    plain = yaml.safe_load(FAMILIES_FILE.read_text(encoding="utf-8"))
    named = {name: {"name": name, **entry} for name, entry in plain.items()}
    return TypeAdapter(dict[str, Family]).validate_python(named)


FAMILIES: Mapping[str, Family] = _read_families()


def family_of_config(config: Mapping[str, Any]) -> Family | None:
    """Return the family that a config names, by its speculators type or its architecture; or None.

    An MTP head with its target's own config names none: its tensors tell.
    """
    kind, architectures = config.get("speculators_model_type"), config.get("architectures") or []
    for family in FAMILIES.values():
        if kind in family.speculators_types:
            return family
    for family in FAMILIES.values():
        if any(re.fullmatch(family.architectures, str(name)) for name in architectures):
            return family
    return None


def engine_method(family: str, engine: str) -> dict[str, Any]:
    """Return what an engine is told for a family: vllm {"method": …}, sglang {"algorithm": …}.

    Raises OptionError for an engine that serves no such head.
    """
    methods = FAMILIES[family].methods
    if engine not in methods:
        raise OptionError(
            f"--engine {engine}: it does not serve {FAMILIES[family].title} heads. "
            f"Use {' or '.join(methods)}."
        )
    return dict(methods[engine])
