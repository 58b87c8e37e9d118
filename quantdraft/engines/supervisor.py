"""Runs a server that must not outlive its owner. A script of its own, standard library only.

The owner holds this process's standard input. When that closes, however the owner ended, the
server's whole process group is told to stop, and killed if it does not.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

PATIENCE_S = 15.0


def main() -> int:
    """Run the command line given; its exit code, or 128 + the signal that ended it."""
    server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: _signal(server, signal.SIGTERM))
    threading.Thread(target=_stop_without_owner, args=(server,), daemon=True).start()
    code = server.wait()
    _signal(server, signal.SIGKILL)  # workers that it left behind
    return code if code >= 0 else 128 - code


def _stop_without_owner(server: subprocess.Popen[bytes]) -> None:
    while os.read(0, 1):  # not sys.stdin: its lock, held here, breaks the interpreter's exit
        pass
    _signal(server, signal.SIGTERM)
    time.sleep(PATIENCE_S)
    _signal(server, signal.SIGKILL)


def _signal(server: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(server.pid, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    sys.exit(main())
