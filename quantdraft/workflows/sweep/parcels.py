"""Pack files and directories as bytes and unpack them, for nodes without a shared disk."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from quantdraft.checkpoints.links import require_own_files
from quantdraft.errors import OptionError, OutputError

MAX_BYTES = 32 * 2**30  # of one parcel: more than that belongs on a shared disk


@dataclass(frozen=True, slots=True)
class Parcel:
    """A file (one entry with the name "") or a directory's files by their paths inside it."""

    files: dict[str, bytes]

    @property
    def digest(self) -> str:
        """The hash of the names and the content."""
        total = hashlib.sha256()
        for name, content in sorted(self.files.items()):
            total.update(f"{len(name)} {name} {len(content)}\n".encode())
            total.update(content)
        return total.hexdigest()


def pack(path: Path) -> Parcel:
    """Read a file or a whole directory; OptionError where that is too large to send.

    Raises CheckpointError for a link that leads out of the directory: sent, it would be a file like
    any other.
    """
    for directory in [p for p in (path, *path.rglob("*")) if p.is_dir()]:
        require_own_files(directory)
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    num_bytes = sum(file.stat().st_size for file in found)
    if num_bytes > MAX_BYTES:
        raise OptionError(
            f"'{path}' has {num_bytes / 1e9:.0f} GB, too much to send to workers. Put it on a disk "
            "that all nodes see and give --shared, or give a Hub id."
        )
    return Parcel({_name(file, path): file.read_bytes() for file in found})


def unpack_parcel(parcel: Parcel, place: Path) -> None:
    """Write a parcel to `place`, whole or not at all; what is there already is replaced."""
    with _stage(parcel, place) as content:
        if place.is_dir():
            shutil.rmtree(place)
        os.replace(content, place)


def unpack_parcel_once(parcel: Callable[[], Parcel], place: Path) -> Path:
    """Unpack a parcel to `place` unless it is there already, and return the place.

    parcel: fetches it. Of several workers that unpack at once the first one's copy stays, as
    others may be reading it.
    """
    if not place.exists():
        with _stage(parcel(), place) as content:
            try:
                content.rename(place)
            except OSError:
                if not place.exists():
                    raise
    return place


@contextmanager
def _stage(parcel: Parcel, place: Path) -> Iterator[Path]:
    """Write the parcel's files beside `place`, and remove those that are not moved away."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{place.name}.", dir=place.parent) as staging:
        content = Path(staging) / "content"
        for name, data in parcel.files.items():
            file = content / _inside(name) if name else content
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        yield content


def _name(file: Path, root: Path) -> str:
    return "" if file == root else file.relative_to(root).as_posix()


def _inside(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise OptionError(f"a parcel's file {name!r} lies outside its directory.")
    return path


def require_own_directory(path: Path) -> Path:
    """Make a directory of mode 0700 where there is none, and return it.

    Raises OutputError where what stands there is a link, or somebody else's, or open to others:
    whoever put it there could read what is written to it, or choose what is read from it.
    """
    try:
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = path.lstat()
    except OSError as error:
        raise OutputError(f"cannot write '{path}': {error.strerror or error}.") from error
    is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not is_own or stat.S_IMODE(found.st_mode) & 0o077:
        raise OutputError(
            f"'{path}' is not a directory that this user alone can enter. Remove it, or set TMPDIR "
            "to another place."
        )
    return path
