"""What a GPU's driver says of the card: clocks, power, and how busy it is. No torch.

Read by `nvidia-smi`, which comes with every driver. A field that a card or its driver does not
tell is None.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Sequence
from dataclasses import fields

from quantdraft.record.provenance import device_uuid
from quantdraft.record.timing import GpuState

SECONDS = 20.0  # nvidia-smi answers in 0.1 s; where it hangs, nothing is known
# Of nvidia-smi --help-query-gpu, in the order of GpuState.
STATE_FIELDS = (
    "utilization.gpu",
    "clocks.current.sm",
    "clocks.current.memory",
    "power.draw",
    "power.limit",
    "temperature.gpu",
    "memory.used",
)


def read_gpu_state(device: str) -> GpuState | None:
    """Return the state of the card that torch calls `device`; None for a CPU, or if not told."""
    if not device.startswith("cuda"):
        return None
    values = ask_driver(STATE_FIELDS, device)
    if all(value is None for value in values):
        return None
    names = [field.name for field in fields(GpuState)]
    told = dict(zip(names, map(number, values), strict=False))
    return GpuState(**told, num_programs=count_programs(device))


def ask_driver(names: Sequence[str], device: str) -> list[str | None]:
    """Return nvidia-smi's values of some of its fields for one card; None for each not told."""
    lines = _ask(f"--query-gpu={','.join(names)}", device) or [""]
    values = [value.strip() for value in lines[0].split(",")]
    if len(values) != len(names):
        return [None] * len(names)
    return [value if value and "[" not in value else None for value in values]


def count_programs(device: str) -> int | None:
    """Return how many programs compute on the card; None where the driver names none."""
    lines = [line.strip() for line in _ask("--query-compute-apps=pid", device) if line.strip()]
    return len(lines) if lines and all(line.isdigit() for line in lines) else None


def _ask(question: str, device: str) -> list[str]:
    """Return the lines of nvidia-smi's answer for one card; none where it cannot be asked."""
    command = ["nvidia-smi", question, "--format=csv,noheader,nounits"]
    card = device_uuid(device)
    with contextlib.suppress(OSError, subprocess.SubprocessError, UnicodeError):
        done = subprocess.run(
            [*command, *([] if card is None else ["-i", card])],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
        )
        return done.stdout.splitlines()
    return []


def number(value: str | None) -> float | None:
    """Return a value of the driver as a number; None where it is none."""
    try:
        return None if value is None else float(value)
    except ValueError:
        return None
