"""Write files and directories whole or not at all, and dataclasses as JSON."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache, lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO, TypeVar

from quantdraft.common import documents
from quantdraft.common.locks import sole_writer
from quantdraft.errors import (
    FULL_DISK,
    CheckpointError,
    OptionError,
    OutputError,
    OutputExistsError,
    disk_reason,
    nearest_path,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from pydantic import TypeAdapter

Record = TypeVar("Record")


def write_text(path: Path, text: str) -> None:
    """Write beside, fsync, rename: a reader sees the old file or the new one."""
    _write(path, [text])


def _write(path: Path, parts: Iterable[str]) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_files(path)
        with _open_locked(beside) as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
            os.replace(beside, path)
    except (OSError, ValueError, TypeError) as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        if not isinstance(error, OSError):  # a value that JSON has no form for: a bug
            raise
        raise OutputError(
            f"cannot write '{path}': {disk_reason(error)}. Nothing was left behind."
        ) from error


def _open_locked(beside: Path) -> TextIO:
    """Open a new file, locked while it is open: `sweep_files` removes unlocked ones."""
    while True:
        file = open(beside, "w", encoding="utf-8")  # noqa: SIM115
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # swept between its opening and its locking


def sweep_files(path: Path) -> None:
    """Remove what a killed process left of this file, but nothing that another one is writing."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.\d+\.tmp")
    for found in path.parent.iterdir():
        if not pattern.fullmatch(found.name):
            continue
        with contextlib.suppress(OSError), open(found, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write a dataclass or plain value as JSON, whole or not at all.

    Piece by piece: neither a copy of a large record nor its whole text is ever in memory.
    """
    encoder = json.JSONEncoder(indent=1, allow_nan=False, default=_fields_of)
    _write(path, chain(encoder.iterencode(value), ["\n"]))


def _fields_of(value: Any) -> dict[str, Any]:
    if not is_dataclass(value) or isinstance(value, type):
        raise TypeError(f"{type(value).__name__} has no form in JSON")
    return {each.name: getattr(value, each.name) for each in fields(value)}


def read_record(path: Path, kind: type[Record], schema_version: int) -> Record:
    """Read a dataclass written by `write_json`, checking its schema version and every field."""
    from pydantic import ValidationError

    if not path.is_file():
        hint = nearest_path(path if path.parent.is_dir() else path.parent)
        raise CheckpointError(
            f"no such file: '{path}'.{hint} Give a run directory or its JSON record."
        )
    try:
        plain = documents.read_json(path, is_finite=True, is_unique=True)
    except ValueError as error:
        raise CheckpointError(f"'{path}' is not JSON that can be used: {error}.") from error
    found = plain.get("schema_version") if isinstance(plain, dict) else None
    if found != schema_version:
        raise CheckpointError(
            f"'{path}' has schema version {found!r}{_writer(plain)}; this quantdraft reads "
            f"{schema_version}. Open it with the version that wrote it, or run the command that "
            "made it again."
        )
    try:
        record: Record = _adapter(kind).validate_python(plain)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"'{path}': {where}: {first['msg']}{_given(first)}") from error
    return record


def _given(problem: Mapping[str, Any]) -> str:
    """Return the value that was refused, where it is a short one."""
    value = problem.get("input")
    is_short = isinstance(value, int | float | str | None) and len(str(value)) <= 40
    return f", not {value!r}" if is_short and problem["type"] != "missing" else ""


@cache  # building it takes longer than reading a record
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _writer(plain: Any) -> str:
    """Return the version that wrote a record, where it says so."""
    place = plain if isinstance(plain, dict) else {}
    for key in ("provenance", "versions", "quantdraft"):
        found = place.get(key)
        if isinstance(found, str):
            return f" (written by quantdraft {found})"
        place = found if isinstance(found, dict) else {}
    return ""


def require_apart(output: Path, given: Path, what: str) -> None:
    """Raise OptionError where the output lies in the input, or the input in the output.

    The output is replaced as a whole (with `--force` also one that exists), so it must not be, nor
    contain, what it is made from.
    """
    require_outside(output, given, what)
    if given.resolve().is_relative_to(output.resolve()):
        raise OptionError(f"--output '{output}' holds {what}, '{given}'. Give another place.")


def require_outside(output: Path, given: Path, what: str) -> None:
    """Raise OptionError where the output lies in the input."""
    written, read = output.resolve(), given.resolve()
    if written == read:
        raise OptionError(f"--output '{output}' is {what} itself. Give another place.")
    if written.is_relative_to(read):
        raise OptionError(f"--output '{output}' lies inside {what}, '{given}'. Give another place.")


def coerce_paths(settings: DataclassInstance) -> None:
    """Turn the texts that a frozen settings object has for paths into paths, in place."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if "Path" in str(field.type) and isinstance(value, str):
            object.__setattr__(settings, field.name, Path(value))


@contextlib.contextmanager
def whole_directory(output: Path, force: bool = False) -> Iterator[Path]:
    """Yield a temporary directory that becomes `output` when the block ends without an error.

    On any error the temporary directory is removed and `output` is left as it was. The output is
    locked while the block runs, and what a killed run left of it is removed first. Raises
    OutputExistsError, OutputBusyError, OutputError.
    """
    with sole_writer(output):
        staging = _begin_directory(output, force)
        try:
            staging.chmod(0o755)
            yield staging
            _sync_files(staging)
            _replace_directory(staging, output)
        except Exception as error:
            if not is_of_the_disk(error):
                raise
            raise OutputError(
                f"cannot write '{output}': {disk_reason(error)}. Nothing was left behind."
            ) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _begin_directory(output: Path, force: bool) -> Path:
    try:
        _sweep_directories(output)
        if output.exists() and not force:
            raise OutputExistsError(
                f"output '{output}' exists. Give another --output, or --force to replace it."
            )
        return hidden_directory(output, "staging")
    except OSError as error:
        raise OutputError(f"cannot write '{output}': {disk_reason(error)}.") from error


def hidden_directory(output: Path, kind: Literal["staging", "source", "old"]) -> Path:
    """Make a hidden directory beside an output; the next holder of the lock removes leftovers."""
    whole = output.absolute()
    return Path(tempfile.mkdtemp(prefix=f".{whole.name}.", suffix=f".{kind}", dir=whole.parent))


def _sweep_directories(output: Path) -> None:
    """Remove what killed runs left beside an output; its lock is held, so nobody uses it.

    The old output of a run that died between its two renames is put back instead.
    """
    whole = output.absolute()
    pattern = re.compile(rf"\.{re.escape(whole.name)}\.[a-z0-9_]{{8}}\.(staging|source|old)")
    for found in [path for path in whole.parent.iterdir() if pattern.fullmatch(path.name)]:
        kept = found / whole.name
        if found.suffix == ".old" and kept.exists() and not whole.exists():
            os.replace(kept, whole)
        shutil.rmtree(found, ignore_errors=True)


def _sync_files(directory: Path) -> None:
    """Flush all files to the disk, else a power cut may keep the new name and lose the bytes."""
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def _replace_directory(staging: Path, output: Path) -> None:
    if output.exists():
        old = hidden_directory(output, "old")
        os.replace(output, old / output.absolute().name)
        os.replace(staging, output)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(staging, output)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as hex; an unchanged file is read once a process."""
    found = path.stat()
    return _sha256(path, found.st_size, found.st_mtime_ns, found.st_ino)


@lru_cache(maxsize=4096)
def _sha256(path: Path, size: int, mtime_ns: int, inode: int) -> str:  # the rest detects changes
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_of_the_disk(error: Exception) -> bool:
    """Return True for a failed write; libraries written in Rust raise other types than OSError."""
    return isinstance(error, OSError) or any(words in str(error) for words in FULL_DISK)


def cache_dir() -> Path:
    """Return the user's cache for what is made once a machine; ValueError where there is none."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quantdraft"
    except RuntimeError as error:  # a user without a home
        raise ValueError(f"there is no directory to build it in: {error}") from error
