"""Files and directories that appear whole or not at all, and JSON of dataclasses."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from quantdraft.errors import CheckpointError, OutputError, OutputExistsError

Record = TypeVar("Record")


def write_text(path: Path, text: str) -> None:
    """Write beside, fsync, rename: a reader sees the old file or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise OutputError(
            f"cannot write '{path}': {_reason(error)}. Nothing was left behind."
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write a dataclass or plain value as JSON, whole or not at all."""
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    write_text(path, json.dumps(plain, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, kind: type[Record], schema_version: int) -> Record:
    """Read a dataclass written by `write_json`, checking its schema version and every field."""
    from pydantic import TypeAdapter, ValidationError

    if not path.is_file():
        raise CheckpointError(f"no such file: '{path}'. Give a run directory or its JSON record.")
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"'{path}' is not JSON: {error}") from error
    found = plain.get("schema_version") if isinstance(plain, dict) else None
    if found != schema_version:
        raise CheckpointError(
            f"'{path}' has schema version {found!r}; this quantdraft reads {schema_version}. "
            "Run the command that made it again."
        )
    try:
        return TypeAdapter(kind).validate_python(plain)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"'{path}': {where}: {first['msg']}") from error


@contextlib.contextmanager
def whole_directory(output: Path, force: bool = False) -> Iterator[Path]:
    """Yield a temporary directory that becomes `output` when the block ends without an error.

    On any error the temporary directory is removed and `output` is left as it was.
    """
    if output.exists() and not force:
        raise OutputExistsError(
            f"output '{output}' exists. Give another --output, or --force to replace it."
        )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise OutputError(f"cannot write '{output}': {_reason(error)}.") from error
    try:
        staging.chmod(0o755)
        yield staging
        _replace_directory(staging, output)
    except OSError as error:
        raise OutputError(
            f"cannot write '{output}': {_reason(error)}. Nothing was left behind."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _replace_directory(staging: Path, output: Path) -> None:
    if output.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{output.name}.old.", dir=output.parent))
        os.replace(output, old / output.name)
        os.replace(staging, output)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(staging, output)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex; a file that has not changed is read once a process."""
    found = path.stat()
    return _sha256(path, found.st_size, found.st_mtime_ns, found.st_ino)


@lru_cache(maxsize=4096)
def _sha256(path: Path, size: int, mtime_ns: int, inode: int) -> str:  # the rest only tells changes
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
