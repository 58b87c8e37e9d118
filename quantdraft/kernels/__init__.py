"""Linear modules that compute in the checkpoint's own integers, per device and format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from quantdraft.errors import UndefinedMetricError
from quantdraft.kernels.cpu import Int4Linear, Int8DynamicLinear, Int8WeightOnlyLinear

# (device type, format) -> module built from integers and scales; see `quantdraft.unpacking`.
KERNELS: dict[tuple[str, str], Callable[..., nn.Module]] = {
    ("cpu", "int4"): Int4Linear,
    ("cpu", "int8"): Int8DynamicLinear,
    ("cpu", "int8-weight-only"): Int8WeightOnlyLinear,
}


class NoKernelError(UndefinedMetricError):
    """This machine has no kernel that computes in the format: its latency is undefined."""


def kernel_for(device_type: str, weight_format: str) -> Callable[..., Any]:
    """The module class for a format on a device; NoKernelError says which formats have one."""
    kernel = KERNELS.get((device_type, weight_format))
    if kernel is None:
        known = ", ".join(name for device, name in KERNELS if device == device_type) or "none"
        raise NoKernelError(
            f"no {device_type} kernel computes in {weight_format} (there are kernels for: {known})"
        )
    return kernel
