"""One server of ours: started, health-checked, watched and stopped, whichever engine it is.

It listens on the loopback alone, its log lies beside the run, and it ends with this process
however that ends (see `supervisor`). What its log means is the engine's to say: `LogFormat`.
"""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantdraft.engines import supervisor
from quantdraft.engines.http_client import HttpClient
from quantdraft.errors import EngineError

HEALTH_SECONDS = 900.0  # a large model on a slow disk, or CUDA graphs, take minutes
STOP_SECONDS = 30.0
SIGNALS = frozenset(int(each) for each in signal.Signals)
_GIVEN: set[int] = set()  # ports, by this process


@dataclass(frozen=True, slots=True)
class LogFormat:
    """How one engine's log is read."""

    engine: str  # its name, in sentences
    prefix: re.Pattern[str]  # what every line begins with, cut off
    error: re.Pattern[str]  # a line, without its prefix, that names an error
    second_hand: tuple[str, ...]  # parts of lines that only say that something else failed

    def last_words(self, log: Path) -> str:
        """Return the last line of a log that says what went wrong, without its prefix.

        Of errors, one at first hand; else an echo; else whatever was said last.
        """
        said = self._lines_of(log)
        first_hand = self._first_hand(said)
        found = self._errors(first_hand) or self._errors(said) or first_hand or ["it said nothing"]
        return found[-1][:300]

    def errors_in(self, log: Path) -> list[str]:
        """Return the lines that name an error at first hand; a heading with the line after it."""
        return self._errors(self._first_hand(self._lines_of(log)))

    def _errors(self, said: list[str]) -> list[str]:
        following = [*said, ""][1:]
        return [
            f"{line} {after}".strip() if is_heading(line) else line
            for line, after in zip(said, following, strict=True)
            if self.error.match(line)
        ]

    def _first_hand(self, said: list[str]) -> list[str]:
        return [line for line in said if not any(part in line for part in self.second_hand)]

    def _lines_of(self, log: Path) -> list[str]:
        text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        lines = [self.prefix.sub("", line).strip() for line in text.splitlines()]
        return [line for line in lines if line]


@dataclass(frozen=True, slots=True)
class Server:
    """A started process. It answers once `wait_until_healthy` has returned."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    format: LogFormat

    @property
    def is_alive(self) -> bool:
        """False once the process has ended."""
        return self.process.poll() is None

    def has_failed(self, patience: float = 2.0) -> bool:
        """Return True when its log holds an error, or it ends within `patience` seconds."""
        if self.format.errors_in(self.log):
            return True
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        return not self.is_alive

    def wait_until_healthy(self, timeout: float = HEALTH_SECONDS) -> None:
        """Return when it answers; EngineError with its own reason when it ends or takes longer."""
        deadline, engine = time.monotonic() + timeout, self.format.engine
        while not _is_healthy(self.url):
            if not self.is_alive:
                raise EngineError(f"{engine} stopped while starting: {self.reason()}")
            if time.monotonic() > deadline:
                raise EngineError(
                    f"{engine} did not answer within {timeout:.0f} s: {self.reason()}"
                )
            time.sleep(0.2)

    def reason(self) -> str:
        """Return the last meaningful line of its log, and where the log is."""
        code = self.process.poll() or 0
        # The supervisor adds 128 to the signal that ended the server.
        ended = f"ended by {signal.Signals(code - 128).name}; " if code - 128 in SIGNALS else ""
        return f"{ended}{self.format.last_words(self.log)} (log: '{self.log}')"

    def stop(self) -> None:
        """Stop the server and wait until it and all its workers are gone."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.terminate()


@contextlib.contextmanager
def running(
    command: Sequence[str],
    port: int,
    log: Path,
    variables: Mapping[str, str],
    log_format: LogFormat,
) -> Iterator[Server]:
    """Start a server process, yield it at once, stop it when the block ends.

    variables: the process's whole environment
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-I", supervisor.__file__, *command],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=dict(variables),
            start_new_session=True,  # Ctrl-C reaches us, and we stop it in order
        )
    server = Server(process, f"http://127.0.0.1:{port}", log, log_format)
    try:
        yield server
    finally:
        server.stop()


def free_port() -> int:
    """Return a port of the loopback that no one listens on, and that was not given before.

    A server binds its port minutes after it was given one, and another's would answer for it.
    """
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in _GIVEN:
            _GIVEN.add(port)
            return port


def _is_healthy(url: str) -> bool:
    try:
        HttpClient(url, timeout=2).get("/health")
    except EngineError:
        return False
    return True


def is_heading(line: str) -> bool:
    """Return True for a line whose error stands on the next: one with a colon, pydantic's count."""
    return line.endswith(":") or " validation error" in line
