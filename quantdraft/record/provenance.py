"""What it takes to run something again: versions, machine, hashes. No torch, no git."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from quantdraft import __version__
from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.common.files import file_sha256

HIDDEN = "(hidden)"
SECRET_OPTION = re.compile(r"^-.*(^|[-_])(api[-_]?key|token|password|secret)$", re.IGNORECASE)
USER_IN_URL = re.compile(r"(://)[^/\s]*@")
HUB_TOKEN = re.compile(r"\bhf_\w{8,}")
PASSED_ON = frozenset({"--engine-args", "--vllm-args"})
PACKAGES = (
    "quantdraft",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "compressed-tensors",
    "llmcompressor",
    "numpy",
    "vllm",
)


def environment(device: str | None = None) -> dict[str, Any]:
    """Return package versions and the machine; `device` is a torch device name, e.g. 'cuda:0'."""
    return {
        "versions": package_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "num_cpus": os.cpu_count(),
        "device": device,
        "device_name": device_name(device),
        **({"gpu": gpu_facts(device)} if device is not None and device.startswith("cuda") else {}),
    }


def command_line(arguments: Sequence[str]) -> str:
    """Return the command as it was given, without keys, tokens and users in URLs."""
    shown, is_hidden = ["quantdraft"], False
    for argument in arguments:
        if is_hidden and argument in PASSED_ON:  # --vllm-args --api-key --vllm-args KEY
            shown.append(argument)
            continue
        name, equals, _ = argument.rpartition("=")
        if is_hidden:
            argument = HIDDEN  # noqa: PLW2901
        elif equals and SECRET_OPTION.search(name):
            argument = f"{name}={HIDDEN}"  # noqa: PLW2901
        is_hidden = not is_hidden and SECRET_OPTION.search(argument) is not None
        shown.append(HUB_TOKEN.sub(HIDDEN, USER_IN_URL.sub(r"\1", argument)))
    return shlex.join(shown)


def package_versions() -> dict[str, str]:
    """Return the installed versions of the packages that decide a result; imports no other.

    This one may not be installed: where it runs from a folder, its own word counts.
    """
    found = {"quantdraft": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """Return the processor's model name where the system tells it, else its architecture."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def device_name(device: str | None) -> str | None:
    """Return the accelerator's product name; None for a CPU."""
    if device is None or not device.startswith("cuda"):
        return None
    import torch

    return str(torch.cuda.get_device_name(device))


def gpu_facts(device: str) -> dict[str, Any]:
    """Return what does not change of a card, its driver and its libraries.

    Clocks, power and use change: they stand beside every point of a timing.
    """
    import torch

    from quantdraft.checkpoints.tensors.devices import driver_version

    card = torch.cuda.get_device_properties(torch.device(device))
    return {
        "capability": f"{card.major}.{card.minor}",
        "num_multiprocessors": card.multi_processor_count,
        "memory_bytes": card.total_memory,
        "driver": driver_version(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }


def device_uuid(device: str) -> str | None:
    """Return what the driver calls a card, which torch numbers among those that it sees."""
    import torch

    try:
        return f"GPU-{torch.cuda.get_device_properties(torch.device(device)).uuid}"
    except (RuntimeError, AssertionError, AttributeError):
        return None


def load_average() -> float | None:
    """Return the machine's load over the last minute; None where the system does not tell it."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def load_around(before: float | None, after: float | None) -> tuple[float, float] | None:
    """Return the load before and after something; None unless both are known."""
    return None if before is None or after is None else (before, after)


def directory_sha256(directory: Path, exclude: frozenset[str] = frozenset()) -> dict[str, str]:
    """Return the SHA-256 of every file in a directory, by its path inside it, sorted."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    names = {path.relative_to(directory).as_posix(): path for path in files}
    return {name: file_sha256(path) for name, path in names.items() if name not in exclude}


def weights_sha256(hashes: Mapping[str, str]) -> str:
    """Return one hash over the names and hashes of a model's weight files."""
    total = hashlib.sha256()
    for name, digest in sorted(hashes.items()):
        total.update(f"{name} {digest}\n".encode())
    return total.hexdigest()


def model_identity(checkpoint: Checkpoint, given: str | None = None) -> dict[str, Any]:
    """Return which model this is: its given name, revision, hashes of its weights, and type."""
    weight_names = sorted({info.file for info in checkpoint.tensors.values()})
    return {
        "name": given or str(checkpoint.path),
        "path": str(checkpoint.path),
        "revision": checkpoint.revision,
        "architectures": checkpoint.config.get("architectures"),
        "dtype": checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype"),
        "sha256": {
            name: file_sha256(checkpoint.path / name) for name in ["config.json", *weight_names]
        },
    }
