"""A directory in a place that all users share, which nobody but its owner can read or fill."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from quantdraft.errors import OutputError


def own_directory(path: Path) -> Path:
    """The directory, with mode 0700, made where there is none.

    Raises OutputError where what stands there is a link, or somebody else's, or open to others:
    whoever put it there could read what is written to it, or choose what is read from it.
    """
    try:
        with contextlib.suppress(FileExistsError):
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
