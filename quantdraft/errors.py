"""Errors a user can act on. The CLI prints them as one line; anything else keeps its traceback.

A message says what happened, which file or value, and what to do.
"""

from __future__ import annotations


class QuantDraftError(Exception):
    """What every error of this package derives from."""


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


class EngineError(QuantDraftError):
    """An engine that cannot be installed, started or asked, with its own reason."""


class MissingPackageError(QuantDraftError):
    """An optional package that a recipe or engine needs is not installed."""


class VerdictError(QuantDraftError):
    """The verdict does not allow what was asked (`export --require-go`)."""
