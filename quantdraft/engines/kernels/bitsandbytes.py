"""Kernels of the bitsandbytes library: NF4 and FP4 weights, and LLM.int8().

Both are measured as the library is. On a CPU without AVX-512 and bf16 instructions it turns a whole
4-bit weight into floats in every call: that saves memory and no time. LLM.int8() rounds inputs row
by row, and multiplies the columns in which some input reaches the threshold in 16 bits. It looks
for those columns on the host, which no CUDA graph can hold: on a GPU its trial says so.
"""

from __future__ import annotations

import logging
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from quantdraft.checkpoints.formats import LLM_INT8_THRESHOLD
from quantdraft.checkpoints.tensors.unpacking import Codebook, Unpacked
from quantdraft.engines.kernels.linear import KernelLinear, row_scales
from quantdraft.errors import NoKernelError

INSTALL = "pip install 'quantdraft[bitsandbytes]'"


class BitsandbytesLinear(KernelLinear):
    """A weight of indices into 16 values: `bitsandbytes.matmul_4bit`."""

    packed: Tensor
    absmax: Tensor
    table: Tensor

    def __init__(self, weight: Codebook, bias: Tensor | None, dtype: torch.dtype) -> None:
        library = bitsandbytes_library(weight.name)
        super().__init__(
            weight.shape,
            bias,
            dtype,
            packed=weight.integers.reshape(-1, 1).contiguous(),
            absmax=weight.scale.contiguous(),
            table=weight.table.float().contiguous(),
        )
        double = weight.double
        nested_bytes = 0 if double is None else double.scale.nbytes + double.table.nbytes
        self.kernel = f"bitsandbytes_{weight.name}_{weight.integers.device.type}"
        self.weight_bytes = self.packed.nbytes + self.absmax.nbytes + nested_bytes
        self._product = library.matmul_4bit  # no module among the fields: a copy is made of this
        self._state = self._quant_state(weight, dtype, library)

    def _quant_state(self, weight: Codebook, dtype: torch.dtype, library: ModuleType) -> Any:
        """Return what bitsandbytes keeps beside a packed weight; its tensors are this module's."""
        build, double, nested = library.functional.QuantState, weight.double, {}
        if double is not None:
            device = self.packed.device
            nested = {
                "offset": torch.tensor(double.offset, device=device),
                "state2": build(
                    absmax=double.scale.float(),
                    blocksize=double.block_size,
                    code=double.table.float(),
                    dtype=torch.float32,
                ),
            }
        return build(
            absmax=self.absmax,
            shape=torch.Size(weight.shape),
            code=self.table,
            blocksize=weight.block_size,
            quant_type=weight.name,
            dtype=dtype,
            **nested,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out), in x's float type."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        out: Tensor = self._product(x, self.packed, self._state, bias=bias)
        return out


class LlmInt8Linear(KernelLinear):
    """A weight of INT8 rows: `bitsandbytes.matmul` with its outlier columns."""

    integers: Tensor
    largest: Tensor

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        library = bitsandbytes_library("LLM.int8()")
        # It would say of every product that its inputs become float16: that is the method.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        super().__init__(
            weight.integers.shape,
            bias,
            dtype,
            integers=weight.integers.contiguous(),
            largest=127 * row_scales(weight).contiguous(),
        )
        self.kernel = f"bitsandbytes_llm_int8_{weight.integers.device.type}"
        self._product, self._state = library.matmul, library.MatmulLtState()
        self._state.threshold = LLM_INT8_THRESHOLD
        self._state.has_fp16_weights = self._state.is_training = False
        self._state.CB, self._state.SCB = self.integers, self.largest

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out), in x's float type."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        out: Tensor = self._product(x, self.integers, bias=bias, state=self._state)
        return out.to(x.dtype)


def code_table(name: str) -> Tensor:
    """Return the 16 values of nf4 or fp4, (16,) float32."""
    table: Tensor = bitsandbytes_library(name).functional.get_4bit_type(name, device="cpu")
    return table.float()


def bitsandbytes_library(weight_format: str) -> ModuleType:
    """Import the package; NoKernelError with the command that installs it where it is missing."""
    try:
        import bitsandbytes
    except ImportError as error:
        raise NoKernelError(
            f"{weight_format} needs the package 'bitsandbytes': {INSTALL}"
        ) from error
    library: ModuleType = bitsandbytes
    return library
