"""The objects of a JSON lines file, parsed when they are asked for: memory does not grow with it.

An index of 8 bytes a line is all that is kept. What a line means is its reader's business.
"""

from __future__ import annotations

from array import array
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

from quantdraft.common.documents import parse_json
from quantdraft.errors import TrafficError

Item = TypeVar("Item")

# Files up to this size are read into memory; larger ones are read line by line, again and again.
MAX_BYTES_IN_MEMORY = 16 * 2**20


def is_large(path: Path) -> bool:
    """True of a file that is not to be held in memory; False of one that is not there."""
    return path.is_file() and path.stat().st_size > MAX_BYTES_IN_MEMORY


class StoredLines(Sequence[Item], Generic[Item]):
    """Some lines of a file as a sequence of what `parse(line number, object)` makes of them.

    `columns` holds a number for every line, known without reading it again, by name.
    """

    def __init__(
        self,
        path: Path,
        offsets: Iterable[int],
        numbers: Iterable[int],
        parse: Callable[[int, dict[str, Any]], Item],
        columns: Mapping[str, Iterable[int]] | None = None,
    ) -> None:
        """offsets: where the lines begin, in bytes; numbers: which lines of the file they are."""
        self.path, self.parse = path, parse
        self._offsets, self._numbers = array("Q", offsets), array("Q", numbers)
        self.columns = {name: array("Q", values) for name, values in (columns or {}).items()}
        self._file = open(path, "rb")  # noqa: SIM115
        self._written = path.stat().st_mtime_ns

    def __len__(self) -> int:
        return len(self._offsets)

    @overload
    def __getitem__(self, at: int) -> Item: ...

    @overload
    def __getitem__(self, at: slice) -> tuple[Item, ...]: ...

    def __getitem__(self, at: int | slice) -> Item | tuple[Item, ...]:
        if isinstance(at, slice):
            return tuple(self[index] for index in range(*at.indices(len(self))))
        self._file.seek(self._offsets[at])
        line = self._file.readline()
        try:
            if self.path.stat().st_mtime_ns != self._written:
                raise ValueError("changed")
            return self.parse(self._numbers[at], parse_json(line.removeprefix(BOM_UTF8)))
        except (ValueError, OSError) as error:
            raise TrafficError(
                f"'{self.path}' was changed while it was being read. Run the command again."
            ) from error

    def chosen(self, indices: Iterable[int]) -> StoredLines[Item]:
        """The lines at these indices alone."""
        kept = list(indices)

        def some(values: array[int]) -> Iterator[int]:
            return (values[index] for index in kept)

        columns = {name: some(values) for name, values in self.columns.items()}
        return StoredLines(self.path, some(self._offsets), some(self._numbers), self.parse, columns)


def chosen(items: Sequence[Item], indices: Iterable[int]) -> Sequence[Item]:
    """Some of a sequence, in memory or on disk as the whole is."""
    if isinstance(items, StoredLines):
        return items.chosen(indices)
    return tuple(items[index] for index in indices)


def numbered_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Number from 1, offset in bytes, and content of every line that is not blank."""
    offset = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, offset, line
            offset += len(line)
