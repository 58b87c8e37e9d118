"""Split a file of traffic or prompts into parts by conversation, each a file of its own.

A conversation is what the log calls one; lines that begin with the same request are one too. Which
part it falls into is a hash of it: the same for every run, and for any order of the lines.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from quantdraft.common.files import file_sha256, require_apart, whole_directory, write_json
from quantdraft.errors import OptionError, TrafficError
from quantdraft.traffic.formats.exchange import Exchange, UnusableLineError
from quantdraft.traffic.formats.known import Reader, unpacked
from quantdraft.traffic.jsonl import Located, located_entries
from quantdraft.traffic.ledger import Tally
from quantdraft.traffic.parts import SPLIT_FILE, Part, parts_of, place_of
from quantdraft.traffic.responses import ReadSettings
from quantdraft.traffic.traffic import require_whole

SPLIT_SCHEMA_VERSION = 1
NAME = re.compile(r"\w[\w-]{0,63}")
REST = ""  # what no part was asked for: it is not written


class WrittenPart(NamedTuple):
    """A file that was written."""

    name: str
    path: Path
    num_lines: int
    part: Part


class Split(NamedTuple):
    """The files of a split, and the lines that are in none because they cannot be read."""

    files: tuple[WrittenPart, ...]
    num_left_out: int

    def as_record(self) -> dict[str, Any]:
        """Return it as JSON values."""
        parts = {
            each.name: {
                "path": str(each.path), "num_lines": each.num_lines, "part": each.part.as_record()
            }
            for each in self.files
        }  # fmt: skip
        return {"parts": parts, "num_left_out": self.num_left_out}


def parse_shares(text: str) -> dict[str, float]:
    """Read `calibration=0.5,evaluation=0.5`: names of parts with their shares, at most 1 in all."""
    shares: dict[str, float] = {}
    for each in text.split(","):
        name, _, value = (part.strip() for part in each.partition("="))
        try:
            share = float(value)
        except ValueError:
            share = math.nan
        if not NAME.fullmatch(name) or name in shares or not 0 < share < 1:
            raise OptionError(
                f"--split {text!r}: {each.strip()!r} is no NAME=SHARE with a name of its own and a "
                "share between 0 and 1. Write calibration=0.5,evaluation=0.5."
            )
        shares[name] = share
    if sum(shares.values()) > 1 + 1e-9:
        raise OptionError(f"--split {text!r}: the shares add up to more than 1.")
    return shares


def split_traffic(
    path: Path,
    shares: Mapping[str, float],
    output: Path,
    settings: ReadSettings | None = None,
    *,
    force: bool = False,
) -> Split:
    """Write one file of JSON lines for each part into `output`, and which part it is to split.json.

    Lines stay as they are; items of an array and rows of a table become lines. The directory
    appears whole or not at all. Raises OutputExistsError, and TrafficError where there are fewer
    conversations than parts.
    """
    settings = settings or ReadSettings()
    require_apart(output, path, "the traffic")
    digest = hashlib.sha256()
    _require_whole(path)
    lines = list(_located(path, settings, digest))
    places = [line.place for line in lines if line.place is not None]
    rest = 1 - sum(shares.values())
    named = dict(shares) | ({REST: rest} if rest > 1e-9 else {})
    parts = parts_of(places, tuple(named.values()), digest.hexdigest())
    if parts is None:
        raise TrafficError(
            f"'{path}' has {len(set(places))} conversations, too few for {len(named)} parts."
        )
    ranges = {name: part for name, part in zip(named, parts, strict=True) if name != REST}
    with whole_directory(output, force) as staging:
        counts = _write(path, settings, lines, ranges, staging)
        write_json(staging / SPLIT_FILE, _record(path, ranges, counts, staging))
    files = tuple(
        WrittenPart(name, output / f"{name}.jsonl", counts[name], part)
        for name, part in ranges.items()
    )
    return Split(files, sum(line.place is None for line in lines))


def _require_whole(path: Path) -> None:
    """Raise TrafficError for a capture that was cut; its parts would not show it."""
    tally = Tally()
    entries = located_entries(path, skip=tally.leave_out_line)
    first = next(entries, None)
    if first is not None and "quantdraft_traffic" in first.entry:
        require_whole(path, first.entry, sum(1 for _ in entries), tally)


class _Line(NamedTuple):
    """Where an object of the file falls; None: it cannot be read."""

    place: str | None


def _located(path: Path, settings: ReadSettings, digest: Any) -> Iterator[_Line]:
    logs = Reader(settings.format_name, settings.requests)
    logs.prepare(path)
    for _, entry in _entries(path, digest):
        yield _Line(_place(logs, entry))


def _entries(path: Path, digest: Any = None) -> Iterator[tuple[Located, Mapping[str, Any]]]:
    """Yield the objects to be shared out, with where each stands; the header of `capture` is none.

    An object that cannot be parsed is no object.
    """
    found = located_entries(path, digest, lambda place, reason: None)
    for number, at in enumerate(found):
        if number == 0 and "quantdraft_traffic" in at.entry:
            continue
        yield from ((at, entry) for entry in unpacked(at.entry))


def _place(logs: Reader, entry: Mapping[str, Any]) -> str | None:
    """Return where an object falls, by its first readable line; None where it has none."""
    for kind, part in logs.parts(entry):
        try:
            exchanges = logs.read(kind, part)
        except UnusableLineError:
            continue
        if exchanges:
            return place_of(_conversation(exchanges[0], entry))
    return None


def _conversation(exchange: Exchange, entry: Mapping[str, Any]) -> str:
    """Return the name of a conversation, or what its first request says."""
    if exchange.conversation:
        return exchange.conversation
    if exchange.messages is not None:
        turns = [{"role": t["role"], "content": t["content"]} for t in exchange.messages]
        until = next((n for n, t in enumerate(turns) if n and t["role"] == "assistant"), len(turns))
        return json.dumps(turns[:until], default=str)
    said = exchange.prompt if exchange.prompt is not None else exchange.prompt_token_ids
    return json.dumps(entry if said is None else said, default=str)


def _write(
    path: Path,
    settings: ReadSettings,
    lines: list[_Line],
    ranges: Mapping[str, Part],
    staging: Path,
) -> dict[str, int]:
    """Write the lines of each part, after the header of a capture; return how many there are."""
    owners = [_owner(line, ranges) for line in lines]
    counts = {name: owners.count(name) for name in ranges}
    files = {name: open(staging / f"{name}.jsonl", "wb") for name in ranges}  # noqa: SIM115
    try:
        first = next(located_entries(path, skip=lambda place, reason: None)).entry
        if "quantdraft_traffic" in first:
            for name, file in files.items():
                own = {"num_prompts": counts[name], "skipped": []}
                file.write((json.dumps(first | own) + "\n").encode())
        with open(path, "rb") as source:
            for owner, (at, entry) in zip(owners, _entries(path), strict=True):
                if owner is not None:
                    files[owner].write(_text(source, at, entry))
    finally:
        for file in files.values():
            file.close()
    return counts


def _owner(line: _Line, ranges: Mapping[str, Part]) -> str | None:
    if line.place is None:
        return None
    return next((name for name, part in ranges.items() if part.holds(line.place)), None)


def _text(source: Any, at: Located, entry: Mapping[str, Any]) -> bytes:
    """Return an object as one line: the file's own, where it is one."""
    if at.offset is None or entry is not at.entry:
        return (json.dumps(entry) + "\n").encode()
    source.seek(at.offset)
    line: bytes = source.readline()
    return line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n") + b"\n"


def _record(
    path: Path, ranges: Mapping[str, Part], counts: Mapping[str, int], staging: Path
) -> dict[str, Any]:
    return {
        "schema_version": SPLIT_SCHEMA_VERSION,
        "of": str(path),
        "parts": {
            name: {
                "file": f"{name}.jsonl",
                "sha256": file_sha256(staging / f"{name}.jsonl"),
                "num_lines": counts[name],
                "part": part.as_record(),
            }
            for name, part in ranges.items()
        },
    }
