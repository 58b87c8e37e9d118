"""Ctrl-C before a command has begun: one line and the exit code of a shell, never a traceback.

While modules are imported a KeyboardInterrupt can be raised anywhere, and be caught by any of them.
Nothing has been written by then, so the process may end at once. What this module itself imports
has to be little.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys

TYPE_CHECKING = False  # importing `typing` for it takes longer than all the rest
if TYPE_CHECKING:
    from typing import NoReturn

STOPPED = 130  # as a shell says it of a process that Ctrl-C has ended
NOTHING_KEPT = "Nothing was written."


def stop_at_once() -> None:
    """Let Ctrl-C end this process with one line, from now until a command begins."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as by nohup
        signal.signal(signal.SIGINT, _stop)


def raise_again() -> None:
    """Let Ctrl-C raise KeyboardInterrupt, which the command that has begun catches."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def is_program() -> bool:
    """Return True where Python was started for this program, and does not import a library."""
    *places, name = (sys.argv or [""])[0].split("/")
    return name in {"-m", "quantdraft"} or (name == "__main__.py" and "quantdraft" in places)


def ignore() -> None:
    """Let another Ctrl-C do nothing: the process is ending."""
    if signal.getsignal(signal.SIGINT) is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def leave() -> NoReturn:
    """End the process with the exit code of Ctrl-C, and no other.

    Python ends by the signal itself where the interrupt came inside the text of an `exec`, as most
    dataclasses are made.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    atexit._run_exitfuncs()
    os._exit(STOPPED)


def _stop(*_: object) -> NoReturn:
    os.write(2, f"\nStopped. {NOTHING_KEPT}\n".encode())
    os._exit(STOPPED)
