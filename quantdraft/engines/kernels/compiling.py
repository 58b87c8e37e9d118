"""Compile a library's kernels before they are timed: in a process of its own, with a limit.

A compiler that runs inside this process cannot be stopped, and its minutes would be taken for a
kernel that hangs. What was compiled once on a machine is not asked for again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from quantdraft.common.files import cache_dir
from quantdraft.common.progress import clock, step

_late: set[str] = set()  # libraries that did not compile in time, in this process


def compile_fault(
    library: str, what: str, program: str, arguments: Sequence[str], limit_seconds: float
) -> str | None:
    """Run a Python program that compiles something of a library, and return what is wrong, or None.

    program: ends with 0, or says on stderr why it could not; the library keeps what it compiles
    arguments: with the program, the library's and torch's versions and the GPU, what it compiles
    """
    if library in _late:
        return f"{library} takes no part in this run: it did not compile in time"
    kept = _mark((library, what, program, *arguments))
    if kept is not None and kept.is_file():
        return None
    fault = _run(library, what, [sys.executable, "-c", program, *arguments], limit_seconds)
    if fault is None and kept is not None:
        with contextlib.suppress(OSError):  # a full or read-only disk stops no run
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.touch()
    return fault


def was_late() -> bool:
    """Return True where something was not compiled in time: another run may find it compiled."""
    return bool(_late)


def kept_dir() -> Path | None:
    """Return where this machine's choices of kernels are kept; None where nothing is to be kept.

    `QUANTDRAFT_CHOICES` names the directory, or is empty; without it it is in the user's cache.
    """
    given = os.environ.get("QUANTDRAFT_CHOICES")
    if given is not None:
        return Path(given) if given else None
    try:
        return cache_dir()
    except ValueError:  # a user without a home
        return None


def _run(library: str, what: str, command: Sequence[str], limit_seconds: float) -> str | None:
    """Run the compiling process, within the limit; return what is wrong, in one line."""
    limit = clock(limit_seconds)
    with step(f"compiling {library}, {what}: once on this machine, {limit} at most"):
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # its compilers end with it
        )
        try:
            _, said = process.communicate(timeout=limit_seconds)
        except subprocess.TimeoutExpired:
            _late.add(library)
            return f"{library}, {what}, was not compiled within {limit}"
        finally:
            _end(process)
    if process.returncode == 0:
        return None
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    reason = lines[-1][:300] if lines else "no reason given"
    return f"{library}, {what}, cannot be compiled here: {reason}"


def _mark(facts: Sequence[str]) -> Path | None:
    """Return the empty file that says that something was compiled on this machine."""
    directory = kept_dir()
    if directory is None:
        return None
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    text = "\0".join((*facts, torch.__version__, gpu))
    return directory / "compiled" / hashlib.sha256(text.encode()).hexdigest()[:16]


def _end(process: subprocess.Popen[str]) -> None:
    """End a process and all that it has started."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
