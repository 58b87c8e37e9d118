"""A server of ours listens on the loopback alone: every socket of it and its workers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from quantdraft.engines.process import Server

pytestmark = pytest.mark.engine

LISTENS = "0A"
# As /proc/net/tcp has addresses: hexadecimal, each word's lowest byte first.
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def descendants(pid: int) -> set[int]:
    """The process and all that it started."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        children.setdefault(int(after_name[1]), []).append(int(path.parent.name))
    found, waiting = set(), [pid]
    while waiting:
        one = waiting.pop()
        found.add(one)
        waiting += children.get(one, [])
    return found


def listening(pids: set[int]) -> set[str]:
    """Hexadecimal addresses on which these processes accept connections over TCP."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes |= set(re.findall(r"socket:\[(\d+)\]", str(link.readlink())))
            except OSError:
                continue
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENS and fields[9] in inodes:
                addresses.add(fields[1].partition(":")[0])
    return addresses


def test_nothing_of_the_server_listens_elsewhere(server: Server):
    found = listening(descendants(server.process.pid))
    assert found  # it does listen
    assert found <= LOOPBACK
