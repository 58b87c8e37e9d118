"""Humming, the vLLM project's products of narrow weights, compiled for each shape at its first use.

Read in humming-kernels 0.1.17, which vLLM 0.32 brings, and 0.1.19: what vLLM calls for 4-bit and
8-bit weights with 16-bit inputs, symmetric or not. It needs NVRTC or nvcc with CUDA's headers, and
keeps what it has compiled.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quantdraft.checkpoints.tensors.unpacking import Unpacked
from quantdraft.engines.kernels.compiling import compile_fault
from quantdraft.engines.kernels.linear import KernelLinear, group_size_of, row_scales
from quantdraft.engines.kernels.marlin import TYPES, pack_columns
from quantdraft.engines.kernels.requirements import require_capability
from quantdraft.errors import NoKernelError, first_line, is_out_of_memory

PACKAGE = "humming-kernels"
# As vLLM pads and calls it: zeros to whole tiles, sums of tiles in float32.
OUTPUT_MULTIPLE, COLUMN_MULTIPLE = 256, 128
COMPUTE = json.dumps({"use_batch_invariant": False, "use_f16_accum": False, "gemm_type": "dense"})
COMPILE_SECONDS = 240.0  # two dozen kernels for each shape, from one row to thousands
COMPILE = """
import sys, torch, humming.ops
torch.ops.humming.prepare_kernels(torch.zeros(1, device="cuda"), sys.argv[1], sys.argv[2], None)
"""
NUM_LOCKS = 2048  # as many as the library's own layer has
QUIET = "HUMMING_DISABLE_PARALLEL_BUILD"  # its import starts compilers otherwise


class Humming(NamedTuple):
    """The library's functions that are called here."""

    schema: Callable[[dict[str, Any]], Any]  # of a weight, from a configuration
    prepare: Callable[..., tuple[Any, dict[str, Tensor]]]  # to its own layout
    forward: Callable[..., Tensor]
    version: str


class HummingLinear(KernelLinear):
    """Weights in Humming's layout; `num_bits` a weight, scaled by row or by group."""

    num_bits: int

    packed: Tensor
    scale: Tensor
    zero_point: Tensor | None
    locks: Tensor

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        device, (outputs, columns) = weight.integers.device, weight.integers.shape
        require_capability(device, (8, 0), "Humming")
        if dtype not in TYPES:
            raise ValueError(f"Humming takes inputs in bfloat16 or float16, not {dtype}")
        if outputs % 32 or columns % 32:
            raise ValueError(f"{(outputs, columns)} is not made of 32 x 32 weights")
        scale, group_size, zeros = self._scales(weight)
        library = humming_library()
        tensors = {
            "weight": pack_columns(weight.integers, self.num_bits).t().contiguous(),
            "weight_scale": scale.to(dtype).contiguous(),
        }
        if zeros is not None:
            tensors["zero_point"] = pack_columns(zeros.t(), self.num_bits)
        config, packed = library.prepare(
            tensors,
            shape_n=outputs,
            shape_k=columns,
            weight_schema=library.schema(
                {
                    "quant_method": "humming",
                    "dtype": f"int{self.num_bits}",
                    "group_size": group_size,
                    "has_zero_point": zeros is not None,
                }
            ),
            pad_n_to_multiple=OUTPUT_MULTIPLE,
            pad_k_to_multiple=COLUMN_MULTIPLE,
            torch_dtype=dtype,
            device=device,
        )
        fault = compile_fault(
            "Humming",
            f"{outputs} x {columns}",
            COMPILE,
            (config.to_str(), COMPUTE, library.version),
            COMPILE_SECONDS,
        )
        if fault is not None:
            raise NoKernelError(fault)
        super().__init__(
            (outputs, columns),
            bias,
            dtype,
            weight.column_order,
            packed=packed["weight"],
            scale=packed["weight_scale"],
            zero_point=packed.get("zero_point"),
        )
        locks = torch.zeros(NUM_LOCKS, dtype=torch.int32, device=device)
        self.register_buffer("locks", locks, persistent=False)

        def product(rows: Tensor, kernel: HummingLinear) -> Tensor:
            return library.forward(
                config,
                inputs=rows,
                weight=kernel.packed,
                weight_scale=kernel.scale,
                zero_point=kernel.zero_point,
                locks=kernel.locks,
                compute_config=COMPUTE,
            )

        self._product = product  # a function, so that copies of this share the configuration

    def _scales(self, weight: Unpacked) -> tuple[Tensor, int, Tensor | None]:
        """Return scales, (out, groups), the group's size, 0 for a row, and zero points or None."""
        raise NotImplementedError

    def _multiply(self, rows: Tensor) -> Tensor:
        return self._product(rows.to(self.scale.dtype).contiguous(), self)


class Int4HummingLinear(HummingLinear):
    """4-bit weights in groups, symmetric or not."""

    kernel = "int4_humming"
    num_bits = 4
    group_sizes = (32, 64, 128)

    def _scales(self, weight: Unpacked) -> tuple[Tensor, int, Tensor | None]:
        zeros = weight.zero_point
        zeros = None if zeros is None or not bool(zeros.any()) else zeros
        return weight.scale, group_size_of(weight, self.group_sizes), zeros


class Int8WeightOnlyHummingLinear(HummingLinear):
    """Symmetric 8-bit weights with one scale a row."""

    kernel = "int8_weight_only_humming"
    num_bits = 8

    def _scales(self, weight: Unpacked) -> tuple[Tensor, int, Tensor | None]:
        return row_scales(weight)[:, None], 0, None


def humming_library() -> Humming:
    """Import Humming; NoKernelError with what is missing for it."""
    found = _import_humming()
    if isinstance(found, str):
        raise NoKernelError(found)
    return found


@functools.cache
def _import_humming() -> Humming | str:
    """Return the library's functions, or why it cannot be used here."""
    try:
        version = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return f"Humming needs the package '{PACKAGE}': pip install '{PACKAGE}[cu13]'"
    before = os.environ.get(QUIET)
    os.environ[QUIET] = "1"
    try:
        return Humming(
            import_module("humming.schema").BaseWeightSchema.from_config,
            import_module("humming.transform").prepare_and_transform_humming_tensors,
            import_module("humming.forward").humming_forward,
            version,
        )
    except Exception as error:  # its own compilers, libraries and drivers have their own kinds
        if is_out_of_memory(error):
            raise
        return f"Humming cannot be loaded here: {first_line(error)}"
    finally:
        if before is None:
            del os.environ[QUIET]
        else:
            os.environ[QUIET] = before
