"""What an engine is to this package: how it is launched, what it refuses, whether it is measured.

An engine is one class that inherits `Engine`, and one row in `registry`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from quantdraft.checkpoints.dense_view import says_cache
from quantdraft.engines.findings import Draft, Finding
from quantdraft.engines.measured import MeasuredEngine
from quantdraft.engines.support import SupportTable, stored_names
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
    revision: str | None = None  # of a target of the Hub


def launch_script(line: str, target: str) -> str:
    """Return a shell script that runs the line beside itself, with another target where told.

    A target that is no path, an id of the Hub, is not looked for.
    """
    word = shlex.quote(target)
    other = line.replace(f" {word} ", ' "$TARGET" ', 1)
    found = _SCRIPT.format(line=line, other=other)
    if target.startswith((".", "/")):
        found = found.replace(f"\n{line}\n", f"\n{_LOOK.format(target=word)}{line}\n")
    return found


_SCRIPT = """\
#!/bin/sh
# Paths are relative to this directory; the script may be called from anywhere.
# TARGET=PATH ./launch.sh serves the draft with a target that lies elsewhere.
if [ -e "${{TARGET-}}" ]; then
  TARGET=$(CDPATH= cd -- "$(dirname -- "$TARGET")" && pwd)/$(basename -- "$TARGET")
fi
cd -- "$(dirname -- "$0")" || exit 1
if [ -n "${{TARGET-}}" ]; then
  exec {other}
fi
{line}
"""
_LOOK = """\
if [ ! -e {target} ]; then
  echo "launch.sh: there is no target at $PWD/"{target}": run TARGET=PATH ./launch.sh" >&2
  exit 1
fi
"""


class Engine(Protocol):
    """A program that runs a target with a draft."""

    name: str  # in options
    launch_file: str  # name of the file that holds the launch line
    notes: tuple[str, ...]  # for the model card
    loads: SupportTable
    names_revision: bool = False  # its line can name the revision of a target of the Hub
    loads_on_cpu: SupportTable | None = None  # where its build for CPUs loads other formats
    measured: MeasuredEngine | None = None  # how `evaluate` serves and counts it; None: it cannot

    def launch(self, pair: LaunchPair) -> str:
        """Return the line, or the script, that serves the target with the draft."""

    def check(self, draft: Draft) -> tuple[Finding, ...]:
        """Return what the engine refuses or misreads, and what its user must know."""

    def loading(self, draft: Draft) -> Iterator[Finding]:
        """Yield what the engine's table says of this draft: nothing where it loads."""
        found = self.loads.of_checkpoint(draft.quantization)
        shown = ", ".join(stored_names(draft.quantization))
        if says_cache(draft.quantization):
            shown += " with an FP8 cache"
        if found.level == "no":
            reason = found.note or "it has no loader for this format"
            yield Finding("refuse", f"{self.name} does not load {shown}: {reason}")
        elif found.level == "unknown":
            yield Finding("warn", f"whether {self.name} loads {shown} is not known: try it first.")
        elif found.level == "part":
            note = found.note or "in part; try it first"
            yield Finding("warn", f"{shown} in {self.name}: {note}.")

    def launch_text(self, line: str, target: str) -> str:
        """Return the content of the launch file, a script beside the draft; paths as seen there."""
        return launch_script(line, target)

    def extra_files(self, pair: LaunchPair) -> dict[str, str]:
        """Return the files that the launch line names besides the draft, contents by name."""
        return {}
