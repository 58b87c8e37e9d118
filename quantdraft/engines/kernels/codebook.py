"""NF4 and FP4 weights, multiplied by the bitsandbytes library.

On a CPU without AVX-512 and bf16 instructions that library turns the whole weight into floats in
every call: it saves memory and no time, and is measured as it is.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from quantdraft.checkpoints.tensors.unpacking import Codebook
from quantdraft.errors import NoKernelError

INSTALL = "pip install 'quantdraft[bitsandbytes]'"


class BitsandbytesLinear(nn.Module):
    """A weight of indices into 16 values: `bitsandbytes.matmul_4bit`."""

    packed: Tensor
    absmax: Tensor
    table: Tensor
    bias: Tensor | None

    def __init__(self, weight: Codebook, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self._library = bitsandbytes_library(weight.name)
        self.out_features, self.in_features = weight.shape
        self.kernel = f"bitsandbytes_{weight.name}_{weight.integers.device.type}"
        double = weight.double
        self.register_buffer("packed", weight.integers.reshape(-1, 1).contiguous())
        self.register_buffer("absmax", weight.scale.contiguous())
        self.register_buffer("table", weight.table.float().contiguous())
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype))
        self.nested_bytes = 0 if double is None else double.scale.nbytes + double.table.nbytes
        self._state = self._quant_state(weight, dtype)

    def _quant_state(self, weight: Codebook, dtype: torch.dtype) -> Any:
        """What bitsandbytes keeps beside a packed weight; its tensors are this module's own."""
        build, double, nested = self._library.functional.QuantState, weight.double, {}
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

    @property
    def weight_bytes(self) -> int:
        """Bytes of indices and scales that one product reads."""
        return int(self.packed.nbytes + self.absmax.nbytes + self.nested_bytes)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in x's float type."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        out: Tensor = self._library.matmul_4bit(x, self.packed, self._state, bias=bias)
        return out


def code_table(name: str) -> Tensor:
    """The 16 values of nf4 or fp4, (16,) float32."""
    table: Tensor = bitsandbytes_library(name).functional.get_4bit_type(name, device="cpu")
    return table.float()


def bitsandbytes_library(weight_format: str) -> ModuleType:
    """The package; NoKernelError with the command that installs it where it is missing."""
    try:
        import bitsandbytes
    except ImportError as error:
        raise NoKernelError(
            f"{weight_format} needs the package 'bitsandbytes': {INSTALL}"
        ) from error
    library: ModuleType = bitsandbytes
    return library
