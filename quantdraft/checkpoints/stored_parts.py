"""Hold the stored parts of a quantized module against its format: names, types, shapes. No torch.

A part that is missing, of another type or of another shape makes numbers that nobody meant, often
without an error: a scale per row that lies as one row is spread over the columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.formats import WeightFormat
from quantdraft.checkpoints.layouts import FP8_SCALES, OPTIONAL, stored_tensors, values_name
from quantdraft.checkpoints.weights import FLOAT_DTYPES, TensorInfo
from quantdraft.errors import CheckpointError

# Optional parts that a format may need after all.
NEEDED = frozenset({"input_scale", "weight_shape", "weight_zero_point"})
ORDERS = frozenset({"g_idx", "weight_g_idx"})
# Whose scales are read as numbers in a row, whether they lie as a row, a column or a list.
READ_FLAT = frozenset({"modelopt", "fp8", "fbgemm_fp8", "bitsandbytes"})
FREE_TYPE = frozenset({"weight_format", "quant_state"})  # a text or a number that is not read


@dataclass(frozen=True, slots=True)
class StoredModule:
    """One quantized module as it is stored. `parts` are its tensors by the part's name."""

    name: str
    fmt: WeightFormat
    parts: Mapping[str, TensorInfo]
    shape: tuple[int, ...]  # of the weight that they stand for, (out, in)


def require_parts(checkpoint: Checkpoint, module: StoredModule) -> None:
    """Raise CheckpointError unless a module's parts are those of its format, in type and shape."""
    expected = _expected_parts(module)
    _require_names(checkpoint, module, expected)
    for part in expected.keys() & module.parts.keys():
        _require_alike(checkpoint, module, part, expected[part])


def homeless(checkpoint: Checkpoint, tensor: str, said: str) -> CheckpointError:
    """Return the error for a tensor that the config has no place for."""
    info = checkpoint.tensors[tensor]
    return CheckpointError(
        f"'{checkpoint.path}' holds {tensor!r} ({info.dtype}), and its config says {said}: an "
        "engine would drop the scales. Add the quantization config that was written with it "
        "(config.json, hf_quant_config.json or quantize_config.json), or give the model it was "
        "made from."
    )


def centred_word(num_bits: int) -> int:
    """Return the int32 that packed zero points of 0 are: every field in its middle."""
    word = sum(1 << (num_bits * i + num_bits - 1) for i in range(32 // num_bits))
    return word - (1 << 32) if word >> 31 else word


def _expected_parts(module: StoredModule) -> dict[str, TensorInfo]:
    expected = stored_tensors(module.fmt, TensorInfo("BF16", module.shape, ""))
    if module.fmt.library == "fp8":  # by the writer, the scale has one of two names
        stored = next((each for each in FP8_SCALES if each in module.parts), FP8_SCALES[0])
        expected = {stored if each in FP8_SCALES else each: i for each, i in expected.items()}
    return expected


def _require_names(
    checkpoint: Checkpoint, module: StoredModule, expected: Mapping[str, TensorInfo]
) -> None:
    fmt, parts = module.fmt, module.parts
    optional = OPTIONAL[fmt.library]
    needed = expected.keys() - optional | (NEEDED & expected.keys())
    if fmt.has_column_order and not ORDERS & parts.keys():
        needed |= {"g_idx" if fmt.library == "gptq" else "weight_g_idx"}
    if missing := sorted(needed - parts.keys()):
        raise CheckpointError(
            f"'{checkpoint.path}' holds {module.name}.{values_name(fmt)} of the format "
            f"{fmt.name} and no {module.name}.{missing[0]}: without it the weight has no value. "
            "Download or copy the checkpoint again, or quantize it again."
        )
    if extra := sorted(parts.keys() - expected.keys() - optional):
        name = f"{module.name}.{extra[0]}"
        raise homeless(checkpoint, name, f"that {module.name!r} is {fmt.name}")


def _require_alike(
    checkpoint: Checkpoint, module: StoredModule, part: str, expected: TensorInfo
) -> None:
    found, fmt = module.parts[part], module.fmt
    if any(word in part for word in FREE_TYPE):
        return
    if not _has_type(part, found, expected, fmt):
        raise CheckpointError(
            f"'{checkpoint.path}' holds {module.name}.{part} as {found.dtype}, where the format "
            f"that its config says ({_format_text(fmt)}) has {expected.dtype}. Is the config the "
            "one that was written with it?"
        )
    if not _has_shape(module, part, expected):
        raise CheckpointError(
            f"'{checkpoint.path}' holds {module.name}.{part} of shape {list(found.shape)}; a "
            f"weight of shape {list(module.shape)} in the format that its config says "
            f"({_format_text(fmt)}) has {list(expected.shape)}. Is the config the one that was "
            "written with it?"
        )


def _has_type(part: str, found: TensorInfo, expected: TensorInfo, fmt: WeightFormat) -> bool:
    if expected.dtype in FLOAT_DTYPES:
        own = {"U8", "F8_E8M0"} if fmt.library == "fp8" else set()
        return found.dtype in FLOAT_DTYPES | own
    if part in ORDERS or part == "weight_shape":
        return found.dtype in {"I32", "I64"}
    if part == "weight_zero_point":  # older writers did not pack it
        return found.dtype in {expected.dtype, "I8"}
    return found.dtype == expected.dtype


def _has_shape(module: StoredModule, part: str, expected: TensorInfo) -> bool:
    found, fmt = module.parts[part], module.fmt
    if math.prod(expected.shape) == 1:
        return math.prod(found.shape) == 1
    if part == "weight_zero_point" and found.dtype == "I8":
        return found.shape == fmt.scale_shape((module.shape[0], module.shape[1]))
    if fmt.library in READ_FLAT:
        return _without_ones(found.shape) == _without_ones(expected.shape)
    return found.shape == expected.shape


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _format_text(fmt: WeightFormat) -> str:
    if fmt.block:
        return f"{fmt.name}, blocks of {fmt.block[0]} x {fmt.block[1]}"
    return f"{fmt.name}, groups of {fmt.group_size}" if fmt.group_size else fmt.name
