"""Linear modules that compute in the checkpoint's own integers, per device and format.

A kernel is a `KernelLinear` built as `Kernel(weight, bias, dtype)`. It has `kernel`, its name in
the record, `weight_bytes`, and a forward from (..., in) to (..., out) in its input type. It raises
ValueError for a weight that it cannot take, and NoKernelError for what this machine lacks.
"""

from __future__ import annotations

from typing import Any

from quantdraft.engines.kernels.bitsandbytes import BitsandbytesLinear, LlmInt8Linear
from quantdraft.engines.kernels.cpu import (
    Int4Linear,
    Int8DynamicLinear,
    Int8OnednnLinear,
    Int8WeightOnlyLinear,
)
from quantdraft.engines.kernels.cuda import (
    Fp8BlockLinear,
    Fp8Linear,
    Fp8TritonLinear,
    Int4TinygemmLinear,
    Int4TritonLinear,
    Int8CublasLinear,
    Int8TritonLinear,
    Int8WeightOnlyTritonLinear,
)
from quantdraft.engines.kernels.dense import DenseLinear, PrepackedLinear, WeightFirstLinear
from quantdraft.engines.kernels.dequantizing import Int8DequantizingLinear
from quantdraft.engines.kernels.few_rows import (
    Bf16FewRowsLinear,
    F32FewRowsLinear,
    Int4FewRowsLinear,
    Int8DynamicFewRowsLinear,
    Int8FewRowsLinear,
)
from quantdraft.errors import NoKernelError

# (device type, format) -> kernels that may be the fastest for it; `choice` measures which is, and
# keeps the first where trials do not tell them apart: ours are part of a fused pass.
KERNELS: dict[tuple[str, str], tuple[type[Any], ...]] = {
    ("cpu", "dense"): (
        Bf16FewRowsLinear,
        F32FewRowsLinear,
        DenseLinear,
        WeightFirstLinear,
        PrepackedLinear,
    ),
    ("cpu", "int4"): (Int4FewRowsLinear, Int4Linear),
    ("cpu", "int8"): (Int8DynamicFewRowsLinear, Int8DynamicLinear, Int8OnednnLinear),
    ("cpu", "int8-weight-only"): (Int8FewRowsLinear, Int8WeightOnlyLinear),
    ("cpu", "nf4"): (BitsandbytesLinear,),
    ("cpu", "fp4"): (BitsandbytesLinear,),
    ("cpu", "llm-int8"): (LlmInt8Linear,),
    ("cuda", "dense"): (DenseLinear,),
    ("cuda", "int4"): (Int4TinygemmLinear, Int4TritonLinear),
    ("cuda", "int8"): (Int8CublasLinear, Int8TritonLinear),
    ("cuda", "int8-weight-only"): (Int8WeightOnlyTritonLinear, Int8DequantizingLinear),
    ("cuda", "fp8"): (Fp8Linear, Fp8TritonLinear),
    ("cuda", "fp8-block"): (Fp8BlockLinear,),
    ("cuda", "nf4"): (BitsandbytesLinear,),
    ("cuda", "fp4"): (BitsandbytesLinear,),
    ("cuda", "llm-int8"): (LlmInt8Linear,),
}


def kernels_for(device_type: str, weight_format: str) -> tuple[type[Any], ...]:
    """Return the kernels of a format on a device; NoKernelError lists the formats that have one."""
    kernels = KERNELS.get((device_type, weight_format))
    if kernels is None:
        known = ", ".join(name for device, name in KERNELS if device == device_type) or "none"
        raise NoKernelError(
            f"no {device_type} kernel computes in {weight_format} (there are kernels for: {known})"
        )
    return kernels
