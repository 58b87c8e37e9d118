"""A lock that gives an output one writer, and ends when its holder's process does.

The kernel holds the lock on an open file (`flock`), so it ends with the process in every case.
The file holds a process id and a host, which only the error message uses.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from quantdraft.errors import OutputBusyError, OutputError, disk_reason

MAX_ATTEMPTS = 1000  # to make a directory that other processes remove meanwhile


@contextlib.contextmanager
def sole_writer(output: Path, *, is_inside: bool = False) -> Iterator[None]:
    """Hold the lock of an output for the length of the block.

    is_inside: the lock lies in the output, a directory that is filled in place; else beside it,
        as it must for an output that appears by being renamed
    Directories that this makes are removed at the end if nothing was written into them.
    Raises OutputBusyError, with the process id, where another run writes there.
    """
    lock = lock_path(output, is_inside=is_inside)
    made = [path for path in (lock.parent, *lock.parent.parents) if not path.exists()]
    try:
        descriptor = _acquire(lock, output)
    except OSError as error:
        raise OutputError(f"cannot write '{output}': {disk_reason(error)}.") from error
    try:
        yield
    finally:
        # Removed while it is held: a process that waits for it sees that it is gone, and makes
        # another one (`_acquire`).
        with contextlib.suppress(OSError):
            lock.unlink()
        for directory in made:
            with contextlib.suppress(OSError):  # something is in it
                directory.rmdir()
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked child may hold a copy of it
        os.close(descriptor)


def lock_path(output: Path, *, is_inside: bool = False) -> Path:
    """Return the path of an output's lock. Two names of one directory (links) have one lock."""
    whole = output.resolve()
    return whole / ".lock" if is_inside else whole.parent / f".{whole.name}.lock"


def _acquire(lock: Path, output: Path) -> int:
    """Lock the file that is at `lock` now, and return its descriptor."""
    while True:
        descriptor = _open_file(lock)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode("utf-8", "replace").strip()
            os.close(descriptor)
            raise OutputBusyError(
                f"output '{output}' is being written by {_name_holder(holder)}. "
                "Wait until it ends, or give another --output."
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        if is_at(descriptor, lock):
            with contextlib.suppress(OSError):  # a full disk costs the message, not the lock
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
            return descriptor
        os.close(descriptor)


def _open_file(lock: Path) -> int:
    """Open the file; the last holder may remove it or its directory meanwhile."""
    for _ in range(MAX_ATTEMPTS):
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except (FileNotFoundError, FileExistsError) as error:
            last = error
    raise last


def is_at(descriptor: int, lock: Path) -> bool:
    """Return False when the last holder removed the file between our opening and locking it."""
    try:
        return os.path.samestat(os.fstat(descriptor), lock.stat())
    except FileNotFoundError:
        return False


def _name_holder(holder: str) -> str:
    """Write `4711 gpu-box` as "process 4711", with the host where it is another one."""
    pid, _, host = holder.partition(" ")
    if not pid.isdigit():  # it has not written its name yet
        return "another process"
    return f"process {pid}" if host in ("", socket.gethostname()) else f"process {pid} on {host}"
