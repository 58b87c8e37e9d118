"""Products that vLLM's build for CUDA brings: CUTLASS for 8-bit inputs, Machete for 4-bit weights.

Inputs are rounded as for all other products of their format; the library multiplies and scales.
Its Marlin is in `marlin`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantdraft.checkpoints.tensors.unpacking import Unpacked
from quantdraft.engines.kernels.cuda import FP8, Fp8BlockLinear, Fp8Linear, Int8Linear, round_rows
from quantdraft.engines.kernels.linear import (
    KernelLinear,
    group_size_of,
    require_symmetric,
)
from quantdraft.engines.kernels.marlin import TYPES, pack_columns, scalar_type_id
from quantdraft.engines.kernels.requirements import require_capability
from quantdraft.engines.kernels.vllm_library import vllm_operators
from quantdraft.errors import NoKernelError


class Fp8CutlassLinear(Fp8Linear):
    """FP8 weights, one scale a row; activations rounded to FP8 per token: CUTLASS by vLLM.

    Sums of partial products may be kept in fewer bits than float32, as torch's are.
    """

    kernel = "fp8_cutlass_vllm"

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(weight, bias, dtype)
        (self._operator,) = vllm_operators("cutlass_scaled_mm")

    def _product(self, rows: Tensor) -> Tensor:
        rounded, step = round_rows(rows, FP8)
        out = rows.new_empty((len(rows), len(self.values)), dtype=torch.bfloat16)
        self._operator(out, rounded, self.values.t(), step, self.scale[:, None], None)
        return out


class Int8CutlassLinear(Int8Linear):
    """INT8 weights, one scale a row; activations rounded per token: CUTLASS by vLLM, one launch."""

    kernel = "int8_cutlass_vllm"

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(weight, bias, dtype)
        (self._operator,) = vllm_operators("cutlass_scaled_mm")

    def _product(self, rows: Tensor) -> Tensor:
        rounded, step = round_rows(rows, torch.int8)
        out = rows.new_empty((len(rows), len(self.values)), dtype=torch.bfloat16)
        self._operator(out, rounded, self.values.t(), step, self.scale[:, None], None)
        return out


class Fp8BlockCutlassLinear(Fp8BlockLinear):
    """FP8 weights with a scale for 128 x 128, activations per token and 128: CUTLASS by vLLM."""

    kernel = "fp8_block_cutlass_vllm"
    scale_multiple = 1  # CUTLASS reads the scales without room between their columns

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(weight, bias, dtype)
        (self._operator,) = vllm_operators("cutlass_scaled_mm")

    def _require(self, device: torch.device) -> None:
        require_capability(device, (9, 0), "FP8 in blocks")
        (supports,) = vllm_operators("cutlass_scaled_mm_supports_block_fp8")
        major, minor = torch.cuda.get_device_capability(device)
        if not supports(10 * major + minor):
            raise NoKernelError(f"vLLM has no FP8 in blocks for capability {major}.{minor}")

    def _product(self, rounded: Tensor, step: Tensor) -> Tensor:
        out = step.new_empty((len(rounded), self.out_features), dtype=torch.bfloat16)
        self._operator(out, rounded, self.values.t(), step, self.scale.t(), None)
        return out


class Int4MacheteLinear(KernelLinear):
    """Symmetric 4-bit weights in groups on Hopper: vLLM's Machete."""

    kernel = "int4_machete_vllm"
    group_sizes = (64, 128)

    packed: Tensor
    scale: Tensor

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        device, (outputs, columns) = weight.integers.device, weight.integers.shape
        require_capability(device, (9, 0), "Machete")
        if torch.cuda.get_device_capability(device)[0] != 9:
            raise NoKernelError("Machete is made for compute capability 9.0 alone")
        if dtype not in TYPES:
            raise ValueError(f"Machete takes inputs in bfloat16 or float16, not {dtype}")
        if columns % 64 or outputs % 128:
            raise ValueError(f"{(outputs, columns)} is not made of Machete's tiles, 128 x 64")
        require_symmetric(weight)
        group_size = group_size_of(weight, self.group_sizes)
        prepack, self._operator = vllm_operators("machete_prepack_B", "machete_mm")
        words = pack_columns(weight.integers, 4)
        self._type = scalar_type_id(4)
        super().__init__(
            (outputs, columns),
            bias,
            dtype,
            weight.column_order,
            packed=prepack(words.t().contiguous().t(), dtype, self._type, dtype),
            scale=weight.scale.to(dtype).t().contiguous(),
        )
        self.group_size = group_size

    def _multiply(self, rows: Tensor) -> Tensor:
        out: Tensor = self._operator(
            rows.to(self.scale.dtype).contiguous(),
            self.packed,
            self._type,
            None,
            self.scale,
            None,
            self.group_size,
            None,
            None,
            None,
        )
        return out
