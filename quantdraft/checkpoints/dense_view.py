"""Return the float tensors that a checkpoint's files stand for, quantized or not. Headers alone.

A quantized module's tensors are folded into one `weight` of shape (out, in). A weight without its
scale, a scale without its weight, and a format that is not read are errors: an engine would compute
with numbers that nobody meant.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.foreign_configs import READERS
from quantdraft.checkpoints.formats import WeightFormat
from quantdraft.checkpoints.layouts import (
    FP8_SCALES,
    OPTIONAL,
    dense_shape,
    stored_tensors,
    values_name,
)
from quantdraft.checkpoints.stored_formats import stored_format
from quantdraft.checkpoints.weights import FLOAT_DTYPES, FLOAT_NAMES, TensorInfo
from quantdraft.errors import CheckpointError

COMPRESSED_TENSORS = "compressed-tensors"
READ_METHODS = frozenset({COMPRESSED_TENSORS, "mxfp4", *READERS})
# Parts of a quantized module beside `weight`, as any library names them; longest first.
PARTS = (
    "weight.quant_state.bitsandbytes__nf4",
    "weight.quant_state.bitsandbytes__fp4",
    "weight.nested_quant_map",
    "weight.nested_absmax",
    "weight.quant_map",
    "weight.absmax",
    "weight_format",
    "SCB",
    "weight_global_scale",
    "weight_zero_point",
    "weight_scale_inv",
    "weight_scale_2",
    "weight_packed",
    "weight_scale",
    "weight_shape",
    "weight_g_idx",
    "input_global_scale",
    "input_zero_point",
    "input_scale_ub",
    "input_scale",
    "activation_scale",
    "output_scale",
    "output_zero_point",
    "pre_quant_scale",
    "qweight",
    "qzeros",
    "scales",
    "g_idx",
)
_PART = re.compile(rf"(.*)\.({'|'.join(map(re.escape, PARTS))})")
_CACHE = re.compile(
    r".*\.((self_attn|attn|attention|self_attention)\.[qkv]_(scale|zero_point|global_scale)"
    r"|[qkv]_proj\.([kv]_scale|output_scale|output_zero_point)|kv_scale)"
)
_BLOCKS, _SCALES = "_blocks", "_scales"  # gpt-oss's experts: after the parameter's name
_ADVICE = "Give the model it was made from, or export it as compressed-tensors, GPTQ or AWQ."


@dataclass(frozen=True, slots=True)
class StoredModule:
    """One quantized module as it is stored. `parts` are its tensors by the part's name."""

    name: str
    fmt: WeightFormat
    parts: Mapping[str, TensorInfo]
    shape: tuple[int, ...]  # of the weight that they stand for, (out, in)


def dense_view(checkpoint: Checkpoint) -> dict[str, TensorInfo]:
    """Return names and shapes of the float tensors that the files stand for.

    Raises CheckpointError for a weight without its scale, a scale without its weight, scales that
    the config says nothing of, and for a format that is not read.
    """
    view = {name: info for name, info in checkpoint.tensors.items() if not _is_part(name)}
    for module in stored_modules(checkpoint):
        any_part = next(iter(module.parts.values()))
        name = f"{module.name}.weight"
        view[name] = TensorInfo(_float_type(checkpoint), module.shape, any_part.file)
    view = {name: info for name, info in view.items() if not _CACHE.fullmatch(name)}
    return _unpack_experts(checkpoint, view)


def stored_modules(checkpoint: Checkpoint) -> list[StoredModule]:
    """Return the quantized modules, each complete; raise CheckpointError where one is not."""
    quantization = checkpoint.quantization
    _require_known(checkpoint, quantization)
    _require_cache_claimed(checkpoint, quantization)
    found: list[StoredModule] = []
    for name, parts in _parts_by_module(checkpoint.tensors).items():
        if set(parts) == {"weight"} and parts["weight"].dtype in FLOAT_DTYPES:
            continue
        found.append(_read_module(checkpoint, quantization, name, parts))
    return found


def _require_known(checkpoint: Checkpoint, quantization: Mapping[str, Any] | None) -> None:
    if quantization is None:
        return
    method = quantization.get("quant_method") or COMPRESSED_TENSORS
    if method not in READ_METHODS:
        raise CheckpointError(
            f"'{checkpoint.path}' is quantized by {method!r}, which quantdraft does not read. "
            f"{_ADVICE}"
        )
    layout = quantization.get("checkpoint_format") or quantization.get("format") or method
    if method == "gptq" and layout not in {"gptq", "gptq_v2"}:
        raise CheckpointError(
            f"'{checkpoint.path}' is quantized by GPTQ with checkpoint_format {layout!r}; read are "
            f"'gptq' and 'gptq_v2'. {_ADVICE}"
        )
    if (quantization.get("transform_config") or {}).get("config_groups"):
        raise CheckpointError(
            f"'{checkpoint.path}' rotates inputs or weights while it runs ('transform_config'), "
            f"which quantdraft does not read. {_ADVICE}"
        )
    sparsity = (quantization.get("sparsity_config") or {}).get("format", "dense")
    if sparsity != "dense":
        raise CheckpointError(
            f"'{checkpoint.path}' stores sparse weights ('sparsity_config' of format "
            f"{sparsity!r}), which quantdraft does not read. {_ADVICE}"
        )


def _require_cache_claimed(checkpoint: Checkpoint, quantization: Mapping[str, Any] | None) -> None:
    for name in checkpoint.tensors:
        if _CACHE.fullmatch(name) and not says_cache(quantization):
            raise _homeless(checkpoint, name, "no quantized cache ('kv_cache_scheme')")


def says_cache(quantization: Mapping[str, Any] | None) -> bool:
    """Return True when a quantization config says that keys and values are quantized."""
    return bool(cache_scheme(quantization))


def cache_scheme(quantization: Mapping[str, Any] | None) -> Any:
    """Return what a config says of a quantized cache: an object, a library's word, or None."""
    settings = dict(quantization or {})
    nested = settings.get("quantization")
    settings |= nested if isinstance(nested, dict) else {}
    return settings.get("kv_cache_scheme") or settings.get("kv_cache_quant_algo")


def cache_bits(quantization: Mapping[str, Any] | None) -> int | None:
    """Return the bits of a quantized cache's numbers; None: it is not quantized."""
    scheme = cache_scheme(quantization)
    if isinstance(scheme, dict):
        found = scheme.get("num_bits")
        return found if isinstance(found, int) else None
    return None if not scheme else 4 if "4" in str(scheme) else 8


def _parts_by_module(tensors: Mapping[str, TensorInfo]) -> dict[str, dict[str, TensorInfo]]:
    modules: dict[str, dict[str, TensorInfo]] = {}
    for name, info in tensors.items():
        if _CACHE.fullmatch(name):
            continue
        found = _PART.fullmatch(name)
        module, part = found.groups() if found else name.rpartition(".")[::2]
        if found or part == "weight":
            modules.setdefault(module, {})[part] = info
    return modules


def _is_part(name: str) -> bool:
    return _PART.fullmatch(name) is not None


def _read_module(
    checkpoint: Checkpoint,
    quantization: Mapping[str, Any] | None,
    name: str,
    parts: Mapping[str, TensorInfo],
) -> StoredModule:
    first = f"{name}.{next(part for part in parts if part != 'weight' or len(parts) == 1)}"
    if quantization is None:
        raise _homeless(checkpoint, first, "no quantization at all")
    try:
        fmt = stored_format(quantization, name)
    except CheckpointError as error:
        raise CheckpointError(f"'{checkpoint.path}': {error}") from error
    if fmt is None:
        raise _homeless(checkpoint, first, f"that {name!r} is not quantized")
    values = values_name(fmt)
    if values not in parts:
        raise CheckpointError(
            f"'{checkpoint.path}' holds {first!r} and no {name}.{values}: a scale without its "
            "weight. Download or copy the checkpoint again, or quantize it again."
        )
    if "pre_quant_scale" in parts:
        fmt = replace(fmt, has_input_factors=True)
    shape = dense_shape(fmt, parts, _noted_shape(checkpoint, name, parts))
    module = StoredModule(name, fmt, parts, shape)
    _require_complete(checkpoint, module)
    return module


def _require_complete(checkpoint: Checkpoint, module: StoredModule) -> None:
    fmt, parts = module.fmt, module.parts
    weight = TensorInfo("BF16", module.shape, "")
    expected = stored_tensors(fmt, weight)
    if fmt.library == "fp8":  # by the writer, the scale has one of two names
        stored = next((each for each in FP8_SCALES if each in parts), FP8_SCALES[0])
        expected = {stored if each in FP8_SCALES else each: i for each, i in expected.items()}
    optional = OPTIONAL[fmt.library]
    needed = expected.keys() - optional | ({"input_scale"} & expected.keys())
    if missing := sorted(needed - parts.keys()):
        raise CheckpointError(
            f"'{checkpoint.path}' holds {module.name}.{values_name(fmt)} of the format "
            f"{fmt.name} and no {module.name}.{missing[0]}: without it the weight has no value. "
            "Download or copy the checkpoint again, or quantize it again."
        )
    if extra := sorted(parts.keys() - expected.keys() - optional):
        raise _homeless(
            checkpoint, f"{module.name}.{extra[0]}", f"that {module.name!r} is {fmt.name}"
        )
    for part, info in expected.items():
        if part in parts and not _is_alike(part, parts[part], info):
            raise CheckpointError(
                f"'{checkpoint.path}' holds {module.name}.{part} of shape "
                f"{list(parts[part].shape)}; a weight of shape {list(module.shape)} in the format "
                f"that its config says ({_format_text(fmt)}) has {list(info.shape)}. Is the "
                "config the one that was written with it?"
            )


def _is_alike(part: str, found: TensorInfo, expected: TensorInfo) -> bool:
    """Return True when sizes agree; a scale may be a number, a row or a column."""
    if "quant_state" in part or part.startswith("input_") or part == "weight_zero_point":
        return True
    return math.prod(found.shape) == math.prod(expected.shape)


def _format_text(fmt: WeightFormat) -> str:
    if fmt.block:
        return f"{fmt.name}, blocks of {fmt.block[0]} x {fmt.block[1]}"
    return f"{fmt.name}, groups of {fmt.group_size}" if fmt.group_size else fmt.name


def _homeless(checkpoint: Checkpoint, tensor: str, said: str) -> CheckpointError:
    info = checkpoint.tensors[tensor]
    return CheckpointError(
        f"'{checkpoint.path}' holds {tensor!r} ({info.dtype}), and its config says {said}: an "
        "engine would drop the scales. Add the quantization config that was written with it "
        "(config.json, hf_quant_config.json or quantize_config.json), or give the model it was "
        "made from."
    )


def _noted_shape(
    checkpoint: Checkpoint, module: str, parts: Mapping[str, TensorInfo]
) -> tuple[int, ...] | None:
    """Return the shape that a bookkeeping tensor holds: of compressed-tensors or bitsandbytes."""
    for part in parts:
        if "quant_state" in part or part == "weight_shape":
            name = f"{module}.{part}"
            raw = _read_small(checkpoint, name)
            return None if raw is None else _parse_shape(checkpoint, name, raw)
    return None


def _parse_shape(checkpoint: Checkpoint, name: str, raw: list[int]) -> tuple[int, ...]:
    try:
        found = json.loads(bytes(raw))["shape"] if "quant_state" in name else raw
        rows, columns = (operator.index(size) for size in found)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"'{checkpoint.path}': {name!r} does not hold the shape of a weight. Download or copy "
            "the checkpoint again."
        ) from error
    return rows, columns


def _read_small(checkpoint: Checkpoint, name: str) -> list[int] | None:
    from safetensors import safe_open

    path = checkpoint.path / checkpoint.tensors[name].file
    if not path.is_file():  # a shape without files
        return None
    with safe_open(path, framework="np") as file:
        numbers: list[int] = file.get_tensor(name).tolist()
    return numbers


def _float_type(checkpoint: Checkpoint) -> str:
    named = str(checkpoint.text_config.get("dtype") or checkpoint.text_config.get("torch_dtype"))
    return next((code for code, name in FLOAT_NAMES.items() if named.endswith(name)), "BF16")


def _unpack_experts(
    checkpoint: Checkpoint, view: Mapping[str, TensorInfo]
) -> dict[str, TensorInfo]:
    """Fold gpt-oss's blocks and scales of 3-D experts into one parameter, (experts, in, out)."""
    is_mxfp4 = (checkpoint.quantization or {}).get("quant_method") == "mxfp4"
    unpacked = dict(view)
    for parameter, blocks, scales in expert_blocks(view):
        stray = blocks or scales
        assert stray is not None  # one of the two is why it is listed
        if not is_mxfp4:
            raise _homeless(checkpoint, stray, "no 'mxfp4' quantization")
        if blocks is None or scales is None or view[blocks].shape[:-1] != view[scales].shape:
            raise CheckpointError(
                f"'{checkpoint.path}' holds {stray!r} without its "
                f"{'scales' if blocks else 'blocks'} of a shape that fits. Download or copy the "
                "checkpoint again."
            )
        *experts, rows, groups, half = view[blocks].shape
        shape = (*experts, groups * half * 2, rows)
        unpacked[parameter] = TensorInfo(_float_type(checkpoint), shape, view[blocks].file)
        del unpacked[blocks], unpacked[scales]
    return unpacked


def expert_blocks(
    tensors: Mapping[str, TensorInfo],
) -> Iterator[tuple[str, str | None, str | None]]:
    """Yield each MXFP4 parameter with the names of its blocks and scales; None: not stored."""
    endings = (_BLOCKS, _SCALES)
    found = (n.removesuffix(e) for n in tensors for e in endings if n.endswith(f"_proj{e}"))
    for parameter in dict.fromkeys(found):
        blocks, scales = parameter + _BLOCKS, parameter + _SCALES
        yield (
            parameter,
            blocks if blocks in tensors else None,
            scales if scales in tensors else None,
        )
