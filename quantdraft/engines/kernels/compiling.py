"""Compile a library's kernels before they are timed: in a process of its own, with a limit.

A compiler that runs inside this process cannot be stopped, and its minutes would be taken for a
kernel that hangs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

from quantdraft.common.progress import clock, step

_late: set[str] = set()  # what was not compiled in time, by this process


def compile_fault(what: str, program: str, argument: str, limit_seconds: float) -> str | None:
    """Run a program that compiles something and ends with what is wrong; return that, or None.

    The library keeps what is compiled: the next process finds it within seconds.
    """
    limit = clock(limit_seconds)
    with step(f"compiling {what}, once on this machine, {limit} at most"):
        process = subprocess.Popen(
            [sys.executable, "-c", program, argument],
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
            _late.add(what)
            return f"{what} was not compiled within {limit}: it takes no part in this run"
        finally:
            _end(process)
    if process.returncode == 0:
        return None
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return f"{what} cannot be compiled here: {lines[-1][:300] if lines else 'no reason given'}"


def was_late() -> bool:
    """Return True where something was not compiled in time: another run may find it compiled."""
    return bool(_late)


def _end(process: subprocess.Popen[str]) -> None:
    """End a process and all that it has started."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
