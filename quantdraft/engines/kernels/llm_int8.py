"""LLM.int8() weights, multiplied by the bitsandbytes library as it is.

Inputs are rounded to INT8 row by row; columns in which some input reaches the threshold are
multiplied in 16 bits, with those columns of the weight turned back into floats in every call.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from quantdraft.checkpoints.formats import LLM_INT8_THRESHOLD
from quantdraft.checkpoints.tensors.unpacking import Unpacked
from quantdraft.engines.kernels.codebook import bitsandbytes_library
from quantdraft.engines.kernels.layout import as_buffer, row_scales


class LlmInt8Linear(nn.Module):
    """A weight of INT8 rows: `bitsandbytes.matmul` with its outlier columns."""

    integers: Tensor
    largest: Tensor
    bias: Tensor | None

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self._library = bitsandbytes_library("LLM.int8()")
        # It would say of every product that its inputs become float16: that is the method.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        self.out_features, self.in_features = weight.integers.shape
        self.kernel = f"bitsandbytes_llm_int8_{weight.integers.device.type}"
        self.register_buffer("integers", weight.integers.contiguous())
        self.register_buffer("largest", 127 * row_scales(weight).float().contiguous())
        self.register_buffer("bias", as_buffer(bias, dtype))
        self._state = self._library.MatmulLtState()
        self._state.threshold = LLM_INT8_THRESHOLD
        self._state.has_fp16_weights = self._state.is_training = False
        self._state.CB, self._state.SCB = self.integers, self.largest

    @property
    def weight_bytes(self) -> int:
        """Bytes of integers and scales that one product reads."""
        return int(self.integers.nbytes + self.largest.nbytes)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in x's float type."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        out: Tensor = self._library.matmul(x, self.integers, bias=bias, state=self._state)
        return out.to(x.dtype)
