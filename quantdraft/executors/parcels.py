"""Files and directories as bytes, and back: how they travel where there is no shared disk."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from quantdraft.errors import OptionError

MAX_BYTES = 32 * 2**30  # of one parcel: more than that belongs on a shared disk


@dataclass(frozen=True, slots=True)
class Parcel:
    """A file (one entry with the name "") or a directory's files by their paths inside it."""

    files: dict[str, bytes]

    @property
    def digest(self) -> str:
        """A hash of the names and the content."""
        total = hashlib.sha256()
        for name, content in sorted(self.files.items()):
            total.update(f"{len(name)} {name} {len(content)}\n".encode())
            total.update(content)
        return total.hexdigest()


def packed(path: Path) -> Parcel:
    """Read a file or a whole directory; OptionError where that is too large to send."""
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    num_bytes = sum(file.stat().st_size for file in found)
    if num_bytes > MAX_BYTES:
        raise OptionError(
            f"'{path}' has {num_bytes / 1e9:.0f} GB, too much to send to workers. Put it on a disk "
            "that all nodes see and give --shared, or give a Hub id."
        )
    return Parcel({_name(file, path): file.read_bytes() for file in found})


def unpacked_parcel(parcel: Parcel, place: Path) -> None:
    """Write a parcel to `place`, whole or not at all; what is there already is replaced."""
    place.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        for name, content in parcel.files.items():
            file = staging / "content" if not name else staging / "content" / _inside(name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        if place.is_dir():
            shutil.rmtree(place)
        os.replace(staging / "content", place)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _name(file: Path, root: Path) -> str:
    return "" if file == root else file.relative_to(root).as_posix()


def _inside(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise OptionError(f"a parcel's file {name!r} lies outside its directory.")
    return path
