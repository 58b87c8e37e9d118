"""Results of kernel trials on this machine, kept on disk: by question, the votes of its trials.

Another process may disturb a trial, so a question is settled by several, spread in time, and then
stays settled: in every process, for every arm. The file's name holds what a time depends on (the
processor, its threads, the library's and the kernels' versions), so that a changed machine never
reads another one's answers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter

from quantdraft.common.files import write_text
from quantdraft.engines.kernels.compiling import kept_dir, was_late
from quantdraft.engines.kernels.requirements import has_triton
from quantdraft.errors import OutputError
from quantdraft.record.provenance import cpu_name

NUM_VOTES = 5
MIN_GAIN = 1.05  # by which another kernel of as many bytes must be faster
CLEAR_GAIN = 1.15  # by which one must be faster that reads more: bytes are its cost in a full step
HOPELESS = 25.0  # times the fastest: not tried again (bfloat16 without instructions: 500)

PACKAGES = (
    "bitsandbytes",
    "gptqmodel",
    "humming-kernels",
    "triton",
    "vllm",
)  # whose kernels take part where they are installed
SOURCES = Path(__file__).parent


class Timing(NamedTuple):
    """The seconds of one kernel in one trial, and the bytes of weight that it holds."""

    seconds: float
    num_bytes: int


Vote = Mapping[str, Timing]  # by kernel, in the order in which they are preferred
VOTES = TypeAdapter(dict[str, list[Vote]])  # by question, as they are kept


class Book:
    """The votes of one machine, by question; `path` is None where there is nowhere to keep them."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._votes: dict[str, list[Vote]] = {} if path is None else _read(path)

    def votes(self, question: str) -> Sequence[Vote]:
        """Return the votes so far, the oldest first."""
        return self._votes.get(question, ())

    def add(self, question: str, vote: Vote) -> None:
        """Count one more vote."""
        self._votes.setdefault(question, []).append(vote)

    def is_settled(self, question: str) -> bool:
        """Return True once there are NUM_VOTES, or one where a kernel had no rival."""
        votes = self.votes(question)
        return len(votes) >= NUM_VOTES or (bool(votes) and len(votes[0]) == 1)

    def forget(self, questions: Sequence[str]) -> None:
        """Drop the votes of questions whose answers are in doubt."""
        for question in questions:
            self._votes.pop(question, None)

    def write(self) -> None:
        """Write what is settled, with what other processes have settled meanwhile.

        Nothing where a kernel was not compiled in time: the next run asks again, with that one.
        """
        if self.path is None or was_late():
            return
        settled = {q: votes for q, votes in self._votes.items() if self.is_settled(q)}
        with contextlib.suppress(OutputError):  # a full or read-only disk stops no run
            write_text(self.path, json.dumps(_read(self.path) | settled))


def winner(votes: Sequence[Vote]) -> str:
    """Return the kernel that the votes settle on.

    A kernel's score is the median over the trials of its time over the trial's fastest. The kernel
    that reads the fewest bytes is kept unless another is faster by MIN_GAIN, or by CLEAR_GAIN where
    that one reads more.
    """
    num_votes = Counter(name for vote in votes for name in vote)
    present = [name for name in votes[0] if 2 * num_votes[name] > len(votes)]
    size = {name: votes[0][name].num_bytes for name in present}
    score = {name: _score(name, votes) for name in present}
    best, *others = sorted(present, key=lambda name: size[name])  # stable: preferred ones first
    for name in others:
        gain = CLEAR_GAIN if size[name] > size[best] else MIN_GAIN
        if score[name] * gain < score[best]:
            best = name
    return best


def hopeless(votes: Sequence[Vote]) -> set[str]:
    """Return the kernels that two trials, not one, found HOPELESS times slower than the fastest."""
    found = Counter(
        name
        for vote in votes
        for name, timing in vote.items()
        if timing.seconds > HOPELESS * _fastest(vote)
    )
    return {name for name, number in found.items() if number >= 2}


@lru_cache(maxsize=4)
def book_of(device: str, num_threads: int) -> Book:
    """Return the book of a device, read once a process.

    `QUANTDRAFT_CHOICES` names the directory of the books, or is empty for none on the disk;
    without it they lie in the user's cache.
    """
    directory = kept_dir()
    name = f"choices-{_digest(machine(device, num_threads))}.json"
    return Book(None if directory is None else directory / name)


def machine(device: str, num_threads: int) -> dict[str, Any]:
    """Return the facts about a machine on which the time of a kernel depends."""
    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "threads": num_threads,
        "kernels": _digest({file.name: file.read_text() for file in _sources()}),
    }
    if torch.device(device).type == "cuda":
        found = torch.cuda.get_device_properties(device)
        return facts | {
            "device": found.name,
            "cuda": torch.version.cuda,
            "has_triton": has_triton(),
            "has_nvcc": shutil.which("nvcc") is not None,
            "packages": {name: _version(name) for name in PACKAGES},
        }
    return facts | {
        "device": cpu_name(),
        "cores": os.cpu_count(),
        "instructions": {key: bool(has) for key, has in torch.cpu.get_capabilities().items()},
    }


def _score(name: str, votes: Sequence[Vote]) -> float:
    return median(
        vote[name].seconds / _fastest(vote) if _fastest(vote) else 1.0
        for vote in votes
        if name in vote
    )


def _fastest(vote: Vote) -> float:
    return min((timing.seconds for timing in vote.values()), default=math.inf)


def _read(path: Path) -> dict[str, list[Vote]]:
    """Read the votes of a file; none where it is missing or not ours."""
    try:
        return VOTES.validate_json(path.read_bytes())
    except (OSError, ValueError):
        return {}


def _sources() -> list[Path]:
    return sorted(file for file in SOURCES.iterdir() if file.suffix in {".py", ".c", ".h"})


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
