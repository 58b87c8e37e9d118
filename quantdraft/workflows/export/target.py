"""The target that an exported draft belongs to, and whether it is the one that was evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantdraft.checkpoints.checkpoint import name_of
from quantdraft.checkpoints.configs import require_config
from quantdraft.checkpoints.other_kinds import split_revision
from quantdraft.common.documents import read_json_object
from quantdraft.common.files import file_sha256
from quantdraft.engines.findings import Draft, float_type
from quantdraft.record import Evaluation


@dataclass(frozen=True, slots=True)
class Target:
    """A target as it was named; `config` is None where it does not lie on this machine."""

    name: str
    config: dict[str, Any] | None = None
    revision: str | None = None

    @property
    def shown(self) -> str:
        """Its name for readers elsewhere: a Hub id, or the last part of where it lies here."""
        path = Path(self.name)
        return name_of(path) if path.exists() else self.name

    @property
    def precision(self) -> str | None:
        """Its quantization, or else its float type."""
        if self.config is None:
            return None
        draft = Draft(Path(self.name), self.config)
        return draft.format if draft.quantization else float_type(self.config)

    def stamp(self, evaluation: Evaluation | None) -> str:
        """Return name, revision and precision, as far as they are known."""
        recorded = _recorded(evaluation)
        revision = self.revision or recorded.get("revision")
        precision = self.precision or float_type(recorded)
        known = f"revision {revision or 'unknown'}, precision {precision or 'unknown'}"
        return f"`{self.shown}` ({known})"

    def dtype(self, evaluation: Evaluation | None) -> str | None:
        """Return the float type to pin: of the engine that was evaluated, or else the target's own.

        What a native evaluation computed in is not pinned: on a CPU that is float32, in which an
        engine may have no kernel for the draft. `export` says that they differ.
        """
        served = served_dtype(evaluation)
        return served or float_type(self.config) or float_type(_recorded(evaluation))

    def cross_pairing(self, evaluation: Evaluation | None) -> Iterator[str]:
        """Yield what differs from the target that was evaluated, to which the verdict belongs."""
        recorded = _recorded(evaluation)
        evaluated = recorded.get("revision")
        if evaluated and self.revision and evaluated != self.revision:
            yield _other("revision", evaluated, self.revision)
        own, measured = float_type(self.config), float_type(recorded)
        if own and measured and own != measured:
            yield _other("float type", measured, own)
        hashes = recorded.get("sha256") or {}
        file = Path(self.name) / "config.json"
        known = hashes.get("config.json") if isinstance(hashes, dict) else None
        if known and file.is_file() and file_sha256(file) != known:
            yield _other("config.json (its quantization too)", "one", "another")


def served_dtype(evaluation: Evaluation | None) -> str | None:
    """Return the float type in which an engine served the evaluated arms, where it is known."""
    served = None if evaluation is None else evaluation.served
    return served.known_dtype if served is not None and served.arms else None


def read_target(name: str) -> Target:
    """Return the target, with its config where it is a directory here; nothing is downloaded."""
    path = Path(name)
    file = path / "config.json"
    if not file.is_file():
        hub_id, revision = split_revision(name)
        return Target(hub_id, revision=revision)
    config = read_json_object(file)
    require_config(config, file)
    parts = path.absolute().parts
    is_snapshot = "snapshots" in parts[:-1]
    revision = parts[parts.index("snapshots") + 1] if is_snapshot else None
    return Target(name, config, revision)


def _recorded(evaluation: Evaluation | None) -> dict[str, Any]:
    found = evaluation.provenance.get("target") if evaluation else None
    return found if isinstance(found, dict) else {}


def _other(what: str, evaluated: str, own: str) -> str:
    return (
        f"the evaluation is of a target with another {what} ({evaluated}, not {own}): a draft can "
        "be accepted by one precision of a target and never by another. Evaluate with this target."
    )
