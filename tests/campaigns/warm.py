"""Run commands in forked children of one warm process: torch is imported once, not per kill.

The parent imports and never computes, so that no thread pool is there to be lost by a fork.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT_S = 600.0
NO_SPACE = 28  # ENOSPC
HIDDEN, ULIMIT_V = 0, 40_000_000 << 10  # limits of "no charts": no package, or `ulimit -v 40000000`


@dataclass(frozen=True, slots=True)
class Fault:
    """What befalls a command: a signal or a shortage, at a time or at a write."""

    kind: str  # "SIGKILL" | "SIGTERM" | "SIGINT" | "full disk" | "out of memory" | "no charts"
    after_s: float | None = None  # a signal from outside
    at_point: int | None = None  # from inside, just before the n-th touch of the work directory
    limit: int | None = None  # bytes: of a file, or of memory beyond what is there at the start


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    status: int  # exit code, or minus the signal
    seconds: float
    num_points: int
    log: str


def run(
    arguments: Sequence[str],
    work_dir: Path,
    fault: Fault | None = None,
    prepare: Callable[[], None] = lambda: None,
) -> Ended:
    """Run the command line in a child, and wait for its end. `prepare` runs in the child."""
    log, count = work_dir / "child.log", work_dir / "child.points"
    log.write_bytes(b"")
    count.write_bytes(b"")
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        _be_the_command(arguments, work_dir, log, count, fault, prepare)
    status = _wait(child, started, fault)
    seconds = time.perf_counter() - started
    points = count.stat().st_size
    return Ended(
        os.waitstatus_to_exitcode(status), seconds, points, log.read_text(errors="replace")
    )


def import_what_was_imported(work_dir: Path) -> None:
    """Import in the parent what the last child that ended by itself had imported."""
    for name in (work_dir / "child.modules").read_text().split():
        if name not in sys.modules and not name.startswith(("__", "torch._inductor")):
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def _wait(child: int, started: float, fault: Fault | None) -> int:
    kill_at = None if fault is None or fault.after_s is None else started + fault.after_s
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        now = time.perf_counter()
        if kill_at is not None and now >= kill_at:
            assert fault is not None
            os.kill(child, getattr(signal, fault.kind))
            kill_at = None
        if now - started > TIMEOUT_S:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.001)


def _be_the_command(
    arguments: Sequence[str],
    work_dir: Path,
    log: Path,
    count: Path,
    fault: Fault | None,
    prepare: Callable[[], None],
) -> None:
    code = 70
    try:
        out = os.open(log, os.O_WRONLY | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        random.seed(os.getpid())
        # In the background a shell has it ignored, and a child of ours inherits that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        prepare()
        _watch(work_dir, count, fault)
        _limit(fault)
        from quantdraft.cli import main

        sys.argv = ["quantdraft", *arguments]
        main(list(arguments))
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 71
    finally:
        if fault is None:
            (work_dir / "child.modules").write_text("\n".join(sys.modules))
        os._exit(code)


def _limit(fault: Fault | None) -> None:
    if fault is None or fault.limit is None:
        return
    if fault.limit == HIDDEN and fault.kind == "no charts":
        sys.modules["vl_convert"] = None  # type: ignore[assignment]
    elif fault.kind == "no charts":
        resource.setrlimit(resource.RLIMIT_AS, (fault.limit, fault.limit))
    elif fault.kind == "full disk":  # Python ignores SIGXFSZ: writes beyond it fail
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.limit, fault.limit))
    else:
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + fault.limit, now + fault.limit))


def _watch(work_dir: Path, count: Path, fault: Fault | None) -> None:
    """Count every touch of the work directory, and let the fault happen at its point."""
    counter = os.open(count, os.O_WRONLY | os.O_APPEND)
    inside = str(work_dir / "out")
    seen = [0]

    def touch() -> None:
        seen[0] += 1
        if fault is None:
            os.write(counter, b".")
        elif fault.at_point is not None and seen[0] >= fault.at_point:
            _strike(fault, is_first=seen[0] == fault.at_point)

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = isinstance(mode, str) and bool(set(mode) & set("wax+"))
            if not (writes or flags & (os.O_WRONLY | os.O_RDWR)):
                return
        elif event not in {"os.rename", "os.mkdir", "os.truncate", "os.remove", "shutil.rmtree"}:
            return
        else:
            path = arguments[0]
            is_freeing = event in {"os.remove", "shutil.rmtree"}
            if is_freeing and fault is not None and fault.kind == "full disk":
                return  # a full disk lets go of files
        if isinstance(path, str | Path) and str(path).startswith(inside):
            touch()

    sys.addaudithook(heard)
    for name in ("fsync", "pwrite"):
        setattr(os, name, _touching(getattr(os, name), touch))


def _strike(fault: Fault, is_first: bool) -> None:
    if fault.kind == "full disk":  # and it stays full
        raise OSError(NO_SPACE, os.strerror(NO_SPACE))
    if not is_first:
        return
    if fault.kind == "out of memory":
        raise MemoryError
    os.kill(os.getpid(), getattr(signal, fault.kind))


def _touching(real: Callable[..., Any], touch: Callable[[], None]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        touch()
        return real(*arguments)

    return call
