"""Errors a user can act on. The CLI prints them as one line; anything else keeps its traceback.

A message says what happened, which file or value, and what to do.
"""

from __future__ import annotations

MAX_CHARACTERS = 4000


def one_line(text: str) -> str:
    """A text as a terminal may show it: no control reaches it, and what is endless is cut.

    Messages quote names from files of strangers, which may hold anything: controls, half surrogate
    pairs, marks that turn the direction of writing.
    """
    shown = " ".join(line.strip() for line in text.splitlines() if line.strip())
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)
    return shown if len(shown) <= MAX_CHARACTERS else f"{shown[: MAX_CHARACTERS - 1]}…"


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


class EngineError(QuantDraftError):
    """An engine that cannot be installed, started or asked, with its own reason."""


class MissingPackageError(QuantDraftError):
    """An optional package that a recipe or engine needs is not installed."""


class VerdictError(QuantDraftError):
    """The verdict does not allow what was asked (`export --require-go`)."""


def is_out_of_memory(error: BaseException) -> bool:
    """True of a failed allocation; torch's on a CPU is a RuntimeError like any other."""
    if isinstance(error, MemoryError):
        return True
    said = ("can't allocate memory", "Cannot allocate memory", "out of memory", "bad_alloc")
    return isinstance(error, RuntimeError | OSError) and any(w in str(error) for w in said)
