"""A bound on time and memory for what strangers wrote and a library runs: chat templates.

Jinja's sandbox bounds neither: loops within loops take years, and one product makes gigabytes.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

STATM = Path("/proc/self/statm")


class TookTooLong(BaseException):
    """Raised inside the block; no Exception, which a library could catch."""


@contextlib.contextmanager
def bounded(seconds: float, num_bytes: int) -> Iterator[None]:
    """Raise TookTooLong in the block after so much processor time, MemoryError after so much more.

    The time is bounded in the main thread alone, where Python handles signals. num_bytes: of
    address space above what the process has now
    """
    with _bounded_memory(num_bytes), _bounded_time(seconds):
        yield


@contextlib.contextmanager
def _bounded_time(seconds: float) -> Iterator[None]:
    before = signal.getsignal(signal.SIGPROF)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    signal.signal(signal.SIGPROF, _stop)
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _stop(*_: object) -> NoReturn:
    raise TookTooLong


@contextlib.contextmanager
def _bounded_memory(num_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _address_space() + num_bytes
    ceilings = [each for each in (soft, hard) if each != resource.RLIM_INFINITY]
    if limit == num_bytes or any(each <= limit for each in ceilings):
        yield  # not known, or bounded more narrowly already
        return
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int:
    """Return the bytes of address space of this process; 0 where the system does not tell."""
    try:
        return int(STATM.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except (OSError, ValueError):
        return 0
