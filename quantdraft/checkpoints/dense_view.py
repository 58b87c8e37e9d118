"""Return the float tensors that a checkpoint's files stand for, quantized or not. Headers alone.

A quantized module's tensors are folded into one `weight` of shape (out, in). A weight without its
scale, a scale without its weight, and a format that is not read are errors: an engine would compute
with numbers that nobody meant.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.foreign_configs import READERS
from quantdraft.checkpoints.formats import WeightFormat
from quantdraft.checkpoints.layouts import dense_shape, values_name
from quantdraft.checkpoints.stored_formats import stored_format
from quantdraft.checkpoints.stored_parts import (
    StoredModule,
    centred_word,
    homeless,
    require_parts,
)
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
            raise homeless(checkpoint, name, "no quantized cache ('kv_cache_scheme')")


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
        raise homeless(checkpoint, first, "no quantization at all")
    try:
        fmt = stored_format(quantization, name)
    except CheckpointError as error:
        raise CheckpointError(f"'{checkpoint.path}': {error}") from error
    if fmt is None:
        raise homeless(checkpoint, first, f"that {name!r} is not quantized")
    values = values_name(fmt)
    if values not in parts:
        raise CheckpointError(
            f"'{checkpoint.path}' holds {first!r} and no {name}.{values}: a scale without its "
            "weight. Download or copy the checkpoint again, or quantize it again."
        )
    if len(parts[values].shape) != 2:
        raise CheckpointError(
            f"'{checkpoint.path}' holds {name}.{values} of shape {list(parts[values].shape)}: read "
            f"are matrices. {_ADVICE}"
        )
    if "pre_quant_scale" in parts:
        fmt = replace(fmt, has_input_factors=True)
    shape = dense_shape(fmt, parts, _noted_shape(checkpoint, name, parts))
    module = StoredModule(name, fmt, parts, shape)
    require_parts(checkpoint, module)
    if fmt.is_symmetric and "weight_zero_point" in parts:
        _require_no_zero_points(checkpoint, f"{name}.weight_zero_point", fmt)
    return module


def _require_no_zero_points(checkpoint: Checkpoint, name: str, fmt: WeightFormat) -> None:
    """Refuse zero points beside a config that says "symmetric": engines would leave them out."""
    none = {0, centred_word(fmt.num_bits)}
    if not none.issuperset(_flatten(_read_small(checkpoint, name) or [])):
        raise CheckpointError(
            f"'{checkpoint.path}' holds {name!r}, and its config says 'symmetric' true: an engine "
            "would drop the zero points. Is the config the one that was written with it?"
        )


def _flatten(numbers: Iterable[Any]) -> Iterator[int]:
    for each in numbers:
        if isinstance(each, list):
            yield from _flatten(each)
        else:
            yield each


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
            raise homeless(checkpoint, stray, "no 'mxfp4' quantization")
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
