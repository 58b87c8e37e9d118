"""Why an arm cannot be timed, from what its kernels, a compiler, a driver or a library raised."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch

from quantdraft.errors import EngineError, QuantDraftError, UndefinedMetricError, is_out_of_memory

MAX_REASON = 300  # characters: some libraries print their whole source


def arm_fault(name: str, error: Exception, device: torch.device) -> str:
    """Return why an arm is left out while all others go on.

    An error that the user caused is raised again. So is, as an EngineError, one after which the
    GPU can do nothing more in this process: an arm that is timed later would fail for it.
    """
    if isinstance(error, QuantDraftError) and not isinstance(error, UndefinedMetricError):
        raise error
    reason = say_reason(error)
    if device.type == "cuda" and not isinstance(error, UndefinedMetricError):
        _require_alive(name, reason, device)
    return reason


def is_too_large(error: Exception) -> bool:
    """Return whether the device ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or is_out_of_memory(error)


def say_reason(error: Exception) -> str:
    """Return what a step failed with, in one line."""
    if isinstance(error, UndefinedMetricError):
        return str(error)
    if is_too_large(error):
        return "the device ran out of memory"
    first = _first_cause(error)
    said = next((line.strip() for line in str(first).splitlines() if line.strip()), "no reason")
    kind = "" if type(first) is RuntimeError else f"{type(first).__name__}: "
    return f"a step fails: {kind}{said[:MAX_REASON]}{_place(first)}"


def _first_cause(error: BaseException) -> BaseException:
    """Return what a failed recording began with: its end fails too, and says nothing of why."""
    while isinstance(error.__context__, Exception) and "captur" in str(error):
        error = error.__context__
    return error


def _place(error: BaseException) -> str:
    """Return the file and line that raised, in parentheses: the record keeps no traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""


def _require_alive(name: str, reason: str, device: torch.device) -> None:
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as lost:
        raise EngineError(
            f"{name} broke the GPU's context: {reason}. What was timed before is kept; leave "
            f"{name} out and run the same command again."
        ) from lost
