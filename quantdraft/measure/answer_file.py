"""The file of answers while it grows: whole batches are kept, and a killed capture goes on."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

from quantdraft.common.progress import bar
from quantdraft.common.resume import kept_when_refused
from quantdraft.errors import OutputExistsError


def write_answers(
    output: Path,
    header: str,
    names: Sequence[str],
    answer: Callable[[int, int, Callable[[int], None]], str],
    *,
    batch_size: int,
    force: bool,
) -> None:
    """Append batch after batch to `<output>.partial`, and rename it when it is whole.

    names: ids of the prompts
    answer: takes two places (first, last) and returns the lines of the prompts between them; it
        tells its third argument of prompts that have been answered
    Raises OutputExistsError for a partial file of other settings, OutputError where the disk
    refuses.
    """
    partial = output.with_name(f"{output.name}.partial")
    with kept_when_refused(partial):
        num_done = _resume(partial, header, names, batch_size, force)
        with (
            open(partial, "a", encoding="utf-8") as file,
            bar(len(names), "ask the target", "prompt", num_done) as advance,
        ):
            for first in range(num_done, len(names), batch_size):
                last = min(first + batch_size, len(names))
                file.write(answer(first, last, advance))
                file.flush()
            os.fsync(file.fileno())
        os.replace(partial, output)


def _resume(partial: Path, header: str, names: Sequence[str], batch_size: int, force: bool) -> int:
    """Leave in `partial` the header and whole batches, and return how many prompts those are.

    Only whole batches are kept, so that a resumed run forms the batches of an uninterrupted one.
    """
    partial.parent.mkdir(parents=True, exist_ok=True)
    with open(partial, "a+b") as file:
        file.seek(0)
        first = file.readline()
        if first != header.encode():
            if first.endswith(b"\n") and not force:
                raise OutputExistsError(
                    f"'{partial}' was begun with other settings (sampling, prompts, target or "
                    "lengths). Give the same ones to continue it, --force to start anew, or "
                    "another --output."
                )
            file.truncate(0)
            file.write(header.encode())
            return 0
        ends = array("Q", [len(first)])
        for name, line in zip(names, file, strict=False):
            if not _is_answer(line, name):
                break
            ends.append(ends[-1] + len(line))
        num_answers = len(ends) - 1
        is_whole = num_answers == len(names)
        num_done = num_answers if is_whole else num_answers - num_answers % batch_size
        file.truncate(ends[num_done])
    return num_done


def _is_answer(line: bytes, name: str) -> bool:
    """Return False for a line that a kill or a full disk cut, or a power cut filled with zeros."""
    try:
        found = json.loads(line)
    except ValueError:
        return False
    return line.endswith(b"\n") and isinstance(found, dict) and found.get("prompt_id") == name
