"""All formats in the order in which a line is tried, and what reads a file by them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from quantdraft.errors import OptionError, nearest
from quantdraft.traffic.formats.batch import Batch
from quantdraft.traffic.formats.chats import (
    BENCH,
    CHAT,
    IDS,
    LENGTHS_ONLY,
    LMSYS,
    QUESTION,
    SHAREGPT,
    TEXT,
)
from quantdraft.traffic.formats.exchange import Exchange, Format, UnusableLineError
from quantdraft.traffic.formats.otel import OTEL
from quantdraft.traffic.formats.services import (
    AIPERF,
    LANGFUSE,
    LITELLM,
    PAIR,
    REPLY,
    RESULTS,
    SAGEMAKER,
)
from quantdraft.traffic.jsonl import located_entries

# Lists that an export puts its records into: Langfuse, aiperf, the Hub's viewer.
CONTAINERS = ("data", "rows", "observations", "records")


class Reader:
    """Reads the objects of a file, each by the first format that recognises it."""

    def __init__(self, name: str | None = None, requests: Path | None = None) -> None:
        """name: the one format to read by; requests: the input file of a batch."""
        self._batch = Batch()
        self.formats = _all(self._batch)
        if name is not None:
            self.formats = [each for each in self.formats if each.name == name]
            if not self.formats:
                hint = nearest(name, NAMES)
                raise OptionError(f"no format {name!r}.{hint} Known: {', '.join(NAMES)}.")
        self.is_forced = name is not None
        self._is_joined = False
        if requests is not None:
            self.learn(requests)

    def learn(self, path: Path) -> None:
        """Remember the requests of a batch, which its replies are joined with."""
        found = [self._batch.learn(each.entry) for each in located_entries(path, skip=_ignore)]
        if not any(found):
            raise OptionError(
                f"'{path}' holds no request of a batch: its lines need 'custom_id' and 'body'."
            )

    def prepare(self, path: Path) -> None:
        """Look for both halves of a batch in one file: its replies are joined with its requests."""
        first = next(iter(located_entries(path, skip=_ignore)), None)
        if first is None or "custom_id" not in first.entry:
            return
        for each in located_entries(path, skip=_ignore):
            self._batch.learn(each.entry)
            self._is_joined = self._is_joined or self._batch.output.recognises(each.entry)

    def stands_for_another(self, entry: Mapping[str, Any]) -> bool:
        """Return whether a line is a request that is read with its reply, elsewhere in the file."""
        return self._is_joined and self._batch.input.recognises(entry)

    def parts(self, entry: Mapping[str, Any]) -> Iterator[tuple[Format | None, Mapping[str, Any]]]:
        """Yield the lines that an object stands for, each with its format; None: no known one."""
        for each in unpacked(entry):
            found = next((one for one in self.formats if one.recognises(each)), None)
            if found is None:
                yield None, each
            else:
                yield from ((found, part) for part in found.parts(each))

    def read(self, kind: Format | None, part: Mapping[str, Any]) -> list[Exchange]:
        """Return the exchanges of one line; UnusableLineError where it is left out."""
        if kind is not None:
            return kind.read(part)
        if self.is_forced:
            raise UnusableLineError(f"it is not of the format {self.formats[0].title}")
        keys = ", ".join(repr(key)[:40] for key in list(part)[:6]) or "nothing"
        raise UnusableLineError(f"it is of no known format: it has {keys}")


def unpacked(entry: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the records of an export that is one object; another object is one itself."""
    for key in CONTAINERS:
        inner = entry.get(key)
        if isinstance(inner, list) and inner and all(isinstance(each, Mapping) for each in inner):
            if key == "rows" and all(isinstance(each.get("row"), Mapping) for each in inner):
                return [each["row"] for each in inner]
            return inner
    return (entry,)


def _ignore(place: str, reason: str) -> None:
    """Pass over a line that cannot be parsed: whoever reads the file counts it."""


def _all(batch: Batch) -> list[Format]:
    return [
        *(batch.output, batch.input, SAGEMAKER, LITELLM, OTEL, REPLY, IDS, PAIR),
        *(LANGFUSE, AIPERF, RESULTS, SHAREGPT, LMSYS, BENCH, CHAT, TEXT, QUESTION, LENGTHS_ONLY),
    ]


NAMES = tuple(each.name for each in _all(Batch()))
