"""The process that draws charts: started when the first is drawn, kept for the next ones.

Whatever happens to it is a DrawingError here: a missing package, memory that ends, an abort.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from quantdraft.errors import DrawingError

PROGRAM = Path(__file__).with_name("vega.py")
PACKAGE, DISTRIBUTION = "vl_convert", "vl-convert-python"
MAX_SECONDS = 600.0  # of one drawing: a chart takes a tenth of a second, the scripts one


class Renderer:
    """One process, which answers requests one after another."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._complaints: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        path = os.pathsep.join(each for each in sys.path if each)
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # a Ctrl-C is for this process, which ends that one
        )

    def ask(self, request: Mapping[str, str]) -> str:
        """Return what was drawn; DrawingError with the reason where nothing was."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        limit = threading.Timer(MAX_SECONDS, self._process.kill)
        limit.daemon = True
        limit.start()
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:  # it is gone
            line = ""
        finally:
            limit.cancel()
        if not line.endswith("\n"):
            raise DrawingError(f"the chart library {self._end()}")
        answer = json.loads(line)
        if "drawn" not in answer:
            raise DrawingError(f"the chart library says {answer['error']}")
        return str(answer["drawn"])

    @property
    def has_ended(self) -> bool:
        """True where the process is gone."""
        return self._process.poll() is not None

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        self._process.kill()
        self._process.wait()
        self._complaints.close()

    def _end(self) -> str:
        """Return how the process ended, with the line in which it says why."""
        status = self._process.wait()
        self._complaints.seek(0)
        said = self._complaints.read().decode("utf-8", "replace").splitlines()
        why = next((line.strip("# \t") for line in said if "atal" in line or "rror" in line), "")
        how = f"exit status {status}"
        if status < 0:
            with contextlib.suppress(ValueError):
                how = signal.Signals(-status).name
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        is_limited = limit != resource.RLIM_INFINITY
        hint = f"; it may reserve {limit / 1e9:.0f} GB (ulimit -v)" if is_limited else ""
        return f"ended its process ({how}){': ' if why else ''}{why}{hint}"


_LOCK = threading.Lock()
_started: list[Renderer] = []


def request(what: Mapping[str, str]) -> str:
    """Return what the chart library draws in its own process; DrawingError where it does not."""
    with _LOCK:
        running = _running()
        try:
            return running.ask(what)
        except BaseException as error:  # its next answer would be to this request
            if not isinstance(error, DrawingError) or running.has_ended:
                _stop()
            raise


def _running() -> Renderer:
    if _started and _started[0].pid == os.getpid():
        return _started[0]
    _started.clear()  # of the process that this one was forked from
    _require_package()
    try:
        _started.append(Renderer())
    except (OSError, MemoryError) as error:
        raise DrawingError(f"no process can be started to draw in: {error}") from error
    return _started[0]


def _require_package() -> None:
    try:
        found = find_spec(PACKAGE)
    except ValueError:
        found = None
    if found is None:
        raise DrawingError(f"the package '{PACKAGE}' is not installed: pip install {DISTRIBUTION}")


def _stop() -> None:
    if _started and _started[0].pid == os.getpid():
        _started[0].close()
    _started.clear()


atexit.register(_stop)
