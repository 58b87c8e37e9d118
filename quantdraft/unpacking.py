"""The integers and scales of a compressed-tensors checkpoint, read without that library.

This is the independent reading that proves a checkpoint, and what the kernels are fed with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from quantdraft.checkpoint import Checkpoint
from quantdraft.errors import CheckpointError
from quantdraft.schemes import QUANTIZED_SUFFIXES, WeightFormat, linear_modules, stored_format


class Unpacked(NamedTuple):
    """One quantized weight as its file stores it; value = (integer - zero_point) * scale.

    integers:   (out, in) int8, or float8_e4m3fn for an FP8 format
    scale:      (out, groups) float, (out, 1) per channel, or one per block (rows, columns)
    zero_point: (out, groups) int8, or None when symmetric
    group_size: weights of a row that share a scale; None: the whole row, or a block
    block:      rows and columns that share a scale, or None
    """

    integers: Tensor
    scale: Tensor
    zero_point: Tensor | None
    group_size: int | None
    block: tuple[int, int] | None


def unpacked(tensors: Mapping[str, Tensor], module: str, fmt: WeightFormat) -> Unpacked:
    """The stored integers and scales of one module.

    tensors: at least the module's own tensors, by full name, as the file has them.
    Raises CheckpointError when one is missing or of another type than the format's.
    """
    scale = _get(tensors, f"{module}.weight_scale")
    scale = scale.reshape(scale.shape[0], -1)
    zero_point = None
    if fmt.layout == "pack-quantized":
        shape = _get(tensors, f"{module}.weight_shape").tolist()
        integers = unpack_int32(_get(tensors, f"{module}.weight_packed"), fmt.num_bits, shape[1])
        if not fmt.is_symmetric:
            packed = _get(tensors, f"{module}.weight_zero_point")  # packed along the rows
            zero_point = unpack_int32(packed.T.contiguous(), fmt.num_bits, shape[0]).T
    else:
        integers = _get(tensors, f"{module}.weight")
        if integers.dtype not in {torch.int8, torch.float8_e4m3fn}:
            raise CheckpointError(
                f"{module}.weight is {integers.dtype}, not {fmt.value_dtype}: "
                "the checkpoint claims to be quantized and is not."
            )
        if not fmt.is_symmetric:
            zero_point = _get(tensors, f"{module}.weight_zero_point")
    return Unpacked(integers, scale, zero_point, fmt.group_size, fmt.block)


def unpack_int32(packed: Tensor, num_bits: int, num_columns: int) -> Tensor:
    """Undo the packing of 32/num_bits offset integers into each word, lowest bits first.

    packed: (rows, words) int32
    Returns (rows, num_columns) int8 in [-2**(num_bits-1), 2**(num_bits-1)).
    """
    if 32 % num_bits:
        raise CheckpointError(f"weights of {num_bits} bits are not read: use 4 or 8.")
    shifts = torch.arange(0, 32, num_bits, dtype=torch.int32, device=packed.device)
    fields = (packed.unsqueeze(-1) >> shifts) & (2**num_bits - 1)
    columns = fields.flatten(1)[:, :num_columns]
    signed: Tensor = columns - 2 ** (num_bits - 1)
    return signed.to(torch.int8)


def dequantized(weight: Unpacked) -> Tensor:
    """The weight that the integers and scales stand for, (out, in) float32."""
    rows, columns = weight.integers.shape
    values = weight.integers.float()
    if weight.zero_point is not None:
        values = values - _spread(weight.zero_point.float(), rows, columns, weight)
    return values * _spread(weight.scale.float(), rows, columns, weight)


def rounded_inputs(inputs: Tensor, fmt: WeightFormat) -> Tensor:
    """A Linear's inputs as the scheme's integers stand for them; unchanged for weight-only schemes.

    inputs: (..., in); symmetric, one scale per token, or per token and group in a block format.
    """
    if fmt.activations is None:
        return inputs
    width = fmt.block[1] if fmt.block is not None else inputs.shape[-1]
    groups = inputs.reshape(*inputs.shape[:-1], -1, width)
    largest = groups.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    if fmt.activations == "int8":
        scale = largest / 127.5  # compressed-tensors halves the whole range, -128 to 127
        values = (groups / scale).round().clamp(-128, 127)
    else:
        scale = largest / torch.finfo(torch.float8_e4m3fn).max
        values = (groups / scale).to(torch.float8_e4m3fn).to(groups.dtype)
    rounded: Tensor = values * scale
    return rounded.reshape(inputs.shape)


def quantized_modules(checkpoint: Checkpoint) -> dict[str, WeightFormat]:
    """The modules that the checkpoint's config claims are quantized, and how."""
    quantization = checkpoint.quantization or {}
    modules = [n.rpartition(".")[0] for n in checkpoint.tensors if n.endswith(".weight_packed")]
    modules += linear_modules(checkpoint.tensors)
    formats = {module: stored_format(quantization, module) for module in modules}
    return {module: fmt for module, fmt in formats.items() if fmt is not None}


def rounds_activations(checkpoint: Checkpoint) -> bool:
    """True when a quantized layer rounds its inputs too (W8A8, FP8), not its weights alone."""
    return any(fmt.activations for fmt in quantized_modules(checkpoint).values())


def stored_weights(checkpoint: Checkpoint) -> Iterator[tuple[str, Unpacked]]:
    """Each quantized module with its integers and scales, one in memory at a time."""
    for module, fmt in quantized_modules(checkpoint).items():
        yield module, unpacked(module_tensors(checkpoint, module), module, fmt)


def module_tensors(checkpoint: Checkpoint, module: str) -> dict[str, Tensor]:
    """A module's weight tensors as the file stores them, by full name."""
    names = [f"{module}.{suffix}" for suffix in ("weight", *QUANTIZED_SUFFIXES)]
    return {name: read_tensor(checkpoint, name) for name in names if name in checkpoint.tensors}


def read_tensor(checkpoint: Checkpoint, name: str) -> Tensor:
    """One tensor from the checkpoint's files."""
    from safetensors import safe_open

    path = checkpoint.path / checkpoint.tensors[name].file
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


def _spread(per_scale: Tensor, rows: int, columns: int, weight: Unpacked) -> Tensor:
    """One value per scale, repeated to one per weight: (out, in)."""
    if weight.block is not None:
        height, width = weight.block
        tall = per_scale.repeat_interleave(height, 0)[:rows]
        return tall.repeat_interleave(width, 1)[:, :columns]
    if weight.group_size is None:
        return per_scale.expand(rows, columns)
    return per_scale.repeat_interleave(weight.group_size, 1)[:, :columns]


def _get(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise CheckpointError(
            f"the checkpoint lacks {name!r}, which its quantization config needs."
        )
    return tensors[name]
