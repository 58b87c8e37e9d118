"""Backends: each turns a staged full-precision checkpoint into a quantized one.

A backend's library is imported by its own file only, when it is called.
"""

from __future__ import annotations

from collections.abc import Callable

from quantdraft.quantize.backends import bitsandbytes, gptqmodel, identity, llmcompressor
from quantdraft.quantize.backends.job import QuantizationJob

BACKENDS: dict[str, Callable[[QuantizationJob], None]] = {
    "none": identity.quantize,
    "llmcompressor": llmcompressor.quantize,
    "bitsandbytes": bitsandbytes.quantize,
    "gptqmodel": gptqmodel.quantize,
}
