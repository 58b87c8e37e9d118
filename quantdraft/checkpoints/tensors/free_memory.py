"""The memory that a device has left."""

from __future__ import annotations

from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def available_bytes(device: torch.device) -> int | None:
    """Return the bytes that can still be allocated; None where the system does not tell.

    On a CPU the lesser of what the system has free and what a container's limit leaves.
    """
    if device.type == "cuda":
        # What the allocator holds but does not use goes back first: blocks in the pools of recorded
        # graphs stay, and no other allocation may use them.
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    known = [size for size in (_system_bytes(), _container_bytes()) if size is not None]
    return min(known, default=None)


def _system_bytes() -> int | None:
    kilobytes = _field(MEMINFO, "MemAvailable:")
    return None if kilobytes is None else kilobytes * 1024


def _container_bytes() -> int | None:
    """Return what a version 2 control group still allows; None without one, or without a limit."""
    limit, used = _number(CGROUP / "memory.max"), _number(CGROUP / "memory.current")
    if limit is None or used is None:
        return None
    reclaimable = _field(CGROUP / "memory.stat", "inactive_file") or 0  # cached files count as used
    return max(0, limit - used + reclaimable)


def _number(path: Path) -> int | None:
    text = path.read_text(encoding="ascii").strip() if path.is_file() else ""
    return int(text) if text.isdigit() else None


def _field(path: Path, name: str) -> int | None:
    """Return the number after a name at the start of a line."""
    lines = path.read_text(encoding="ascii").splitlines() if path.is_file() else []
    found = (line.split() for line in lines)
    return next((int(words[1]) for words in found if words and words[0] == name), None)
