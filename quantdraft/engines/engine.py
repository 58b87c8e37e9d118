"""What an engine is to this package: how it is launched, what it refuses, whether it is measured.

An engine is one class that inherits `Engine`, and one row in `registry`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from quantdraft.engines.findings import Draft, Finding
from quantdraft.engines.measured import MeasuredEngine
from quantdraft.record import AcceptanceRule


@dataclass(frozen=True, slots=True)
class LaunchPair:
    """What a launch line is made of: a target, the path of its draft, and how they are to run."""

    target: str
    draft: Path
    num_speculative_tokens: int
    dtype: str | None = None  # the target's, to be pinned; None where it is not known
    acceptance_rule: AcceptanceRule | None = None
    quantization: Mapping[str, Any] = field(default_factory=dict)  # the draft's config section


class Engine(Protocol):
    """A program that runs a target with a draft."""

    name: str  # in options, and in the table of `support`
    launch_file: str  # name of the file that holds the launch line
    notes: tuple[str, ...]  # for the model card
    measured: MeasuredEngine | None = None  # how `evaluate` serves and counts it; None: it cannot

    def launch(self, pair: LaunchPair) -> str:
        """Return the line, or the script, that serves the target with the draft."""
        ...

    def check(self, draft: Draft) -> tuple[Finding, ...]:
        """Return what the engine refuses or misreads, and what its user must know."""
        ...

    def launch_text(self, line: str) -> str:
        """Return the content of the launch file."""
        note = "# The path of the draft is absolute: change it when the directory moves."
        return f"#!/bin/sh\n{note}\n{line}\n"

    def extra_files(self, pair: LaunchPair) -> dict[str, str]:
        """Return the files that the launch line names besides the draft, contents by name."""
        return {}
