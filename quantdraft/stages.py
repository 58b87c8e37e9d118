"""Finished parts of a run, kept beside it so that a killed run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from quantdraft.files import write_text

Part = TypeVar("Part")

STAGES_DIR = "stages"


def stage(
    run_dir: Path, name: str, inputs: dict[str, Any], kind: type[Part], compute: Callable[[], Part]
) -> Part:
    """The part as computed before from the same inputs, or computed now and kept.

    inputs: everything the part depends on, as JSON values; other inputs make it stale
    kind: its type, as pydantic understands it
    """
    from pydantic import TypeAdapter

    adapter = TypeAdapter(kind)
    path = run_dir / STAGES_DIR / f"{name}.json"
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    if path.is_file():
        kept = _read(path)
        if kept.get("key") == key:
            return adapter.validate_python(kept["part"])
    part = compute()
    plain = {"key": key, "part": adapter.dump_python(part, mode="json")}
    write_text(path, json.dumps(plain, allow_nan=False))
    return part


def _read(path: Path) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # not ours: it will be replaced
        return {}
    return kept if isinstance(kept, dict) else {}
