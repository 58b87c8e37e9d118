"""Connect to a Ray cluster at an address, or start one on this machine for one sweep.

A cluster that is started here listens on the loopback, asks for a secret token, has no dashboard,
and keeps its files in a directory that only its user can enter.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from quantdraft.errors import MissingPackageError, OptionError, first_line

LOOPBACK = "127.0.0.1"
CONNECT_SECONDS = 10
# A socket's path has 107 characters at most, of which ours and Ray's below this directory need 91.
_LONGEST_PLACE = 16
_OWN = {
    # Ray's own switch to the loopback, which it needs for the firewalls of Windows and macOS.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": None,  # its default: a token
}


@contextlib.contextmanager
def ray_session(address: str | None) -> Iterator[Any]:
    """Yield the module `ray`, connected for the length of the block.

    address: of a running cluster, "auto" for the one this machine belongs to; None: a new one
    Ray keeps to a process's first token: after a new one, no cluster of several nodes that asks for
    none can be joined in the same process.
    Raises MissingPackageError without Ray, OptionError where no such cluster answers or starts.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_variables({"RAY_USAGE_STATS_ENABLED": "0"}))
        ray = _start(stack) if address is None else _join(address)
        stack.callback(ray.shutdown)
        yield ray


def _join(address: str) -> Any:
    try:
        _require_answer(address)
        ray = _import_ray()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise OptionError(
            f"no Ray cluster answers at --ray-address {address!r}. Start one (`ray start --head`), "
            "or leave the option out for one of this machine alone."
        ) from error
    return ray


def _require_answer(address: str) -> None:
    """Raise OSError where nobody listens: Ray itself tries for minutes."""
    found = re.fullmatch(r"(?:ray://)?\[?([^\[\]]+)\]?:(\d+)", address)
    if found is not None:
        place = found[1], int(found[2])
        socket.create_connection(place, timeout=CONNECT_SECONDS).close()


def _start(stack: contextlib.ExitStack) -> Any:
    stack.callback(_read_settings_again)  # once the variables are what they were
    stack.enter_context(_variables(_OWN | {"RAY_AUTH_TOKEN": _token()}))
    ray = _import_ray()
    stack.enter_context(_loopback_alone())
    place = _private_directory()
    stack.callback(shutil.rmtree, place, ignore_errors=True)
    try:
        ray.init(
            address="local",  # None would join whatever cluster was started here last
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address=LOOPBACK,
            _temp_dir=f"{place}/ray",  # Ray opens it to everybody, but not what it lies in
        )
    except Exception as error:  # the very type that Ray raises when a process of its is late
        raise OptionError(
            f"Ray does not start on this machine: {first_line(error)}. Use --executor local."
        ) from error
    return ray


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingPackageError(
            "--executor ray needs Ray. Install quantdraft[ray], or use --executor local."
        ) from error
    return ray


@contextlib.contextmanager
def _loopback_alone() -> Iterator[None]:
    """Set the loopback switch where Ray was imported before the variable was set."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _read_settings_again() -> None:
    """Let Ray read its settings again: else it asks another cluster for a token that it has not."""
    import ray

    config: Any = getattr(ray._raylet, "Config", None)  # type: ignore[attr-defined,unused-ignore]
    if config is not None:
        config.initialize("")


def _private_directory() -> str:
    """Make a directory of mode 0700; in /tmp where the temporary directory's path is too long."""
    is_short = len(tempfile.gettempdir()) <= _LONGEST_PLACE
    return tempfile.mkdtemp(prefix="quantdraft-ray-", dir=None if is_short else "/tmp")


@contextlib.contextmanager
def _variables(wanted: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables for the length of the block: Ray's processes inherit them."""
    before = {name: os.environ.get(name) for name in wanted}
    _set(wanted)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@cache
def _token() -> str:
    """Return one token for the process: Ray reads it once, whatever clusters come later."""
    return secrets.token_hex(32)
