"""Marlin, the product of 4-bit and 8-bit weights with 16-bit inputs, as two libraries bring it.

vLLM's build for CUDA has it compiled; gptqmodel compiles it at its first use, by nvcc, in a process
of its own here, and keeps it. It takes every number of rows, symmetric weights, and shapes of 64
outputs and 128 columns, or of 128 and 64.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from quantdraft.checkpoints.tensors.unpacking import Unpacked
from quantdraft.engines.kernels.compiling import compile_fault
from quantdraft.engines.kernels.linear import (
    KernelLinear,
    group_size_of,
    require_symmetric,
    row_scales,
)
from quantdraft.engines.kernels.requirements import require_capability
from quantdraft.engines.kernels.vllm_library import vllm_operators
from quantdraft.errors import NoKernelError

TYPES = (torch.bfloat16, torch.float16)
COMPILE_SECONDS = 480.0  # dozens of files; a call on a borrowed GPU is ten minutes at most
COMPILE = """
import sys, torch
from gptqmodel.utils import marlin
dtype = getattr(torch, sys.argv[1])
if not marlin.marlin_runtime_available(dtype):
    sys.exit(str(marlin.marlin_runtime_error(dtype)))
"""
LOCKS_PER_PROCESSOR, MIN_LOCKS = 4, 128  # the most that either library asks for


@dataclass(frozen=True)
class MarlinSource:
    """One library's Marlin: its name and the two functions that are called.

    repack: (words, num_bits, columns, outputs) to the weight in tiles
    product: (rows, packed, scale, locks, num_bits, columns, outputs) to (rows, out)
    """

    name: str
    repack: Callable[..., Tensor]
    product: Callable[..., Tensor]


class MarlinLinear(KernelLinear):
    """Weights in Marlin's tiles; `num_bits` a weight, scaled by row or by group."""

    num_bits: int
    group_sizes = (32, 64, 128)

    packed: Tensor
    scale: Tensor
    locks: Tensor

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        device, (outputs, columns) = weight.integers.device, weight.integers.shape
        require_capability(device, (8, 0), "Marlin")
        if dtype not in TYPES:
            raise ValueError(f"Marlin takes inputs in bfloat16 or float16, not {dtype}")
        if not (outputs % 64 == 0 == columns % 128 or outputs % 128 == 0 == columns % 64):
            raise ValueError(f"{(outputs, columns)} is not made of Marlin's tiles, 64 x 128")
        scale = self._scales(weight)
        source = marlin_source(dtype)
        words = pack_columns(weight.integers, self.num_bits)
        super().__init__(
            (outputs, columns),
            bias,
            dtype,
            weight.column_order,
            packed=source.repack(words, self.num_bits, columns, outputs),
            scale=permute_scales(scale.to(dtype)),
        )
        self.kernel = f"{self.kernel}_{source.name}"
        self.register_buffer("locks", new_locks(device), persistent=False)
        self._product = source.product

    def _scales(self, weight: Unpacked) -> Tensor:
        """Return the scales, (out, groups)."""
        raise NotImplementedError

    def _multiply(self, rows: Tensor) -> Tensor:
        return self._product(
            rows.to(self.scale.dtype).contiguous(),
            self.packed,
            self.scale,
            self.locks,
            self.num_bits,
            self.in_features,
            self.out_features,
        )


class Int4MarlinLinear(MarlinLinear):
    """Symmetric 4-bit weights in groups."""

    kernel = "int4_marlin"
    num_bits = 4

    def _scales(self, weight: Unpacked) -> Tensor:
        require_symmetric(weight)
        group_size_of(weight, self.group_sizes)
        return weight.scale


class Int8WeightOnlyMarlinLinear(MarlinLinear):
    """Symmetric 8-bit weights with one scale a row."""

    kernel = "int8_weight_only_marlin"
    num_bits = 8

    def _scales(self, weight: Unpacked) -> Tensor:
        return row_scales(weight)[:, None]


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


def permute_scales(scale: Tensor) -> Tensor:
    """Return scales, (out, groups), as Marlin's threads read them: (groups, out).

    Of groups a thread reads the scales of outputs 8 apart, of a whole row pairs 8 apart.
    """
    outputs, groups = scale.shape
    if groups > 1:
        order = torch.arange(64).view(8, 8).t().reshape(-1)
    else:
        order = torch.arange(32).view(4, 4, 2).transpose(0, 1).reshape(-1)
    in_tiles = scale.t().contiguous().view(-1, len(order))
    return in_tiles[:, order.to(scale.device)].reshape(groups, outputs).contiguous()


def new_locks(device: torch.device) -> Tensor:
    """Return the zeros by which Marlin's thread blocks wait for each other."""
    count = MIN_LOCKS
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
        count = max(count, LOCKS_PER_PROCESSOR * processors)
    return torch.zeros(count, dtype=torch.int32, device=device)


def scalar_type_id(num_bits: int) -> int:
    """Return the number that stands for weights raised by half their range in both libraries.

    Its bits from the lowest on: 8 of an exponent, 8 of a mantissa, 1 of a sign, 32 of what is
    added, 1 for "finite alone", and the kind of NaN, which is 1 for all that has none of its own.
    """
    return num_bits << 8 | 1 << (num_bits - 1) << 17 | 1 << 50


def marlin_source(dtype: torch.dtype) -> MarlinSource:
    """Return the Marlin of the first library that has one here; NoKernelError with all reasons."""
    faults = []
    try:
        return vllm_marlin()
    except NoKernelError as error:
        faults.append(str(error))
    try:
        return gptqmodel_marlin(dtype)
    except NoKernelError as error:
        faults.append(str(error))
    raise NoKernelError("; ".join(faults))


def vllm_marlin() -> MarlinSource:
    """Return vLLM's Marlin."""
    repack, product = vllm_operators("gptq_marlin_repack", "marlin_gemm")

    def multiply(
        rows: Tensor,
        packed: Tensor,
        scale: Tensor,
        locks: Tensor,
        num_bits: int,
        columns: int,
        outputs: int,
    ) -> Tensor:
        none = locks[:0]  # for a zero point
        sizes = (len(rows), outputs, columns)
        # Without atomic additions, sums in float32, no zero point in floats: as vLLM calls it.
        out: Tensor = product(
            *(rows, None, packed, None, scale, None, None, none, locks, scalar_type_id(num_bits)),
            *(*sizes, False, True, False),
        )
        return out

    return MarlinSource(
        "vllm",
        lambda words, num_bits, columns, outputs: repack(words, columns, outputs, num_bits, False),
        multiply,
    )


def gptqmodel_marlin(dtype: torch.dtype) -> MarlinSource:
    """Return gptqmodel's Marlin, compiled if it was not yet; NoKernelError where it cannot be."""
    fault = gptqmodel_fault(dtype)
    if fault is not None:
        raise NoKernelError(fault)
    library, types = _load("marlin"), _load("marlin_scalar_type").scalar_types
    type_of = {4: types.uint4b8, 8: types.uint8b128}

    def repack(words: Tensor, num_bits: int, columns: int, outputs: int) -> Tensor:
        packed: Tensor = library.gptq_marlin_repack(
            words,
            perm=words.new_empty(0),
            size_k=columns,
            size_n=outputs,
            num_bits=num_bits,
            dtype=dtype,
        )
        return packed

    def multiply(
        rows: Tensor,
        packed: Tensor,
        scale: Tensor,
        locks: Tensor,
        num_bits: int,
        columns: int,
        outputs: int,
    ) -> Tensor:
        none = locks[:0]  # for a zero point, and for an order of columns
        out: Tensor = library.apply_gptq_marlin_linear(
            input=rows,
            weight=packed,
            weight_scale=scale,
            weight_zp=none,
            g_idx=none,
            g_idx_sort_indices=none,
            workspace=locks,
            wtype=type_of[num_bits],
            output_size_per_partition=outputs,
            input_size_per_partition=columns,
            is_k_full=True,
            use_fp32_reduce=True,
        )
        return out

    return MarlinSource("gptqmodel", repack, multiply)


@functools.cache
def gptqmodel_fault(dtype: torch.dtype) -> str | None:
    """Return why gptqmodel's Marlin cannot run here, or None; the first call may compile it."""
    if find_spec("gptqmodel") is None:
        return "Marlin needs the package 'gptqmodel': pip install 'quantdraft[gptqmodel]'"
    if shutil.which("nvcc") is None:
        return "gptqmodel compiles Marlin at its first use: it needs CUDA's nvcc on PATH"
    name, version = str(dtype).removeprefix("torch."), metadata.version("gptqmodel")
    fault = compile_fault(
        "gptqmodel", f"Marlin for {name}", COMPILE, (name, version), COMPILE_SECONDS
    )
    if fault is not None:
        return fault
    marlin = _load("marlin")  # what was compiled is found and loaded
    if marlin.marlin_runtime_available(dtype):
        return None
    lines = str(marlin.marlin_runtime_error(dtype)).splitlines()
    return f"Marlin cannot be loaded here: {lines[0] if lines else 'unknown'}"


def _load(name: str) -> Any:
    """Import a module of gptqmodel, which prints a banner and sets variables of the environment."""
    before = set(os.environ)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        module = import_module(f"gptqmodel.utils.{name}")
    for added in set(os.environ) - before:
        del os.environ[added]
    return module
