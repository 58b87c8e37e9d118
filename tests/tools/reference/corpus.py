"""Read the corpus of the embedded pair: the source of the Python standard library.

Every machine with Python has it, and its licence (PSF-2.0) allows this use. A file is held out by
the hash of its path, so the split does not depend on order, machine or random state.
"""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

MAX_FILE_BYTES = 300_000
HELD_OUT_SHARE = 0.04

# Generated tables and third-party wheels say little about how people write Python.
SKIPPED_PARTS = {"site-packages", "__pycache__", "encodings", "pydoc_data", "cjkencodings"}


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of the corpus; `domain` is `library` or `tests`."""

    name: str
    text: str
    domain: str
    is_held_out: bool


def read_corpus(root: Path | None = None) -> list[SourceFile]:
    """Every readable source file below `root` (default: this Python's), in the order of names."""
    root = root or Path(sysconfig.get_paths()["stdlib"])
    return [
        source
        for path in sorted(root.rglob("*.py"))
        if (source := _read(path, path.relative_to(root).as_posix())) is not None
    ]


def corpus_hash(sources: list[SourceFile]) -> str:
    """SHA-256 over names and texts: two models with one hash were trained on the same text."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.name.encode() + b"\0" + source.text.encode() + b"\0")
    return digest.hexdigest()


def _read(path: Path, name: str) -> SourceFile | None:
    parts = set(name.split("/"))
    if parts & SKIPPED_PARTS or not 200 < path.stat().st_size < MAX_FILE_BYTES:
        return None
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):  # a few test files are deliberately broken
        return None
    domain = "tests" if parts & {"test", "tests", "idle_test"} else "library"
    return SourceFile(name, text, domain, is_held_out(name))


def is_held_out(name: str) -> bool:
    """True for HELD_OUT_SHARE of all names, by their hash."""
    bucket = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 0xFFFFFFFF
    return bucket < HELD_OUT_SHARE
