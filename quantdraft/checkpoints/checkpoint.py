"""Open and check a model directory from its files' headers: no torch, no weights in memory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantdraft.checkpoints.configs import read_generation_config, require_config, require_manifest
from quantdraft.checkpoints.other_kinds import (
    require_directory,
    require_own_kind,
    tokenizer_code,
)
from quantdraft.checkpoints.quantization_files import (
    quantization_beside,
    require_one_quantization,
)
from quantdraft.checkpoints.stored_formats import EMBEDDINGS
from quantdraft.checkpoints.tied_head import find_copied_head, stored_head, tied_flag
from quantdraft.checkpoints.weights import INDEX_FILE, TensorInfo, read_tensors, weight_files
from quantdraft.common.documents import read_json_object
from quantdraft.errors import CheckpointError, UndefinedMetricError

MANIFEST_FILE = "quantdraft.json"
MANIFEST_SCHEMA_VERSION = 1
EXPLICIT_WEIGHTS = "transformers_weights"  # a field of config.json that transformers obeys
# Any one of these sets of files is a tokenizer that transformers can build.
TOKENIZER_FILES = (
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("spiece.model",),
    ("tekken.json",),
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A directory with a model in Hugging Face layout; `manifest` is what `apply` left in it."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    manifest: dict[str, Any] | None = None
    copies: tuple[str, ...] = ()  # stored too, and left out: a tied head, which is the embedding

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's part of the config."""
        return dict(self.config.get("text_config") or self.config)

    @property
    def quantization(self) -> dict[str, Any] | None:
        """The quantization config that engines read, or None for a full-precision checkpoint."""
        for holder in (self.config, self.text_config):
            for key in ("quantization_config", "compression_config"):
                if holder.get(key):
                    return dict(holder[key])
        return None

    @property
    def has_tied_head(self) -> bool:
        """True when the embedding table is the output head too, and stored once."""
        return not stored_head(self.tensors) and tied_flag(self.config) is not False

    @property
    def num_bytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(info.num_bytes for info in self.tensors.values())

    @property
    def embedding_name(self) -> str:
        """Name of the token embedding's tensor: the largest table. UndefinedMetricError if none."""
        tables = {
            name: tensor
            for name, tensor in self.tensors.items()
            if re.fullmatch(EMBEDDINGS, name.rpartition(".")[0])
        }
        if not tables:
            raise UndefinedMetricError(
                f"'{self.path}' has no embedding table that this quantdraft recognises."
            )
        return max(tables, key=lambda name: tables[name].num_bytes)

    @property
    def name(self) -> str:
        """The model's name: see `name_of`."""
        return name_of(self.path)

    @property
    def revision(self) -> str | None:
        """The Hub revision, where the directory is a Hub snapshot."""
        parts = self.path.absolute().parts
        if "snapshots" not in parts[:-1]:
            return None
        return parts[parts.index("snapshots") + 1]


def name_of(path: Path) -> str:
    """Return a model's name: its directory's, or the last part of owner/name for a Hub model."""
    parts = path.resolve().parts
    if "snapshots" in parts:  # …/models--owner--name/snapshots/<revision>
        return parts[parts.index("snapshots") - 1].split("--")[-1]
    return parts[-1]


def open_checkpoint(path: Path) -> Checkpoint:
    """Read config, headers and manifest of a model directory.

    Raises CheckpointError, one line, for a directory that is missing, has no config.json, holds
    only pickle weights, or whose safetensors are truncated or incomplete, and for a head that
    contradicts its config.
    """
    _require_model_directory(path)
    config, manifest = _read_config(path), _read_manifest(path / MANIFEST_FILE)
    tensors = read_tensors(path)
    copies = find_copied_head(path, config, tensors)
    kept = {name: info for name, info in tensors.items() if name not in copies}
    return Checkpoint(path, config, kept, manifest, copies)


def _require_model_directory(path: Path) -> None:
    require_directory(path)
    if not path.is_dir():
        raise CheckpointError(f"no model directory '{path}'. Give a directory with a config.json.")
    require_own_kind(path)
    if not (path / "config.json").is_file():
        raise CheckpointError(f"'{path}' has no config.json: it is not a model directory.")


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json_object(path / "config.json")
    beside = quantization_beside(path)
    if not config.get("quantization_config") and beside:
        config["quantization_config"] = beside
    require_config(config, path / "config.json")
    require_one_quantization(path, config.get("quantization_config") or {}, beside)
    named = config.get(EXPLICIT_WEIGHTS)
    if named is not None and weight_files(path) != [named] and named != INDEX_FILE:
        raise CheckpointError(
            f"'{path / 'config.json'}' has {EXPLICIT_WEIGHTS} {named!r}, which transformers would "
            "read instead of the model's usual files. Remove that field."
        )
    return config


def require_tokenizer(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError when the directory has no tokenizer."""
    for names in TOKENIZER_FILES:
        if all((checkpoint.path / name).is_file() for name in names):
            return
    if (code := tokenizer_code(checkpoint.path)) is not None:
        raise CheckpointError(code)
    raise CheckpointError(
        f"'{checkpoint.path}' has no tokenizer. Copy tokenizer.json and tokenizer_config.json of "
        "the model it was made from into it."
    )


def _read_manifest(path: Path) -> dict[str, Any] | None:
    """Read what `apply` left; None where it made no such file."""
    if not path.is_file():
        return None
    manifest = read_json_object(path)
    found = manifest.get("schema_version")
    if found != MANIFEST_SCHEMA_VERSION:
        raise CheckpointError(
            f"'{path}' has schema version {found!r}; this quantdraft reads "
            f"{MANIFEST_SCHEMA_VERSION}. Run `quantdraft apply` again."
        )
    require_manifest(manifest, path)
    return manifest


def end_token_ids(model: Any) -> tuple[int, ...]:
    """Return the ids that end a response, from a loaded model's generation config, else config."""
    configs = (getattr(model, "generation_config", None), model.config.get_text_config())
    return first_token_ids(*(getattr(config, "eos_token_id", None) for config in configs))


def stored_end_token_ids(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Return the ids that end a stored model's response, by the same rule; no torch."""
    generation = read_generation_config(checkpoint.path)
    return first_token_ids(
        generation.get("eos_token_id"), checkpoint.text_config.get("eos_token_id")
    )


def first_token_ids(*fields: int | Sequence[int] | None) -> tuple[int, ...]:
    """Return the ids of the first `eos_token_id` field that is set; () where none is."""
    ids = next((field for field in fields if field is not None), ())
    return (ids,) if isinstance(ids, int) else tuple(ids)
