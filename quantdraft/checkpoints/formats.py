"""Formats of quantized weights: bits, scales and the stored tensors. Plain data, no torch.

Three layouts of files are written: compressed-tensors (`weight_packed`, `weight_scale`),
AutoGPTQ's (`qweight`, `qzeros`, `scales`) and bitsandbytes' (`weight`, `weight.absmax`). More are
read: see `foreign_layouts`. Left out: GGUF.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from quantdraft.checkpoints.weights import TensorInfo

BNB_BLOCK = 64  # weights in a row of the flattened matrix that share an absolute maximum
BNB_NESTED_BLOCK = 256  # of those maxima, how many share one in turn when they are quantized too
LLM_INT8_THRESHOLD = 6.0  # LLM.int8() keeps a column in 16 bits where some input reaches this
# Tensors that describe a weight to its loader; they are read once, not in every step.
BOOKKEEPING_SUFFIXES = (
    ".weight_shape",
    ".g_idx",
    ".weight_format",
    ".quant_map",
    ".nested_quant_map",
    ".quant_state.bitsandbytes__nf4",
    ".quant_state.bitsandbytes__fp4",
)
# Tensors that hold a text with numbers: their length is not known before the numbers are.
FREE_LENGTH = (".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4")

# Who wrote the files: their names, types and packing.
Library = Literal[
    "compressed-tensors",
    "gptq",
    "bitsandbytes",
    "awq",
    "awq-gemv",
    "modelopt",
    "fp8",
    "fbgemm_fp8",
    "mxfp4",
]


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """The format of a Linear's weight, and of its inputs where these are quantized too."""

    num_bits: int
    kind: Literal["int", "float", "nf4", "fp4"]  # the last two: bitsandbytes' 16 values
    group_size: int | None = None  # weights of a row that share a scale; None: the whole row
    block: tuple[int, int] | None = None  # rows and columns that share a scale
    # Of the inputs, per token, or per group in a block format.
    activations: Literal["int8", "float8", "float4"] | None = None
    is_symmetric: bool = True
    input_group_size: int | None = None  # inputs that share a scale; None: the whole token
    has_static_inputs: bool = False  # calibrated: the file holds a scale for all inputs
    scale_type: Literal["float", "e4m3", "e8m0"] = "float"  # e4m3: under one float for the tensor
    has_one_scale: bool = False  # one for the whole weight
    library: Library = "compressed-tensors"
    is_double: bool = False  # bitsandbytes: the scales are quantized as well
    own_layout: str | None = None  # compressed-tensors': where it is not the scheme's usual one
    has_input_factors: bool = False  # AWQ's, kept beside the weight: inputs are multiplied first
    input_bound: float | None = None  # FBGEMM: inputs are clamped to it before they are rounded
    has_column_order: bool = (
        False  # columns are grouped by importance: the file says which is where
    )

    @property
    def layout(self) -> str:
        """The name compressed-tensors has for this layout; of other libraries, the library's."""
        if self.library != "compressed-tensors":
            return self.library
        if self.own_layout is not None:
            return self.own_layout
        if self.scale_type == "e4m3":
            return "nvfp4-pack-quantized"
        if self.scale_type == "e8m0":
            return "mxfp4-pack-quantized" if self.num_bits == 4 else "mxfp8-quantized"
        if self.kind == "float":
            return "float-quantized"
        is_wide = self.activations == "int8" and self.num_bits == 8
        return "int-quantized" if is_wide else "pack-quantized"

    @property
    def name(self) -> str:
        """What a kernel has to compute in, as `quantdraft.engines.kernels` lists it."""
        return self._plain_name + ("-scaled-inputs" if self.has_input_factors else "")

    @property
    def _plain_name(self) -> str:
        if self.library == "bitsandbytes":
            return self.kind if self.num_bits == 4 else "llm-int8"
        if self.kind == "int" and self.num_bits == 8:
            if self.has_static_inputs:
                return "int8-static"
            return "int8" if self.activations else "int8-weight-only"
        if self.kind == "int":
            return f"int{self.num_bits}" + ("-fp8" if self.activations == "float8" else "")
        return self._float_name

    @property
    def _float_name(self) -> str:
        suffix = "" if self.activations else "-weight-only"
        if self.scale_type == "e4m3":
            return f"nvfp4{suffix}"
        if self.scale_type == "e8m0":
            return f"mxfp{self.num_bits}{suffix}"
        if self.block:
            return "fp8-block"
        return "fp8-static" if self.has_static_inputs else f"fp8{suffix}"

    @property
    def value_dtype(self) -> str:
        """The stored element type, as safetensors spells it."""
        if self.layout in {"float-quantized", "mxfp8-quantized"}:
            return "F8_E4M3"
        if self.layout == "naive-quantized":
            return "F8_E4M3" if self.kind == "float" else "I8"
        if self.layout == "int-quantized" or (self.library, self.num_bits) == ("bitsandbytes", 8):
            return "I8"
        is_bytes = "fp4" in self.layout or self.library == "bitsandbytes"
        return "U8" if is_bytes else "I32"

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the scales of a weight of shape (out, in)."""
        rows, columns = shape
        if self.has_one_scale:
            return (1,)
        if self.block is not None:
            return math.ceil(rows / self.block[0]), math.ceil(columns / self.block[1])
        return rows, 1 if self.group_size is None else math.ceil(columns / self.group_size)

    def stored(self, module: str, weight: TensorInfo) -> dict[str, TensorInfo]:
        """Return the tensors that a float weight of shape (out, in) becomes, by name."""
        if self.library == "gptq":
            return self._stored_gptq(module, weight)
        if self.library == "bitsandbytes":
            return self._stored_bitsandbytes(module, weight)
        return self._stored_values(module, weight) | self._stored_scales(module, weight)

    def _stored_values(self, module: str, weight: TensorInfo) -> dict[str, TensorInfo]:
        rows, columns = weight.shape
        if "pack" not in self.layout:
            return {f"{module}.weight": replace(weight, dtype=self.value_dtype)}
        bits_each = 8 if self.value_dtype == "U8" else 32
        words = math.ceil(columns * self.num_bits / bits_each)
        packed = replace(weight, dtype=self.value_dtype, shape=(rows, words))
        values = {f"{module}.weight_packed": packed}
        if self.layout == "pack-quantized":
            values[f"{module}.weight_shape"] = replace(weight, dtype="I64", shape=(2,))
        return values

    def _stored_scales(self, module: str, weight: TensorInfo) -> dict[str, TensorInfo]:
        dtype = {"float": weight.dtype, "e4m3": "F8_E4M3", "e8m0": "U8"}[self.scale_type]
        shape = self.scale_shape(weight.shape)
        scales = {f"{module}.weight_scale": replace(weight, dtype=dtype, shape=shape)}
        one = replace(weight, dtype="F32", shape=(1,))
        if self.scale_type == "e4m3":
            scales[f"{module}.weight_global_scale"] = one
        if self.has_static_inputs:
            is_global = self.scale_type == "e4m3"
            name = "input_global_scale" if is_global else "input_scale"
            scales[f"{module}.{name}"] = one if is_global else replace(one, dtype=weight.dtype)
        if not self.is_symmetric and "pack" not in self.layout:
            scales[f"{module}.weight_zero_point"] = replace(weight, dtype="I8", shape=shape)
        elif not self.is_symmetric:  # packed along the rows
            words = (math.ceil(shape[0] * self.num_bits / 32), *shape[1:])
            scales[f"{module}.weight_zero_point"] = replace(weight, dtype="I32", shape=words)
        return scales

    def _stored_gptq(self, module: str, weight: TensorInfo) -> dict[str, TensorInfo]:
        """Return AutoGPTQ's tensors: transposed, packed along inputs, zero points along outputs."""
        rows, columns = weight.shape
        groups = 1 if self.group_size is None else math.ceil(columns / self.group_size)
        values = (math.ceil(columns * self.num_bits / 32), rows)
        zeros = (groups, math.ceil(rows * self.num_bits / 32))
        return {
            f"{module}.qweight": replace(weight, dtype="I32", shape=values),
            f"{module}.qzeros": replace(weight, dtype="I32", shape=zeros),
            f"{module}.scales": replace(weight, dtype="F16", shape=(groups, rows)),
            f"{module}.g_idx": replace(weight, dtype="I32", shape=(columns,)),
        }

    def _stored_bitsandbytes(self, module: str, weight: TensorInfo) -> dict[str, TensorInfo]:
        rows, columns = weight.shape
        if self.num_bits == 8:
            return {
                f"{module}.weight": replace(weight, dtype="I8"),
                f"{module}.SCB": replace(weight, dtype="F32", shape=(rows,)),
                f"{module}.weight_format": replace(weight, dtype="U8", shape=()),
            }
        blocks = math.ceil(rows * columns / BNB_BLOCK)
        own = f"{module}.weight"
        tensors = {
            own: replace(weight, dtype="U8", shape=(math.ceil(rows * columns / 2), 1)),
            f"{own}.absmax": replace(
                weight, dtype="U8" if self.is_double else "F32", shape=(blocks,)
            ),
            f"{own}.quant_map": replace(weight, dtype="F32", shape=(16,)),
            f"{own}.quant_state.bitsandbytes__{self.kind}": replace(weight, dtype="U8", shape=(0,)),
        }
        if self.is_double:
            nested = math.ceil(blocks / BNB_NESTED_BLOCK)
            tensors |= {
                f"{own}.nested_absmax": replace(weight, dtype="F32", shape=(nested,)),
                f"{own}.nested_quant_map": replace(weight, dtype="F32", shape=(256,)),
            }
        return tensors


_NVFP4 = WeightFormat(4, "float", group_size=16, scale_type="e4m3")
_MXFP4 = WeightFormat(4, "float", group_size=32, scale_type="e8m0")
_NF4 = WeightFormat(4, "nf4", group_size=BNB_BLOCK, library="bitsandbytes")

SCHEMES: dict[str, WeightFormat] = {
    "FP8_DYNAMIC": WeightFormat(8, "float", activations="float8"),
    "FP8_STATIC": WeightFormat(8, "float", activations="float8", has_static_inputs=True),
    "FP8_BLOCK": WeightFormat(
        8, "float", block=(128, 128), activations="float8", input_group_size=128
    ),
    "W8A8": WeightFormat(8, "int", activations="int8"),
    "W8A16": WeightFormat(8, "int"),
    "W4A16": WeightFormat(4, "int", group_size=128),
    "W4AFP8": WeightFormat(4, "int", group_size=128, activations="float8"),
    "NVFP4": replace(_NVFP4, activations="float4", input_group_size=16, has_static_inputs=True),
    "NVFP4A16": _NVFP4,
    "MXFP4": replace(_MXFP4, activations="float4", input_group_size=32),
    "MXFP8": WeightFormat(
        8, "float", group_size=32, activations="float8", input_group_size=32, scale_type="e8m0"
    ),
    "NF4": _NF4,
    "NF4_DOUBLE": replace(_NF4, is_double=True),
    "FP4": replace(_NF4, kind="fp4"),
    "LLM_INT8": WeightFormat(8, "int", activations="int8", library="bitsandbytes"),
}
