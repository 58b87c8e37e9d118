"""JSON lines and arrays: their objects, where these stand, and sequences that are read lazily.

Of a file above MAX_BYTES_IN_MEMORY only an index stays in memory: a line is parsed whenever it is
asked for. What a line means is decided by the `parse` function that a reader is given.
"""

from __future__ import annotations

import re
from array import array
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, overload

from quantdraft.common.documents import kind_of, parse_json
from quantdraft.errors import TrafficError, nearest_path
from quantdraft.traffic.tables import Digest, open_table

BROKEN = "broken JSON"
MAX_BYTES_IN_MEMORY = 16 * 2**20  # of a file whose items are all held in memory
MAX_LINE_BYTES = 64 * 2**20  # a line is one prompt and its answer: a million tokens have 20 MB
TIME = re.compile(rb"\[\d{4}-\d\d-\d\d[ T]")
MAX_ARRAY_BYTES = 2 * 2**30  # an array is read as a whole: the largest ShareGPT file has 0.7 GB


class Identified(Protocol):
    """A frozen dataclass with an id that is unique in its file."""

    @property
    def prompt_id(self) -> str:
        """The id."""


Item = TypeVar("Item", bound=Identified)
# Makes the items of a line from its place ("line 3") and its object, the same ones every time.
Parse = Callable[[str, dict[str, Any]], Sequence[Item]]
# Is told of a line that is no JSON object: its place, and why.
Skip = Callable[[str, str], None]


class Located(NamedTuple):
    """An object of a file, and where it stands."""

    number: int  # of the line, or of the item of an array, from 1
    offset: int | None  # of the line, in bytes; None in an array
    entry: dict[str, Any]

    @property
    def place(self) -> str:
        """`line 3` of JSON lines, `item 3` of an array."""
        return f"{'item' if self.offset is None else 'line'} {self.number}"


def is_array(opening: bytes) -> bool:
    """Return whether a text opens an array, and not with the time of a console log."""
    return opening.startswith(b"[") and TIME.match(opening) is None


def located_entries(  # noqa: PLR0912
    path: Path, digest: Digest | None = None, skip: Skip | None = None
) -> Iterator[Located]:
    """Yield the objects of JSON lines or of one JSON document, with their places.

    Lines are read one at a time, a document as a whole; rows of CSV and parquet are objects too.
    Raises TrafficError when the file is missing, empty, not UTF-8, no file at all, or longer than
    is ever needed; and where an entry is no JSON object, unless `skip` is told of it.

    digest: is given the bytes that are read, so that it names these and no later content
    """
    is_empty, offset = True, 0
    _require_file(path)
    try:
        if (rows := open_table(path, digest)) is not None:
            for number, row in enumerate(rows, start=1):
                is_empty = False
                yield Located(number, None, row)
            if is_empty:
                raise TrafficError(f"'{path}' holds no row.")
            return
        with open(path, "rb") as file:
            for number in count(1):
                line = file.readline(MAX_LINE_BYTES + 1)
                if not line:
                    break
                opening = line.removeprefix(BOM_UTF8).strip() if is_empty else b""
                if is_array(opening) or opening == b"{":
                    yield from _document_items(path, digest, offset, skip)
                    return
                if len(line) > MAX_LINE_BYTES:
                    raise TrafficError(
                        f"{path}:line {number}: has more than {MAX_LINE_BYTES:,} bytes: it is no "
                        "prompt with its answer. Give a file with one JSON object a line."
                    )
                if digest is not None:
                    digest.update(line)
                text = line.decode("utf-8-sig" if offset == 0 else "utf-8")
                if text.strip():
                    is_empty = False
                    entry = _parse_line(path, number, text, skip)
                    if entry is not None:
                        yield Located(number, offset, entry)
                offset += len(line)
    except FileNotFoundError:
        hint = nearest_path(path)
        raise TrafficError(f"no such file: '{path}'.{hint} Give a JSON lines file.") from None
    except UnicodeDecodeError as error:
        raise TrafficError(f"'{path}' is not UTF-8 text. Give a JSON lines file.") from error
    except OSError as error:
        raise TrafficError(f"'{path}' cannot be read: {error.strerror}.") from error
    if is_empty:
        raise TrafficError(f"'{path}' is empty. Give a file with one JSON object a line.")


class LineReader(Generic[Item]):
    """Collects the items of a file: the items themselves, or of a large file where they stand."""

    def __init__(
        self, path: Path, parse: Parse[Item], sizes: Callable[[Item], Sequence[int]] = lambda _: ()
    ) -> None:
        """sizes: numbers of an item that are kept in the index, see `StoredLines.sizes`."""
        self.path, self.parse, self.sizes = path, parse, sizes
        self.is_large = path.is_file() and path.stat().st_size > MAX_BYTES_IN_MEMORY
        self.names: list[str] = []
        self._items: list[Item] = []
        self._lines = array(
            "Q"
        )  # of each: offset and number of its line, and which of the line's items it is
        self._sizes = array("Q")

    def add(self, found: Located, items: Sequence[Item]) -> None:
        """Keep the items of one object, which `parse` makes again of it."""
        for part, item in enumerate(items):
            self.names.append(item.prompt_id)
            if found.offset is None or not self.is_large:
                self._items.append(item)
            else:
                self._lines.extend((found.offset, found.number, part))
                self._sizes.extend(self.sizes(item))

    def items(self) -> Sequence[Item]:
        """Return all items with unique ids: a tuple, or StoredLines of a large file."""
        names = unique_ids(self.names)
        if not self._lines:
            return tuple(map(_rename, self._items, names))
        return StoredLines(self.path, self.parse, names, self._lines, self._sizes)


class StoredLines(Sequence[Item], Generic[Item]):
    """Some lines of a file as a sequence; each item is parsed whenever it is asked for."""

    def __init__(
        self, path: Path, parse: Parse[Item], names: list[str], lines: array[int], sizes: array[int]
    ) -> None:
        """names: the ids; lines: three numbers of each; sizes: the same count for each."""
        self.path, self.parse, self._names = path, parse, names
        self._lines, self._sizes = lines, sizes
        self._file = open(path, "rb")  # noqa: SIM115
        self._written = path.stat().st_mtime_ns

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, at: int) -> Item: ...

    @overload
    def __getitem__(self, at: slice) -> tuple[Item, ...]: ...

    def __getitem__(self, at: int | slice) -> Item | tuple[Item, ...]:
        if isinstance(at, slice):
            return tuple(self[index] for index in range(*at.indices(len(self))))
        index = range(len(self))[at]
        offset, number, part = self._lines[3 * index : 3 * index + 3]
        self._file.seek(offset)
        line = self._file.readline()
        try:
            if self.path.stat().st_mtime_ns != self._written:
                raise ValueError("changed")
            item = self.parse(f"line {number}", parse_json(line.removeprefix(BOM_UTF8)))[part]
        except (ValueError, IndexError, OSError) as error:
            raise TrafficError(
                f"'{self.path}' was changed while it was being read. Run the command again."
            ) from error
        return _rename(item, self._names[index])

    @property
    def sizes(self) -> list[Sequence[int]]:
        """Return the numbers kept of every item, the first number of all first; no line is read."""
        width = len(self._sizes) // max(1, len(self))
        return [self._sizes[column::width] for column in range(width)]

    def pick(self, indices: Iterable[int]) -> StoredLines[Item]:
        """Return the lines at these indices alone."""
        kept = list(indices)

        def rows(values: array[int]) -> array[int]:
            width = len(values) // max(1, len(self))
            return array("Q", (n for i in kept for n in values[width * i : width * (i + 1)]))

        names = [self._names[index] for index in kept]
        return StoredLines(self.path, self.parse, names, rows(self._lines), rows(self._sizes))


def pick_items(items: Sequence[Item], indices: Iterable[int]) -> Sequence[Item]:
    """Return some items of a sequence, in memory or on the disk as the whole is."""
    if isinstance(items, StoredLines):
        return items.pick(indices)
    return tuple(items[index] for index in indices)


def unique_ids(ids: Iterable[str]) -> list[str]:
    """Return the ids in order; a repeated `x` becomes `x#2`, `x#3`, …, so that pairs differ."""
    given = list(ids)
    taken, seen = set(given), Counter[str]()
    unique = []
    for name in given:
        seen[name] += 1
        if seen[name] > 1:
            numbered = (f"{name}#{number}" for number in count(seen[name]))
            name = next(other for other in numbered if other not in taken)  # noqa: PLW2901
            taken.add(name)
        unique.append(name)
    return unique


def shorten(value: Any) -> str:
    """Return a value as an error message shows it: at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _rename(item: Item, name: str) -> Item:
    return item if item.prompt_id == name else replace(item, prompt_id=name)  # type: ignore[type-var]


def _require_file(path: Path) -> None:
    kind = kind_of(path)
    if kind == "a pipe":
        raise TrafficError(
            f"'{path}' is a pipe, which can be read only once. Write what it gives to a file first."
        )
    if kind is not None:
        raise TrafficError(f"'{path}' is {kind}, not a file. Give a JSON lines file.")


def _document_items(
    path: Path, digest: Digest | None, num_digested: int, skip: Skip | None
) -> Iterator[Located]:
    """Yield the objects of one JSON document: an array of them, or a single one."""
    with open(path, "rb") as file:
        raw = file.read(MAX_ARRAY_BYTES + 1)
    if len(raw) > MAX_ARRAY_BYTES:
        raise TrafficError(
            f"'{path}' is a JSON array of more than {MAX_ARRAY_BYTES:,} bytes, which would be held "
            "in memory. Write one object a line: jq -c '.[]'."
        )
    if digest is not None:
        digest.update(raw[num_digested:])
    text = raw.decode("utf-8-sig")
    try:
        found = parse_json(text, is_unicode=False)
    except ValueError as error:
        raise TrafficError(f"'{path}' is not a complete JSON array: {error}.") from error
    for number, item in enumerate(found if isinstance(found, list) else [found], start=1):
        if isinstance(item, dict):
            yield Located(number, None, item)
        elif skip is None:
            raise TrafficError(f"{path}:item {number}: not an object but {shorten(item)}.")
        else:
            skip(f"item {number}", f"not an object but {shorten(item)}")


def _parse_line(path: Path, number: int, line: str, skip: Skip | None) -> dict[str, Any] | None:
    """Return a line's object; None where `skip` was told that it has none."""
    try:
        entry = parse_json(line, is_unicode=False)
    except ValueError as error:
        if skip is None:
            raise TrafficError(f"{path}:line {number}: broken JSON: {error}.") from error
        skip(f"line {number}", BROKEN)
        return None
    if isinstance(entry, dict):
        return entry
    if skip is None:
        raise TrafficError(f"{path}:line {number}: not a JSON object but {shorten(entry)}.")
    skip(f"line {number}", "not a JSON object")
    return None
