"""Read the integers and scales of a quantized checkpoint without the library that wrote it.

The proof compares them with the draft's weights, and the kernels compute with them. Read here are
compressed-tensors', AutoGPTQ's (`qweight`, `qzeros`, `scales`, `g_idx`) and bitsandbytes' as
transformers saves it (`weight.absmax` and its like; `SCB` for 8 bits); in `foreign`, the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.dense_view import PARTS, stored_modules
from quantdraft.checkpoints.foreign_configs import READERS
from quantdraft.checkpoints.formats import WeightFormat
from quantdraft.checkpoints.stored_formats import linear_modules, stored_format
from quantdraft.checkpoints.tensors.foreign import unpack_foreign
from quantdraft.checkpoints.tensors.microscaling import unpack_microscaled
from quantdraft.checkpoints.tensors.packing import pack_stream, unpack_int32
from quantdraft.errors import CheckpointError

ROWS_AT_ONCE = 2**13  # a twentieth of a large embedding table


class Unpacked(NamedTuple):
    """One quantized weight as its file stores it; value = (integer - zero_point) * scale.

    integers:   (out, in) int8, or float8_e4m3fn for an FP8 format
    scale:      (out, groups) float, (out, 1) per channel, or one per block (rows, columns)
    zero_point: (out, groups) int8, or None when symmetric
    group_size: weights of a row that share a scale; None: the whole row, or a block
    block:      rows and columns that share a scale, or None
    column_order: (in,) int64, which input each column multiplies; None: each its own. GPTQ with
                `desc_act` groups columns by importance: here they lie sorted by group
    input_factor: (in,) float, what each input is multiplied by before it is rounded, or None
    """

    integers: Tensor
    scale: Tensor
    zero_point: Tensor | None
    group_size: int | None
    block: tuple[int, int] | None
    column_order: Tensor | None = None
    input_factor: Tensor | None = None


class DoubleScale(NamedTuple):
    """Scales that are themselves quantized; scale = table[index] * scale_of_block + offset.

    table: (256,) float32
    scale: (blocks of scales,) float32
    """

    table: Tensor
    scale: Tensor
    block_size: int
    offset: float


class Codebook(NamedTuple):
    """One weight as indices into a table of 16 values (NF4, FP4); value = table[index] * scale.

    integers: (out, in / 2) uint8, two indices a byte, the earlier column in the high half
    table:    (16,) float32
    scale:    (blocks,) float32, or uint8 indices under `double`; blocks run along the rows
    block_size: weights that share a scale
    double:   what the scales' own indices stand for, or None
    name:     "nf4" or "fp4"
    """

    integers: Tensor
    table: Tensor
    scale: Tensor
    block_size: int
    double: DoubleScale | None
    name: str

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return len(self.integers), 2 * self.integers.shape[1]


def unpack(tensors: Mapping[str, Tensor], module: str, fmt: WeightFormat) -> Unpacked | Codebook:
    """Return the stored integers and scales of one module.

    tensors: at least the module's own, by full name, as `module_tensors` gives them.
    Raises CheckpointError when one is missing or of another type than the format's.
    """
    if fmt.library == "gptq":
        return _unpack_gptq(tensors, module, fmt)
    if fmt.library == "bitsandbytes" and fmt.num_bits == 8:
        # The file has the largest values.
        scale = _require_tensor(tensors, f"{module}.SCB").reshape(-1, 1) / 127
        return Unpacked(_require_tensor(tensors, f"{module}.weight"), scale, None, None, None)
    if fmt.library == "bitsandbytes":
        return _unpack_codebook(tensors, module, fmt.kind)
    if fmt.library != "compressed-tensors":
        return _unpack_other(tensors, module, fmt)
    return _unpack_compressed(tensors, module, fmt)


def _unpack_other(tensors: Mapping[str, Tensor], module: str, fmt: WeightFormat) -> Unpacked:
    parts = {name.removeprefix(f"{module}."): tensor for name, tensor in tensors.items()}
    try:
        integers, scale, zero_point = unpack_foreign(parts, fmt)
    except KeyError as error:
        _require_tensor(tensors, f"{module}.{error.args[0]}")
        raise
    factor = parts.get("pre_quant_scale")
    return Unpacked(integers, scale, zero_point, fmt.group_size, fmt.block, None, _flatten(factor))


def _flatten(factor: Tensor | None) -> Tensor | None:
    return None if factor is None else factor.float().flatten()


def _unpack_compressed(tensors: Mapping[str, Tensor], module: str, fmt: WeightFormat) -> Unpacked:
    scale = _require_tensor(tensors, f"{module}.weight_scale")
    if fmt.scale_type != "float":
        own = f"{module}.weight_packed" if fmt.num_bits == 4 else f"{module}.weight"
        factor = tensors.get(f"{module}.weight_global_scale")
        values, scale = unpack_microscaled(_require_tensor(tensors, own), scale, factor, fmt)
        return Unpacked(values, scale, None, fmt.group_size, None)
    zero_point = None
    if fmt.layout == "pack-quantized":
        shape = _require_tensor(tensors, f"{module}.weight_shape").tolist()
        packed = _require_tensor(tensors, f"{module}.weight_packed")
        integers = unpack_int32(packed, fmt.num_bits, shape[1])
        if not fmt.is_symmetric:
            packed = _require_tensor(tensors, f"{module}.weight_zero_point")
            zero_point = _unpack_zeros(packed, fmt, shape[0])
    else:
        integers = _require_tensor(tensors, f"{module}.weight")
        if integers.dtype not in {torch.int8, torch.float8_e4m3fn}:
            raise CheckpointError(
                f"{module}.weight is {integers.dtype}, not {fmt.value_dtype}: "
                "the checkpoint claims to be quantized and is not."
            )
        if not fmt.is_symmetric:
            zero_point = _require_tensor(tensors, f"{module}.weight_zero_point")
            zero_point = zero_point.reshape(len(integers), -1)
    scale = scale.reshape(-1, scale.shape[-1] if fmt.group_size or fmt.block else 1)
    order = _column_order(
        tensors.get(f"{module}.weight_g_idx"), integers.shape[1], fmt.group_size, module
    )
    if order is not None:
        integers = integers[:, order].contiguous()
    return Unpacked(integers, scale, zero_point, fmt.group_size, fmt.block, order)


def _unpack_zeros(stored: Tensor, fmt: WeightFormat, rows: int) -> Tensor:
    """Return zero points (out, groups) int8: packed along the rows, or as older writers left it."""
    if stored.dtype == torch.int8:
        return stored.reshape(rows, -1)
    return unpack_int32(stored.T.contiguous(), fmt.num_bits, rows).T


def _unpack_gptq(tensors: Mapping[str, Tensor], module: str, fmt: WeightFormat) -> Unpacked:
    """Unpack AutoGPTQ's layout: transposed, packed along the inputs, zero points along outputs."""
    scale = _require_tensor(tensors, f"{module}.scales").T.contiguous()
    packed = _require_tensor(tensors, f"{module}.qweight").T.contiguous()
    rows, columns = packed.shape[0], packed.shape[1] * 32 // fmt.num_bits
    integers = unpack_int32(packed, fmt.num_bits, columns)
    packed_zeros = _require_tensor(tensors, f"{module}.qzeros")
    zero_point = unpack_int32(packed_zeros, fmt.num_bits, rows).T.contiguous()
    if fmt.is_symmetric and bool(zero_point.any()):
        raise CheckpointError(
            f"{module}.qzeros holds zero points, and the quantization config says 'sym' true: "
            "engines then leave them out. Is the config the one that was written with it "
            "('sym', 'checkpoint_format')?"
        )
    group_size = -(-columns // scale.shape[1])
    order = _column_order(tensors.get(f"{module}.g_idx"), columns, group_size, module)
    if order is not None:
        integers = integers[:, order].contiguous()
    return Unpacked(
        integers,
        scale,
        zero_point if bool(zero_point.any()) else None,
        None if scale.shape[1] == 1 else group_size,
        None,
        order,
    )


def _column_order(
    group_of_column: Tensor | None, columns: int, group_size: int | None, module: str
) -> Tensor | None:
    """Return the order that sorts the columns by group; None where they are sorted."""
    if group_of_column is None or group_size is None:
        return None
    in_order = torch.arange(columns) // group_size
    if torch.equal(group_of_column.long(), in_order):
        return None
    order = group_of_column.argsort(stable=True)
    if not torch.equal(group_of_column[order].long(), in_order):
        raise CheckpointError(
            f"{module}.g_idx does not put {group_size} columns in every group: the checkpoint is "
            "corrupt, or of a kind that this quantdraft does not read."
        )
    return order


def _unpack_codebook(tensors: Mapping[str, Tensor], module: str, name: str) -> Codebook:
    state_name = f"{module}.weight.quant_state.bitsandbytes__{name}"
    state = json.loads(bytes(_require_tensor(tensors, state_name).tolist()))
    rows, columns = state["shape"]
    if columns % 2:
        raise CheckpointError(f"{module}.weight has {columns} columns: an odd number is not read.")
    own = f"{module}.weight"
    double = None
    if f"{own}.nested_absmax" in tensors:
        double = DoubleScale(
            _require_tensor(tensors, f"{own}.nested_quant_map"),
            _require_tensor(tensors, f"{own}.nested_absmax"),
            state["nested_blocksize"],
            state["nested_offset"],
        )
    return Codebook(
        _require_tensor(tensors, own).view(torch.uint8).reshape(rows, columns // 2),
        _require_tensor(tensors, f"{own}.quant_map"),
        _require_tensor(tensors, f"{own}.absmax"),
        state["blocksize"],
        double,
        name,
    )


def dequantize(weight: Unpacked | Codebook) -> Tensor:
    """Return the weight that the integers and scales stand for, (out, in) float32."""
    if isinstance(weight, Codebook):
        return _dequantize_codebook(weight)
    values = weight.integers.to(torch.float32, copy=True)
    if weight.zero_point is not None:
        runs, zeros = _align_scales(values, weight.zero_point.float(), weight)
        runs -= zeros
    runs, scales = _align_scales(values, weight.scale.float(), weight)
    runs *= scales
    if weight.input_factor is not None:
        values *= weight.input_factor
    if weight.column_order is None:
        return values
    return torch.empty_like(values).index_copy_(1, weight.column_order, values)


def _dequantize_codebook(weight: Codebook) -> Tensor:
    indices = torch.stack([weight.integers >> 4, weight.integers & 15], dim=-1)
    values = weight.table[indices.flatten().long()]
    scales = weight_scales(weight).repeat_interleave(weight.block_size)
    return (values * scales[: len(values)]).reshape(weight.shape)


def weight_scales(weight: Codebook) -> Tensor:
    """Return the scale of every block, (blocks,) float32."""
    double = weight.double
    if double is None:
        return weight.scale.float()
    outer = double.scale.repeat_interleave(double.block_size)[: len(weight.scale)]
    return double.table[weight.scale.long()] * outer + double.offset


def quantized_modules(checkpoint: Checkpoint) -> dict[str, WeightFormat]:
    """Return the modules that the checkpoint's config claims are quantized, and how."""
    quantization = checkpoint.quantization or {}
    method = quantization.get("quant_method")
    if method in READERS and method not in _MODULE_ENDS:
        return {module.name: module.fmt for module in stored_modules(checkpoint)}
    ends = _MODULE_ENDS.get(method or "", (".weight_packed",))
    names = checkpoint.tensors
    modules = [n.removesuffix(end) for end in ends for n in names if n.endswith(end)]
    if ends == (".weight_packed",):
        modules += linear_modules(names)
    formats = {module: stored_format(quantization, module) for module in modules}
    return {module: fmt for module, fmt in formats.items() if fmt is not None}


# The tensor that marks a quantized module, where the config does not name the modules.
_MODULE_ENDS = {"gptq": (".qweight",), "bitsandbytes": (".weight.absmax", ".SCB")}


def rounds_activations(checkpoint: Checkpoint) -> bool:
    """Return True when a quantized layer rounds its inputs too (W8A8, FP8)."""
    return any(fmt.activations for fmt in quantized_modules(checkpoint).values())


def stored_weight(checkpoint: Checkpoint, module: str, fmt: WeightFormat) -> Unpacked | Codebook:
    """Read one module's integers and scales."""
    return unpack(module_tensors(checkpoint, module), module, fmt)


def module_tensors(checkpoint: Checkpoint, module: str) -> dict[str, Tensor]:
    """Read a module's weight tensors as the file stores them, by full name.

    Except GPTQ's zero points, which older files store one too low (`checkpoint_format` "gptq"; not
    "gptq_v2"): those are corrected.
    """
    own = (f"{module}.{part}" for part in ("weight", *PARTS))
    tensors = {name: read_tensor(checkpoint, name) for name in own if name in checkpoint.tensors}
    zeros = f"{module}.qzeros"
    quantization = checkpoint.quantization or {}
    fmt = stored_format(quantization, module) if zeros in tensors else None
    if fmt is not None and fmt.library == "gptq" and _stores_lower_zeros(quantization):
        tensors[zeros] = _add_one(tensors[zeros], fmt)
    return tensors


def _stores_lower_zeros(quantization: Mapping[str, object]) -> bool:
    kind = quantization.get("checkpoint_format") or quantization.get("format") or "gptq"
    if kind not in {"gptq", "gptq_v2"}:
        raise CheckpointError(
            f"the quantization config has checkpoint_format {kind!r}; read are 'gptq', 'gptq_v2'."
        )
    return kind == "gptq"


def _add_one(packed: Tensor, fmt: WeightFormat) -> Tensor:
    """Add 1 to every field of every int32 word; a full field becomes 0, as for other readers."""
    bits = fmt.num_bits
    fields = unpack_int32(packed, bits, packed.shape[1] * 32 // bits).long() + 2 ** (bits - 1)
    return pack_stream((fields + 1) & 2**bits - 1, bits)


def read_tensor(checkpoint: Checkpoint, name: str) -> Tensor:
    """Read one tensor from the checkpoint's files."""
    from safetensors import safe_open

    path = checkpoint.path / checkpoint.tensors[name].file
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


def read_rows(checkpoint: Checkpoint, name: str) -> Iterator[Tensor]:
    """Yield one tensor in pieces of at most ROWS_AT_ONCE rows.

    Each piece maps the file again, so that the pages of the last piece no longer count as memory.
    """
    from safetensors import safe_open

    info = checkpoint.tensors[name]
    if not info.shape or info.shape[0] <= ROWS_AT_ONCE:
        yield read_tensor(checkpoint, name)
        return
    for start in range(0, info.shape[0], ROWS_AT_ONCE):
        with safe_open(checkpoint.path / info.file, framework="pt") as file:
            yield file.get_slice(name)[start : start + ROWS_AT_ONCE]


def _align_scales(values: Tensor, per_scale: Tensor, weight: Unpacked) -> tuple[Tensor, Tensor]:
    """Return a view of the (out, in) values, and a value per scale in a shape that meets it."""
    rows, columns = values.shape
    if weight.block is not None:
        height, width = weight.block
        tall = per_scale.repeat_interleave(height, 0)[:rows]
        return values, tall.repeat_interleave(width, 1)[:, :columns]
    if weight.group_size is None:
        return values, per_scale
    if columns == per_scale.shape[1] * weight.group_size:
        return values.view(rows, -1, weight.group_size), per_scale.unsqueeze(-1)
    return values, per_scale.repeat_interleave(weight.group_size, 1)[:, :columns]


def _require_tensor(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise CheckpointError(
            f"the checkpoint lacks {name!r}, which its quantization config needs."
        )
    return tensors[name]
