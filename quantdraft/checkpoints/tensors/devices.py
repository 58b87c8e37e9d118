"""The device of a process, chosen before CUDA is touched; and the float type that suits it.

`cuda:N` is the N-th GPU of those that are visible, and CUDA_VISIBLE_DEVICES makes it the only one:
libraries that take the first GPU whatever they are told, and the servers and workers that are
started from here, then take the same.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import torch

from quantdraft.common.progress import say
from quantdraft.errors import CheckpointError, OptionError, nearest

VISIBLE = "CUDA_VISIBLE_DEVICES"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICE_FILES = Path("/dev")
DRIVER_FILE = Path("/proc/driver/nvidia/version")
# The first driver (Linux) that runs any build for this major version of CUDA, by NVIDIA's notes.
FIRST_DRIVERS = {11: 450, 12: 525, 13: 580}
BFLOAT16_SINCE = (8, 0)  # compute capability: older GPUs emulate it
OTHER_BUILD = "install one of https://pytorch.org/get-started/locally"
AFTER_CPU = "this process hid its GPUs to quantize on the CPU. Use a process of its own for each."

_ONE_OF: dict[str, tuple[str, ...]] = {}  # what we made visible alone -> all that was visible
_SAID: set[str] = set()
# "gpu": CUDA may have started; "hidden": and while GPUs were hidden; "attention": cuDNN's is off.
_TOUCHED: set[str] = set()


def pick_device(name: str | None = None) -> torch.device:
    """Return the named device; without a name CUDA where there is one, else the CPU.

    Raises OptionError for a device that this process cannot have, with what to do about it.
    """
    if name is None:
        found, why = _has_gpu()
        if not found and why is not None and why not in _SAID:
            _SAID.add(why)
            say(f"computing on the CPU: {why}")
        return _cuda() if found else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        hint = nearest(name, ("cpu", "cuda"))
        raise OptionError(
            f"--device {name!r} is not a device.{hint} Use cpu, cuda or cuda:N."
        ) from error
    if device.type != "cuda":
        return device
    if device.index is not None:
        _show_only(device.index)
    found, why = _has_gpu()
    if not found:
        raise OptionError(f"--device {name}: {_without(why)}")
    return _cuda()


def _cuda() -> torch.device:
    """Return the first visible GPU, without cuDNN's attention.

    It plans anew for every length of a cache: 0.4 s each, where others measured it. It is switched
    off once, so that a caller who wants it can switch it on again.
    """
    if "attention" not in _TOUCHED:
        torch.backends.cuda.enable_cudnn_sdp(False)
        _TOUCHED.add("attention")
    return torch.device("cuda")


def device_key(device: torch.device) -> str:
    """Return a device's name for what is kept of a killed run: it goes on where it began."""
    visible = os.environ.get(VISIBLE)
    return str(device) if device.type != "cuda" or visible is None else f"{device} of {visible}"


def visible_gpus() -> tuple[str, ...]:
    """Return what CUDA_VISIBLE_DEVICES may call each visible GPU: a number, or the user's own name.

    CUDA is not started. A list that the user gave counts up to its first entry that is none.
    """
    given = os.environ.get(VISIBLE)
    if given is None:
        return tuple(map(str, range(torch.cuda.device_count())))
    entries = (entry.strip() for entry in given.split(","))
    return tuple(takewhile(lambda entry: entry and not entry.startswith("-"), entries))


def _show_only(index: int) -> None:
    """Make the GPU at this place among the visible ones the only one, here and in children."""
    before = os.environ.get(VISIBLE)
    among = _ONE_OF.get(before or "") or visible_gpus()
    if not among:
        return  # why there is none is the caller's to say
    if index >= len(among):
        names = ", ".join(f"cuda:{place}" for place in range(len(among)))
        said = "" if before is None or before in _ONE_OF else f", by {VISIBLE}={before}"
        raise OptionError(
            f"--device cuda:{index}: the GPUs here are {names}{said}. Use one of them."
        )
    if among[index] == before:
        return
    is_first = before not in _ONE_OF and index == 0
    if "gpu" in _TOUCHED or torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        if is_first:
            return
        raise OptionError(
            f"--device cuda:{index}: this process has started CUDA on another GPU, and cannot "
            f"change it. Start another process, or this one with {VISIBLE}={among[index]}."
        )
    _ONE_OF[among[index]] = among
    os.environ[VISIBLE] = among[index]


@contextlib.contextmanager
def hidden_gpus() -> Iterator[None]:
    """Hide every GPU while a library runs that takes one, whatever device it is given.

    Raises OptionError where this process has started CUDA with them visible.
    """
    before = os.environ.get(VISIBLE)
    os.environ[VISIBLE] = ""
    try:
        if torch.cuda.is_available():
            raise OptionError(
                "--device cpu: this process has started CUDA, and the library that quantizes would "
                f"calibrate on the GPU. Start another process, with {VISIBLE}= (empty)."
            )
        _TOUCHED.add("hidden")
        yield
    finally:
        if before is None:
            del os.environ[VISIBLE]
        else:
            os.environ[VISIBLE] = before


def _has_gpu() -> tuple[bool, str | None]:
    """Return whether torch sees a GPU; and where it sees none though there is one, what to do."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = torch.cuda.is_available()
    if found:
        _TOUCHED.add("gpu")
        return True, None
    if not _has_files() or (os.environ.get(VISIBLE) is not None and not visible_gpus()):
        return False, None
    return False, AFTER_CPU if "hidden" in _TOUCHED else _fault(
        [str(each.message) for each in said]
    )


def _without(why: str | None) -> str:
    """Return what to say where a GPU was asked for and there is none, or `why` it is not seen."""
    if why is not None:
        return f"{why} Or use --device cpu."
    if _has_files():
        visible = os.environ.get(VISIBLE)
        return f"{VISIBLE}={visible!r} hides every GPU. Unset it, or use --device cpu."
    return "this machine has no CUDA device. Use --device cpu."


def _has_files() -> bool:
    return any(DEVICE_FILES.glob("nvidia[0-9]*"))


def _fault(said: list[str]) -> str:
    """Return why torch sees no GPU on a machine that has one, and what to do."""
    needed = torch.version.cuda
    if needed is None:
        return (
            f"this machine has a GPU, but torch {torch.__version__} is a build without CUDA: "
            f"{OTHER_BUILD}."
        )
    first, driver = FIRST_DRIVERS.get(int(needed.split(".")[0])), driver_version()
    if first is not None and driver is not None and int(driver.split(".")[0]) < first:
        return (
            f"the GPU's driver {driver} is too old for CUDA {needed} of torch "
            f"{torch.__version__}, which needs {first} or newer: update it, or, for an older "
            f"CUDA, {OTHER_BUILD}."
        )
    reason = next((line.split(" (Triggered")[0].strip() for line in said), "it does not say why")
    visible = os.environ.get(VISIBLE)
    among = "" if visible is None else f", by {VISIBLE}={visible}"
    return f"torch sees no GPU{among}, though /dev has one: {reason.rstrip('.')}. See `nvidia-smi`."


def driver_version() -> str | None:
    """Return the version of the NVIDIA driver that runs, '580.65.06'; None where none tells it."""
    try:
        text = DRIVER_FILE.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(r"^NVRM version:.*?\s(\d+(?:\.\d+)+)\s", text, re.MULTILINE)
    return found[1] if found else None


def has_gpu_for_servers() -> bool:
    """Return True where a program of its own would find a GPU, whatever torch is installed here."""
    if os.environ.get(VISIBLE) is not None and not visible_gpus():
        return False
    return _has_files() or torch.cuda.is_available()


def has_bfloat16(device: torch.device) -> bool:
    """Return False for a GPU that emulates bfloat16."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= BFLOAT16_SINCE


def gpu_float_type() -> str:
    """Return the 16 bit float type for a server on a GPU: of the first that torch sees, if any."""
    is_old = torch.cuda.is_available() and not has_bfloat16(torch.device("cuda"))
    return "float16" if is_old else "bfloat16"


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the named float type; `auto` is bfloat16 on a GPU and float32 on a CPU.

    On a CPU float32 makes the live loop and replay equal to the last token, and most CPUs multiply
    bfloat16 slower, some of them 500 times. A GPU before compute capability 8.0 emulates bfloat16:
    there `auto` is float16.
    """
    if name == "auto":
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if has_bfloat16(device) else torch.float16
    if name not in DTYPES:
        hint = nearest(name, ("auto", *DTYPES))
        raise OptionError(f"--dtype {name!r} is unknown.{hint} Use auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


def require_room(name: str, num_bytes: int, device: torch.device) -> None:
    """Raise CheckpointError where a model's weights alone exceed what a GPU has free."""
    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if num_bytes > free:
        raise CheckpointError(does_not_fit(name, num_bytes, f"{free / 1e9:.1f} GB are free"))


def does_not_fit(name: str, num_bytes: int, why: str) -> str:
    """Return that a model does not fit, and what works without it. num_bytes: of its weights."""
    return (
        f"'{name}' does not fit: its weights take {num_bytes / 1e9:.1f} GB, and {why}. Of a "
        "target, serve it elsewhere: `capture --target-url URL`, then `evaluate --no-latency` "
        "without --target; of a draft, use --device cpu or a GPU with more memory."
    )
