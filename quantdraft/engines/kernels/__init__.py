"""Linear modules that compute in the checkpoint's own integers, per device and format.

A kernel is a `KernelLinear` built as `Kernel(weight, bias, dtype)`. It has `kernel`, its name in
the record, `weight_bytes`, and a forward from (..., in) to (..., out) in its input type. It raises
ValueError for a weight that it cannot take, and NoKernelError for what this machine lacks.
"""

from __future__ import annotations

from typing import Any

from quantdraft.engines.kernels import (
    bitsandbytes,
    cpu,
    cuda,
    dense,
    dequantizing,
    few_rows,
    humming,
    marlin,
    vllm_products,
)
from quantdraft.errors import NoKernelError

# (device type, format) -> kernels that may be the fastest for it; `choice` measures which is, and
# keeps the first where trials do not tell them apart: ours are part of a fused pass.
KERNELS: dict[tuple[str, str], tuple[type[Any], ...]] = {
    ("cpu", "dense"): (
        few_rows.Bf16FewRowsLinear,
        few_rows.F32FewRowsLinear,
        dense.DenseLinear,
        dense.WeightFirstLinear,
        dense.PrepackedLinear,
    ),
    ("cpu", "int4"): (few_rows.Int4FewRowsLinear, cpu.Int4Linear),
    ("cpu", "int8"): (
        few_rows.Int8DynamicFewRowsLinear,
        cpu.Int8DynamicLinear,
        cpu.Int8OnednnLinear,
    ),
    ("cpu", "int8-weight-only"): (few_rows.Int8FewRowsLinear, cpu.Int8WeightOnlyLinear),
    ("cpu", "nf4"): (bitsandbytes.BitsandbytesLinear,),
    ("cpu", "fp4"): (bitsandbytes.BitsandbytesLinear,),
    ("cpu", "llm-int8"): (bitsandbytes.LlmInt8Linear,),
    ("cuda", "dense"): (dense.DenseLinear, dense.WeightFirstLinear, cuda.Bf16TritonLinear),
    ("cuda", "int4"): (
        cuda.Int4TinygemmLinear,
        cuda.Int4TritonLinear,
        marlin.Int4MarlinLinear,
        vllm_products.Int4MacheteLinear,
        humming.Int4HummingLinear,
    ),
    ("cuda", "int8"): (
        cuda.Int8CublasLinear,
        cuda.Int8TritonLinear,
        vllm_products.Int8CutlassLinear,
    ),
    ("cuda", "int8-weight-only"): (
        cuda.Int8WeightOnlyTritonLinear,
        dequantizing.Int8DequantizingLinear,
        marlin.Int8WeightOnlyMarlinLinear,
        humming.Int8WeightOnlyHummingLinear,
    ),
    ("cuda", "fp8"): (cuda.Fp8Linear, cuda.Fp8TritonLinear, vllm_products.Fp8CutlassLinear),
    ("cuda", "fp8-block"): (cuda.Fp8BlockLinear, vllm_products.Fp8BlockCutlassLinear),
    ("cuda", "nf4"): (bitsandbytes.BitsandbytesLinear,),
    ("cuda", "fp4"): (bitsandbytes.BitsandbytesLinear,),
    ("cuda", "llm-int8"): (bitsandbytes.LlmInt8Linear,),
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
