"""Devices by name: bandwidth, compute capability, formats with a kernel; all with sources."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field

from quantdraft.errors import OptionError, nearest

DEVICES_FILE = Path(__file__).with_name("devices.yaml")


class Device(BaseModel):
    """One row of devices.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    memory_bytes_per_s: float = Field(gt=0)  # the maker's peak
    bandwidth_source: str
    compute_capability: float | None  # None: not CUDA
    capability_source: str
    formats: tuple[str, ...]  # names of `WeightFormat`, and "dense"

    def limit_ms(self, num_bytes: float) -> float:
        """Return the least time in ms in which so many bytes are read."""
        return num_bytes / self.memory_bytes_per_s * 1e3


def device_names() -> list[str]:
    """Return the names of the devices, in the order of the file."""
    return list(_devices())


def load_device(name: str) -> Device:
    """Return the device of that name; OptionError lists the names, the nearest first."""
    devices = _devices()
    wanted = name.lower().replace(" ", "-").replace("_", "-").removeprefix("nvidia-")
    if wanted in devices:
        return devices[wanted]
    hint = nearest(wanted, devices, cutoff=0.5)  # the names are short
    raise OptionError(f"no device {name!r}.{hint} There are: {', '.join(devices)}.")


@cache
def _devices() -> dict[str, Device]:
    plain = yaml.safe_load(DEVICES_FILE.read_text(encoding="utf-8"))
    return {name: Device.model_validate(row) for name, row in plain["devices"].items()}
