"""Marlin, the product of 4-bit and 8-bit weights with 16-bit inputs that gptqmodel brings.

It is compiled at its first use, by nvcc, and kept by that library. It takes every number of rows,
symmetric weights, and shapes of 64 outputs and 128 columns, or of 128 and 64.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import shutil
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from quantdraft.checkpoints.tensors.unpacking import Unpacked
from quantdraft.engines.kernels.linear import KernelLinear, group_size_of, row_scales
from quantdraft.engines.kernels.requirements import require_capability
from quantdraft.errors import NoKernelError

TYPES = (torch.bfloat16, torch.float16)


class MarlinLinear(KernelLinear):
    """Weights in Marlin's tiles; `num_bits` a weight, scaled by row or by group."""

    num_bits: int
    group_sizes = (32, 64, 128)

    packed: Tensor
    scale: Tensor
    workspace: Tensor
    none: Tensor  # what stands for a zero point and for an order of columns

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        device, (outputs, columns) = weight.integers.device, weight.integers.shape
        require_capability(device, (8, 0), "Marlin")
        if dtype not in TYPES:
            raise ValueError(f"Marlin takes inputs in bfloat16 or float16, not {dtype}")
        if not (outputs % 64 == 0 == columns % 128 or outputs % 128 == 0 == columns % 64):
            raise ValueError(f"{(outputs, columns)} is not made of Marlin's tiles, 64 x 128")
        scale, group_size = self._scales(weight)
        library = marlin_library(dtype)
        sizes = {"size_k": columns, "size_n": outputs}
        none = torch.empty(0, dtype=torch.int32, device=device)
        super().__init__(
            (outputs, columns),
            bias,
            dtype,
            weight.column_order,
            packed=library.gptq_marlin_repack(
                pack_columns(weight.integers, self.num_bits),
                perm=none,
                num_bits=self.num_bits,
                dtype=dtype,
                **sizes,
            ),
            scale=library.marlin_permute_scales(
                scale.to(dtype).t().contiguous(), group_size=group_size, **sizes
            ),
        )
        self.register_buffer("workspace", library.marlin_make_workspace_new(device))
        self.register_buffer("none", none)
        self._product = library.apply_gptq_marlin_linear
        self._type = scalar_type(self.num_bits)

    def _scales(self, weight: Unpacked) -> tuple[Tensor, int]:
        """Return scales, (out, groups), and the group's size: -1 for a whole row."""
        raise NotImplementedError

    def _multiply(self, rows: Tensor) -> Tensor:
        out: Tensor = self._product(
            input=rows.to(self.scale.dtype).contiguous(),
            weight=self.packed,
            weight_scale=self.scale,
            weight_zp=self.none,
            g_idx=self.none,
            g_idx_sort_indices=self.none,
            workspace=self.workspace,
            wtype=self._type,
            output_size_per_partition=self.out_features,
            input_size_per_partition=self.in_features,
            is_k_full=True,
            use_fp32_reduce=True,
        )
        return out


class Int4MarlinLinear(MarlinLinear):
    """Symmetric 4-bit weights in groups."""

    kernel = "int4_marlin"
    num_bits = 4

    def _scales(self, weight: Unpacked) -> tuple[Tensor, int]:
        if weight.zero_point is not None and bool(weight.zero_point.any()):
            raise ValueError("Marlin's weights here have no zero point: they must be symmetric")
        return weight.scale, group_size_of(weight, self.group_sizes)


class Int8WeightOnlyMarlinLinear(MarlinLinear):
    """Symmetric 8-bit weights with one scale a row."""

    kernel = "int8_weight_only_marlin"
    num_bits = 8

    def _scales(self, weight: Unpacked) -> tuple[Tensor, int]:
        return row_scales(weight)[:, None], -1


def pack_columns(integers: Tensor, num_bits: int) -> Tensor:
    """Pack symmetric integers, (out, in), as GPTQ does: (in / 32 * num_bits, out) int32.

    A word holds neighbouring columns of one output, the first in its lowest bits, each raised by
    half the range.
    """
    unsigned = integers.t().to(torch.int32) + 2 ** (num_bits - 1)
    in_words = unsigned.reshape(-1, 32 // num_bits, len(integers))
    packed = torch.zeros_like(in_words[:, 0])
    for place in range(32 // num_bits):
        packed |= in_words[:, place] << (num_bits * place)
    return packed.contiguous()


def marlin_library(dtype: torch.dtype) -> ModuleType:
    """Import gptqmodel's Marlin; NoKernelError with what is missing for it."""
    fault = marlin_fault(dtype)
    if fault is not None:
        raise NoKernelError(fault)
    library: ModuleType = _load("marlin")
    return library


def scalar_type(num_bits: int) -> Any:
    """Return the library's name of weights that are raised by half their range."""
    types = _load("marlin_scalar_type").scalar_types
    return {4: types.uint4b8, 8: types.uint8b128}[num_bits]


@functools.cache
def marlin_fault(dtype: torch.dtype) -> str | None:
    """Return why Marlin cannot run here, or None; its first call compiles it, for minutes."""
    if find_spec("gptqmodel") is None:
        return "Marlin needs the package 'gptqmodel': pip install 'quantdraft[gptqmodel]'"
    if shutil.which("nvcc") is None:
        return "Marlin is compiled at its first use: it needs CUDA's compiler, nvcc, on PATH"
    marlin = _load("marlin")
    if marlin.marlin_runtime_available(dtype):
        return None
    lines = str(marlin.marlin_runtime_error(dtype)).splitlines()
    return f"Marlin cannot be compiled or loaded here: {lines[0] if lines else 'unknown'}"


def _load(name: str) -> Any:
    """Import a module of gptqmodel, which prints a banner and sets variables of the environment."""
    before = set(os.environ)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        module = import_module(f"gptqmodel.utils.{name}")
    for added in set(os.environ) - before:
        del os.environ[added]
    return module
