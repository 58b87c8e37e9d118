"""A pipe given as an input file: read once, into a file of this process, and known by its content.

Most commands open an input several times, to hash it, to index it and to read it; a pipe gives what
it holds only once.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO

from quantdraft.common.documents import kind_of
from quantdraft.errors import OptionError

MAX_PIPE_BYTES = 4 * 2**30  # more belongs into a file
CHUNK_BYTES = 2**20
_GIVEN: dict[str, str] = {}  # what the user wrote, by the path of the file


def read_pipe(path: Path, max_bytes: int = MAX_PIPE_BYTES) -> Path:
    """Return the path of a file with what a pipe gives; the same path where it is no pipe.

    The file lies in a directory that only this user can enter, and is removed when the process
    ends. Raises OptionError for a pipe that gives more than `max_bytes`, or that cannot be read.
    """
    if kind_of(path) != "a pipe":
        return path
    try:
        directory = Path(tempfile.mkdtemp(prefix="quantdraft-pipe-"))
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        kept = directory / "-".join(path.parts[1:] if path.is_absolute() else path.parts)
        with open(path, "rb") as pipe, open(kept, "wb") as file:
            _copy(pipe, file, path, max_bytes)
    except OSError as error:
        raise OptionError(
            f"the pipe '{path}' cannot be kept: {error.strerror or error}."
        ) from error
    _GIVEN[str(kept)] = str(path)
    return kept


def as_given(message: str) -> str:
    """Return a message with pipes named as the user named them."""
    for kept, given in _GIVEN.items():
        message = message.replace(kept, given)
    return message


def _copy(pipe: BinaryIO, file: BinaryIO, path: Path, max_bytes: int) -> None:
    num_bytes = 0
    while chunk := pipe.read(CHUNK_BYTES):
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise OptionError(
                f"the pipe '{path}' gives more than {max_bytes:,} bytes. Write it to a file first."
            )
        file.write(chunk)
