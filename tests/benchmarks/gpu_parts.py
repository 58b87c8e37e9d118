"""What calls on a GPU machine share: a clock of each call, parts kept in one file, plain errors."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from quantdraft.checkpoints.tensors.devices import pick_device
from quantdraft.common.files import write_text
from quantdraft.common.resume import key_of, read_kept
from quantdraft.errors import OptionError, QuantDraftError
from quantdraft.measure.latency.timing_plan import Place
from quantdraft.record import Latency
from quantdraft.record.provenance import environment

TO_BE_CONTINUED = 3  # exit code
PART = TypeAdapter(Latency)


class OutOfTime(Exception):
    """The next part may not end before the call has to."""


class Parts:
    """The measured parts of one shape in one file, and the clock of a call.

    A machine may hand back only a few files, so no part has a file of its own. What was asked is in
    the file's name: parts that answer something else stay where they are.
    """

    def __init__(self, directory: Path, inputs: dict[str, Any], seconds: float) -> None:
        plain = json.loads(json.dumps(inputs, default=str))
        self.path = directory / f"parts-{key_of(plain)[:8]}.json"
        self.ends, self.longest_s = time.monotonic() + seconds, 0.0
        self.parts: dict[str, Any] = read_kept(self.path)

    def keep(self, place: Place, measure: Callable[[], Latency]) -> Latency:
        """Return a part that an earlier call measured, or measure and write it now.

        Every call measures one part at least: what takes long before it would else end each call.
        """
        name = "-".join(map(str, place))
        if name in self.parts:
            return PART.validate_python(self.parts[name])
        if self.longest_s and time.monotonic() + self.longest_s > self.ends:
            raise OutOfTime
        started = time.monotonic()
        part = measure()
        self.longest_s = max(self.longest_s, time.monotonic() - started)
        self.parts[name] = PART.dump_python(part, mode="json")
        write_text(self.path, json.dumps(self.parts))
        return part


def machine(device: torch.device) -> dict[str, Any]:
    """What two calls must have in common for their parts to be one measurement."""
    found = environment(str(device))
    return {name: found.get(name) for name in ("versions", "cpu", "device_name", "gpu")}


def device_of(name: str | None, is_dry_run: bool) -> torch.device:
    """The device; OptionError where that is a CPU, on which real sizes take hours."""
    device = pick_device(name)
    if device.type == "cpu" and not is_dry_run:
        raise OptionError("no GPU was found; --dry-run does the same with small sizes on a CPU.")
    return device


def copy_earlier(earlier: Path | None, output: Path) -> None:
    """Copy what an earlier call left, but for what is in `output` already, which is newer."""
    if earlier is None:
        return
    if not earlier.is_dir():
        raise OptionError(f"--from {earlier} is no directory.")
    for path in sorted(earlier.rglob("*")):
        to = output / path.relative_to(earlier)
        if path.is_file() and not to.exists():
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to)


def run_plainly(main: Callable[[], int | None]) -> None:
    """Run a program; an error that the user can mend is one line."""
    try:
        sys.exit(main())
    except QuantDraftError as error:
        sys.exit(f"Error: {error}")
