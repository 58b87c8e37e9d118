"""The tensors that each library stores for a quantized weight: names, types and shapes.

Plain data, no torch. A weight of shape (out, in) becomes these tensors; `dense_shape` goes back,
from the headers of what is stored. `formats` writes the layouts that recipes make; the rest is
only read: AWQ's, ModelOpt's, fine-grained FP8, FBGEMM's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from quantdraft.checkpoints.formats import WeightFormat
from quantdraft.checkpoints.weights import TensorInfo

# Tensors of a quantized module that a file may leave out, by library.
OPTIONAL: Mapping[str, frozenset[str]] = {
    "compressed-tensors": frozenset(
        {
            "weight_shape",
            "weight_g_idx",
            "weight_zero_point",
            "input_scale",
            "input_zero_point",
            "input_global_scale",
            "output_scale",
            "output_zero_point",
        }
    ),
    "gptq": frozenset({"g_idx"}),
    "bitsandbytes": frozenset({"weight_format"}),
    "awq": frozenset(),
    "awq-gemv": frozenset(),
    "modelopt": frozenset({"pre_quant_scale"}),
    "fp8": frozenset({"input_scale", "activation_scale"}),
    "fbgemm_fp8": frozenset({"input_scale_ub"}),
    "mxfp4": frozenset(),
}
FP8_SCALES = ("weight_scale_inv", "weight_scale")  # with blocks, and without: by the writer


def stored_tensors(fmt: WeightFormat, weight: TensorInfo) -> dict[str, TensorInfo]:
    """Return what a float weight of shape (out, in) is stored as, by the part's name."""
    if fmt.library in _READ_ONLY:
        return _READ_ONLY[fmt.library](fmt, weight)
    return {name.removeprefix("m."): info for name, info in fmt.stored("m", weight).items()}


def dense_shape(
    fmt: WeightFormat, parts: Mapping[str, TensorInfo], noted: tuple[int, ...] | None
) -> tuple[int, ...]:
    """Return the shape (out, in) of the weight that a module's stored parts stand for.

    parts: by the part's name, with at least the one that holds the values
    noted: the shape that a bookkeeping tensor says, where there is one
    """
    if noted is not None:
        return noted
    rows, columns = parts[values_name(fmt)].shape
    each = 32 // fmt.num_bits
    if fmt.library == "gptq":  # its odd widths run on from word to word
        return columns, rows * 32 // fmt.num_bits
    if fmt.library == "awq":
        return columns * each, rows
    if fmt.library == "modelopt" and fmt.num_bits == 4 and fmt.kind == "int":
        return rows * 2, columns
    if fmt.library == "awq-gemv" or fmt.layout == "pack-quantized":
        return rows, columns * 32 // fmt.num_bits
    is_bytes = fmt.kind == "float" and fmt.num_bits == 4
    return rows, columns * 2 if is_bytes else columns


def values_name(fmt: WeightFormat) -> str:
    """Return the name of the part that holds the weight's values."""
    if fmt.library in {"gptq", "awq", "awq-gemv"}:
        return "qweight"
    return "weight_packed" if "pack" in fmt.layout else "weight"


def _store_awq(fmt: WeightFormat, weight: TensorInfo) -> dict[str, TensorInfo]:
    """Return AutoAWQ's tensors: for GEMM transposed and packed along the outputs."""
    rows, columns = weight.shape
    groups = math.ceil(columns / (fmt.group_size or columns))
    each = 32 // fmt.num_bits
    if fmt.library == "awq":
        shapes = (columns, rows // each), (groups, rows // each), (groups, rows)
    else:
        width = awq_zeros_width(columns, fmt.group_size or columns, each)
        shapes = (rows, columns // each), (rows, width), (rows, width * each)
    return {
        "qweight": replace(weight, dtype="I32", shape=shapes[0]),
        "qzeros": replace(weight, dtype="I32", shape=shapes[1]),
        "scales": replace(weight, dtype="F16", shape=shapes[2]),
    }


def awq_zeros_width(columns: int, group_size: int, each: int = 8) -> int:
    """Return how many words a row's zero points take in AutoAWQ's GEMV layout."""
    multiple = {64: 2, 32: 4, 16: 8}.get(group_size, 1)
    words = math.ceil(columns // group_size / each)
    return math.ceil(words / multiple) * multiple


def _store_modelopt(fmt: WeightFormat, weight: TensorInfo) -> dict[str, TensorInfo]:
    rows, columns = weight.shape
    one = replace(weight, dtype="F32", shape=())
    scale = replace(weight, dtype="F32", shape=fmt.scale_shape((rows, columns)))
    tensors = {"weight": replace(weight, dtype="F8_E4M3"), "weight_scale": scale}
    if fmt.kind == "int" and fmt.num_bits == 8:
        tensors["weight"] = replace(weight, dtype="I8")
    if fmt.num_bits == 4:
        packed = (rows // 2, columns) if fmt.kind == "int" else (rows, columns // 2)
        tensors["weight"] = replace(weight, dtype="U8", shape=packed)
    if fmt.scale_type != "float":
        stored = "F8_E4M3" if fmt.scale_type == "e4m3" else "U8"
        tensors["weight_scale"] = replace(scale, dtype=stored)
    if fmt.scale_type == "e4m3" or (fmt.kind == "int" and fmt.activations == "float8"):
        tensors["weight_scale_2"] = one
    if fmt.has_static_inputs:
        tensors["input_scale"] = one
    return tensors


def _store_fp8(fmt: WeightFormat, weight: TensorInfo) -> dict[str, TensorInfo]:
    scale = replace(weight, dtype="F32", shape=fmt.scale_shape(weight.shape))
    name = FP8_SCALES[0] if fmt.block else FP8_SCALES[1]
    tensors = {"weight": replace(weight, dtype="F8_E4M3"), name: scale}
    if fmt.has_static_inputs:
        tensors["input_scale"] = replace(scale, shape=())
    return tensors


def _store_fbgemm(fmt: WeightFormat, weight: TensorInfo) -> dict[str, TensorInfo]:
    scale = replace(weight, dtype="F32", shape=fmt.scale_shape(weight.shape))
    return {"weight": replace(weight, dtype="F8_E4M3"), "weight_scale": scale}


_READ_ONLY: Mapping[str, Callable[[WeightFormat, TensorInfo], dict[str, TensorInfo]]] = {
    "awq": _store_awq,
    "awq-gemv": _store_awq,
    "modelopt": _store_modelopt,
    "fp8": _store_fp8,
    "fbgemm_fp8": _store_fbgemm,
}
