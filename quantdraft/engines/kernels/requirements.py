"""What kernels need of the machine: a GPU's compute capability, and Triton with a C compiler.

A NoKernelError names what is missing and what would give it.
"""

from __future__ import annotations

import functools
import warnings
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import nn

from quantdraft.errors import NoKernelError, first_line, is_out_of_memory


def require_capability(device: torch.device, needed: tuple[int, int], what: str) -> None:
    """Raise NoKernelError where the device is a GPU too old for a format."""
    if device.type != "cuda":
        raise NoKernelError(f"{what} needs a CUDA device, not {device.type!r}")
    found = torch.cuda.get_device_capability(device)
    if found < needed:
        raise NoKernelError(
            f"{what} needs compute capability {needed[0]}.{needed[1]}; "
            f"{torch.cuda.get_device_name(device)!r} has {found[0]}.{found[1]}"
        )


def require_block_scaling(device: torch.device) -> None:
    """Raise NoKernelError where torch or the GPU has no product with a scale per block."""
    require_capability(device, (9, 0), "FP8 in blocks")
    if torch.cuda.get_device_capability(device)[0] != 9:
        raise NoKernelError("FP8 in blocks has a kernel on compute capability 9.0 alone")
    if not hasattr(nn.functional, "scaled_mm"):
        raise NoKernelError(f"torch {torch.__version__} has no product with a scale per block")


def triton_products() -> ModuleType:
    """Import the Triton kernels; NoKernelError where this machine cannot run them."""
    fault = triton_fault()
    if fault is not None:
        raise NoKernelError(fault)
    from quantdraft.engines.kernels import triton_products as products

    return products


def has_triton() -> bool:
    """Return True where Triton is installed and one of its kernels has run on the GPU."""
    return triton_fault() is None


@functools.cache
def triton_fault() -> str | None:
    """Return why Triton's kernels cannot run here, or None; tried once a process.

    An installed Triton may still be unable to launch: it builds its launcher with a C compiler,
    which slim images lack.
    """
    if find_spec("triton") is None:
        return "the package 'triton' is not installed"
    try:
        _launch_triton()
    except Exception as error:  # a compiler, a driver or Triton: each has its own kinds
        if is_out_of_memory(error):
            raise
        fault = (
            f"the package 'triton' cannot launch a kernel here ({first_line(error)}); "
            "it needs a C compiler, such as gcc, on PATH or in CC"
        )
        warnings.warn(f"Triton's kernels are not used: {fault}", stacklevel=2)
        return fault
    return None


def _launch_triton() -> None:
    """Run the smallest Triton kernel to its end."""
    from quantdraft.engines.kernels import triton_products as products

    products.round_rows_by_triton(torch.ones((1, 16), device="cuda"), torch.int8)
    torch.cuda.synchronize()
