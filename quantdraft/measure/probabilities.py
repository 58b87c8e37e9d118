"""Stores of acceptance probabilities: in memory, or in a file with which a killed replay goes on.

The file is a flat array of float64, all responses one after another, NaN where nothing was computed
yet. It costs the disk 8 bytes a token and memory nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantdraft.common.files import sweep_files, write_json
from quantdraft.common.locks import is_at
from quantdraft.common.progress import say
from quantdraft.common.resume import kept_when_refused, key_of, read_kept
from quantdraft.judge.acceptance import Floats

_BLOCK = 2**20  # numbers written at once


class MemoryStore:
    """A store for a replay that is short, or never killed; a prompt is a place in the traffic."""

    def __init__(self, num_tokens: Sequence[int]) -> None:
        self._arrays: list[Floats] = [np.full(length, np.nan) for length in num_tokens]

    def has(self, prompt: int) -> bool:
        """Return whether every token of the response has its number."""
        return not np.isnan(self._arrays[prompt]).any()

    def put(self, prompt: int, first_token: int, values: Floats) -> None:
        """Store the numbers of some tokens of a response."""
        self._arrays[prompt][first_token : first_token + len(values)] = values

    def arrays(self) -> list[Floats]:
        """Return the numbers of every prompt, (num_response_tokens,)."""
        return self._arrays


class FileStore:
    """The file of one arm, open and locked for one replay; see `open_store_at`."""

    def __init__(self, file: int, num_tokens: Sequence[int]) -> None:
        self._file = file
        self._starts = np.concatenate([[0], np.cumsum(num_tokens, dtype=np.int64)])
        self._has = self._find_whole()

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left to replay."""
        return bool(self._has.all())

    def has(self, prompt: int) -> bool:
        """Return whether every token of the response has its number."""
        return bool(self._has[prompt])

    def put(self, prompt: int, first_token: int, values: Floats) -> None:
        """Store the numbers of some tokens of a response."""
        raw = np.ascontiguousarray(values, np.float64).tobytes()
        offset = 8 * (int(self._starts[prompt]) + first_token)
        while raw:  # a write may take a part
            written = os.pwrite(self._file, raw, offset)
            raw, offset = raw[written:], offset + written

    def arrays(self) -> list[Floats]:
        """Return the numbers of every prompt, (num_response_tokens,), as read-only views."""
        flat = self._map_file()
        return [flat[a:b] for a, b in zip(self._starts[:-1], self._starts[1:], strict=True)]

    def _find_whole(self) -> NDArray[np.bool_]:
        flat, has = self._map_file(), np.zeros(len(self._starts) - 1, np.bool_)
        for prompt, (first, last) in enumerate(zip(self._starts[:-1], self._starts[1:])):  # noqa: B905
            has[prompt] = ((flat[first:last] >= 0) & (flat[first:last] <= 1)).all()
        return has

    def _map_file(self) -> Floats:
        num_tokens = int(self._starts[-1])
        if num_tokens == 0:
            return np.empty(0)
        # By descriptor: the name may stand for another file by now.
        with open(os.dup(self._file), "rb") as file:
            return np.asarray(np.memmap(file, np.float64, "r", shape=(num_tokens,)), np.float64)


ProbabilityStore = MemoryStore | FileStore


@contextlib.contextmanager
def open_store_at(
    path: Path, inputs: dict[str, Any], num_tokens: Sequence[int]
) -> Iterator[FileStore]:
    """Open what a replay of the same inputs has left, or an empty file; a second replay waits.

    When it is whole, the hash of its numbers is written beside it: a file that no longer has this
    hash is replaced by an empty one.

    num_tokens: of every response; inputs: as for `stage`
    """
    key = key_of(inputs | {"num_tokens": [int(length) for length in num_tokens]})
    with kept_when_refused(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _open_locked(path, key, 8 * int(sum(num_tokens)))
        try:
            store = FileStore(file, num_tokens)
            yield store
            if not store.is_whole:
                _seal(file, path, key, num_tokens)
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # what is mapped would hold it beyond the closing
            os.close(file)


def _seal(file: int, path: Path, key: str, num_tokens: Sequence[int]) -> None:
    """Write the hash of a file that has become whole beside it."""
    if FileStore(file, num_tokens).is_whole and is_at(file, path):
        os.fsync(file)
        write_json(path.with_suffix(".json"), {"key": key, "sha256": _sha256(file)})


def _sha256(file: int) -> str:
    with open(os.dup(file), "rb") as opened:
        opened.seek(0)
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _is_usable(file: int, path: Path, key: str, num_bytes: int) -> bool:
    """Return whether a file is of this key and as it was written; a line says which is damaged.

    One that is not whole yet has no hash, and is believed number by number.
    """
    facts = path.with_suffix(".json")
    kept = read_kept(facts)
    if not facts.exists() or kept.get("key", key) != key:
        return False
    is_whole = "key" in kept and os.fstat(file).st_size == num_bytes
    if is_whole and ("sha256" not in kept or kept["sha256"] == _sha256(file)):
        return True
    say(f"'{path}' is damaged: what it held is replayed again")
    return False


def _wait_for(file: int, path: Path) -> None:
    """Lock a file; a line says that another process holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"another process replays the same now: waiting for '{path}'")
        fcntl.flock(file, fcntl.LOCK_EX)


def _open_locked(path: Path, key: str, num_bytes: int) -> int:
    """Open and lock the file of this key; a new one where the file there is of another."""
    facts = path.with_suffix(".json")
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _wait_for(file, path)
            if not is_at(file, path):  # replaced while we waited
                os.close(file)
                continue
            if _is_usable(file, path, key, num_bytes):
                return file
            # A file of its own, not this one emptied: another run may be reading this one.
            fresh = _create_empty(path, num_bytes)
            facts.unlink(missing_ok=True)
            os.replace(_beside(path), path)
            write_json(facts, {"key": key})
        except BaseException:
            os.close(file)
            raise
        os.close(file)
        return fresh


def _create_empty(path: Path, num_bytes: int) -> int:
    """Make a locked file of NaN: written, not left sparse, so that a full disk is met here."""
    beside = _beside(path)
    sweep_files(path)
    file = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        block, offset = np.full(_BLOCK, np.nan).tobytes(), 0
        while offset < num_bytes:
            offset += os.pwrite(file, block[: num_bytes - offset], offset)
        os.fsync(file)
    except BaseException:
        os.close(file)
        beside.unlink(missing_ok=True)
        raise
    return file


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")
