"""Errors a user can act on. The CLI prints them as one line; anything else keeps its traceback.

A message says what happened, which file or value, and what to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

MAX_CHARACTERS = 4000
MIN_HEAD, HEAD_CUTOFF = 4, 0.8
FULL_DISK = ("No space left on device", "File too large", "Disk quota exceeded")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or the error's kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def one_line(text: str) -> str:
    """A text as a terminal may show it: no control reaches it, and what is endless is cut.

    Messages quote names from files of strangers, which may hold anything: controls, half surrogate
    pairs, marks that turn the direction of writing.
    """
    shown = " ".join(line.strip() for line in text.splitlines() if line.strip())
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)
    return shown if len(shown) <= MAX_CHARACTERS else f"{shown[: MAX_CHARACTERS - 1]}…"


def nearest(given: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """` Did you mean 'int4'?` where a known name is near to the one given, else nothing.

    The one place where names are suggested; it stands behind the sentence that refuses `given`.
    """
    near = _nearest(given, known, cutoff)
    return "" if near is None else f" Did you mean {near!r}?"


def nearest_path(given: Path) -> str:
    """The same for a file or directory that is not there, among what lies beside it."""
    if given.exists():  # and is something else than was wanted
        return ""
    try:
        beside = list(given.absolute().parent.iterdir())
    except OSError:
        return ""
    # By stems: equal endings, as of most files of a directory, make no name near another.
    beside.sort(key=lambda path: path.suffix == given.suffix)
    by_stem = {path.stem: path.name for path in beside}
    near = _nearest(given.stem, by_stem, 0.6)
    return "" if near is None else f" Did you mean {str(given.with_name(by_stem[near]))!r}?"


def _nearest(given: str, known: Iterable[str], cutoff: float) -> str | None:
    from difflib import get_close_matches

    key, by_key = _key(given), {_key(name): name for name in known}
    near = get_close_matches(key, by_key, n=1, cutoff=cutoff)
    if not near and len(key) >= MIN_HEAD:  # the beginning of a long name
        heads = {name[: len(key) + 1]: name for name in reversed(by_key)}
        near = [heads[head] for head in get_close_matches(key, heads, n=1, cutoff=HEAD_CUTOFF)]
    return by_key[near[0]] if near else None


def _key(name: str) -> str:
    """Case and the kind of separator are not what tells names apart."""
    return name.lower().replace("_", "-").replace(" ", "-")


class QuantDraftError(Exception):
    """What every error of this package derives from. Its text is one line, whatever it quotes."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class RecipeError(QuantDraftError):
    """A recipe that cannot be found, read or applied to this draft."""


class CheckpointError(QuantDraftError):
    """A model directory that is missing, truncated, unsafe or not what it claims."""


class TrafficError(QuantDraftError):
    """Prompts or traffic that cannot be read, with the line number."""


class PairingError(QuantDraftError):
    """Two things that must belong together do not: target and draft, or two arms of one prompt."""


class UndefinedMetricError(QuantDraftError):
    """A number that does not exist for this data. Never reported as 0 or 1."""


class NoKernelError(UndefinedMetricError):
    """This machine has no kernel that computes in the format: its latency is undefined."""


class OptionError(QuantDraftError):
    """A value given on the command line that cannot be used."""


class OutputExistsError(QuantDraftError):
    """The output is there already and `--force` was not given."""


class OutputError(QuantDraftError):
    """The output could not be written; nothing of it was left behind."""


class OutputBusyError(OutputError):
    """Another run writes the same output at this moment."""


class DrawingError(QuantDraftError):
    """Pages that could not be drawn: the record they show is on the disk, whole."""


class EngineError(QuantDraftError):
    """An engine that cannot be installed, started or asked, with its own reason."""


class MissingPackageError(QuantDraftError):
    """An optional package that a recipe or engine needs is not installed."""


class VerdictError(QuantDraftError):
    """The verdict does not allow what was asked (`export --require-go`)."""


def disk_reason(error: Exception) -> str:
    """Why a file could not be written, in the words of the system or clearer ones."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "a file stands where a directory is needed"
    text = getattr(error, "strerror", None) or str(error)
    # shutil.copytree lists what went wrong with each file, each with its number and both paths.
    found = re.search(r"\[Errno \d+\] ([^:'\"]+)", text)
    return found[1] if found else text


def is_out_of_memory(error: BaseException) -> bool:
    """True of a failed allocation; torch's on a CPU is a RuntimeError like any other."""
    if isinstance(error, MemoryError):
        return True
    said = ("can't allocate memory", "Cannot allocate memory", "out of memory", "bad_alloc")
    return isinstance(error, RuntimeError | OSError) and any(w in str(error) for w in said)
