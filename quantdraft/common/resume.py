"""Finished parts of a run on disk, so that a run that was killed continues where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from quantdraft.common.documents import read_json
from quantdraft.common.files import write_text
from quantdraft.errors import OutputError

Part = TypeVar("Part")

STAGES_DIR = "stages"


@contextlib.contextmanager
def kept_when_refused(path: Path) -> Iterator[None]:
    """Raise OutputError for what the disk refuses inside the block: the file stays, to go on."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write '{path}': {error.strerror or error}. What is finished is kept there; "
            "run the same command again to continue."
        ) from error


def stage(
    run_dir: Path, name: str, inputs: dict[str, Any], kind: type[Part], compute: Callable[[], Part]
) -> Part:
    """Return the part that was computed from the same inputs, or compute and keep it now.

    inputs: everything the part depends on, as JSON values; other inputs make it stale
    kind: its type, as pydantic understands it
    """
    from pydantic import TypeAdapter, ValidationError

    adapter = TypeAdapter(kind)
    path = run_dir / STAGES_DIR / f"{name}.json"
    key = key_of(inputs)
    if path.is_file():
        kept = read_kept(path)
        if kept.get("key") == key:
            # A file that cannot be read is not ours, and is replaced.
            with contextlib.suppress(ValidationError, KeyError):
                return adapter.validate_python(kept["part"])
    part = compute()
    plain = {"key": key, "part": adapter.dump_python(part, mode="json")}
    write_text(path, json.dumps(plain, allow_nan=False))
    return part


def key_of(inputs: dict[str, Any]) -> str:
    """Return a hash of the inputs of a part."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def read_kept(path: Path) -> dict[str, Any]:
    """Read the object in a stage's file; empty where there is none, or not one of ours."""
    try:
        kept = read_json(path)
    except (ValueError, OSError):  # not ours: it will be replaced
        return {}
    return kept if isinstance(kept, dict) else {}
