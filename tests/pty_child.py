"""A child process that believes itself in a terminal of so many columns."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import Sequence
from dataclasses import dataclass

PARTS = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|[\r\n]|[^\x1b\r\n]+")
UP, ERASE = "\x1b[1A", "\x1b[2K"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Shown:
    """All that reached the terminal, controls included, and the exit code."""

    text: str
    exit_code: int

    @property
    def lines(self) -> list[str]:
        """What stands there in the end: what was erased or written over is gone."""
        rows, row, column = [""], 0, 0
        for part in PARTS.findall(self.text):
            if part == "\n":
                row += 1
                rows += [""] * (row + 1 - len(rows))
            elif part == "\r":
                column = 0
            elif part == ERASE:
                rows[row] = ""
            elif part == UP:
                row -= 1
            elif not part.startswith("\x1b"):
                rows[row] = (
                    rows[row][:column].ljust(column) + part + rows[row][column + len(part) :]
                )
                column += len(part)
        return [line.rstrip() for line in rows]


def in_terminal(arguments: Sequence[str], columns: int = 80, **environment: str) -> Shown:
    """Run Python with these arguments, stdin, stdout and stderr all a terminal."""
    child, terminal = pty.fork()
    if child == 0:
        inherited = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
        whole = inherited | {"TERM": "xterm"} | environment
        os.execve(sys.executable, [sys.executable, *arguments], whole)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    read = b""
    while chunk := _read(terminal):
        read += chunk
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    return Shown(read.decode(), os.waitstatus_to_exitcode(status))


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # what Linux says when the child has closed it
        return b""
