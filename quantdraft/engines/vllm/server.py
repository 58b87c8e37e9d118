"""One vLLM server of ours: started, health-checked, watched and stopped.

It listens on the loopback alone, its log lies beside the run, and it ends with this process
however that ends (see `leash`).
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantdraft.engines.vllm import leash
from quantdraft.errors import EngineError

HEALTH_SECONDS = 900.0  # a large model on a slow disk, or CUDA graphs, take minutes
STOP_SECONDS = 30.0
# An error that only says that another process failed; the cause stands before it.
SECOND_HAND = (
    "initialization failed",
    "EngineDeadError",
    "stack trace",
    "root cause",
    "leaked",
    "nanobind",
)
LOG_PREFIX = re.compile(r"^(\([\w-]+ pid=\d+\)\s*)?((ERROR|INFO|WARNING) [\d:. -]+\[[^\]]*\]\s*)?")
EXCEPTION = re.compile(r"^[\w.]*(Error|Exception): .+|^.*\berror: .+")


@dataclass(frozen=True, slots=True)
class Server:
    """A started process. It answers once `wait_until_healthy` has returned."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    @property
    def is_alive(self) -> bool:
        """False once the process has ended."""
        return self.process.poll() is None

    def has_failed(self, patience: float = 2.0) -> bool:
        """True when its log holds an error, or it ends within `patience` seconds."""
        if errors_in(self.log):
            return True
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        return not self.is_alive

    def wait_until_healthy(self, timeout: float = HEALTH_SECONDS) -> None:
        """Return when it answers; EngineError with its own reason when it ends or takes longer."""
        deadline = time.monotonic() + timeout
        while not _answers(f"{self.url}/health"):
            if not self.is_alive:
                raise EngineError(f"vLLM stopped while starting: {self.reason()}")
            if time.monotonic() > deadline:
                raise EngineError(f"vLLM did not answer within {timeout:.0f} s: {self.reason()}")
            time.sleep(0.2)

    def reason(self) -> str:
        """The last meaningful line of its log, and where the log is."""
        return f"{last_words(self.log)} (log: '{self.log}')"

    def stop(self) -> None:
        """Let go of it and wait until it and all its workers are gone."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.terminate()


@contextlib.contextmanager
def started(
    command: Sequence[str], port: int, log: Path, variables: Mapping[str, str]
) -> Iterator[Server]:
    """Start a server process, yield it at once, stop it when the block ends.

    variables: the process's whole environment
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-I", leash.__file__, *command],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=dict(variables),
            start_new_session=True,  # Ctrl-C reaches us, and we stop it in order
        )
    server = Server(process, f"http://127.0.0.1:{port}", log)
    try:
        yield server
    finally:
        server.stop()


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def last_words(log: Path) -> str:
    """The last line of a log that says what went wrong, without its prefix."""
    return (errors_in(log) or _said_in(log) or ["it said nothing"])[-1][:300]


def errors_in(log: Path) -> list[str]:
    """Lines that name an error at first hand; one that ends in a colon with the line after it."""
    said = _said_in(log)
    following = [*said[1:], ""]
    return [
        f"{line} {after}".strip() if line.endswith(":") else line
        for line, after in zip(said, following, strict=True)
        if EXCEPTION.match(line)
    ]


def _said_in(log: Path) -> list[str]:
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    lines = [LOG_PREFIX.sub("", line).strip() for line in text.splitlines()]
    return [line for line in lines if line and not any(part in line for part in SECOND_HAND)]


def server_variables(prefix: Path, device_type: str) -> dict[str, str]:
    """The environment variables of a server; the user's own settings of vLLM are kept."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    wanted = {
        "HF_HUB_OFFLINE": "1",  # models are local directories
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HOST_IP": "127.0.0.1",
    }
    if device_type == "cpu":
        wanted |= _cpu_variables(prefix)
    path = f"{prefix / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    return wanted | kept | {"PATH": path, "VIRTUAL_ENV": str(prefix)}


def _cpu_variables(prefix: Path) -> dict[str, str]:
    """GB of KV cache, a core for the scheduler, and the OpenMP that vLLM asks for by name."""
    wanted = {"VLLM_CPU_KVCACHE_SPACE": "1"}
    if (os.cpu_count() or 1) > 1:
        wanted["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "1"
    openmp = prefix / "lib" / "libiomp5.so"
    if openmp.is_file():
        wanted["LD_PRELOAD"] = str(openmp)
    return wanted


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False
