"""Run a model in float32 with one weight in memory at a time.

It serves the proof's few passes: each reads the weights again from the files. It leaves out
what makes a model fast. A module that is no plain Linear or Embedding is held in float32.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.parts import kept_modules
from quantdraft.checkpoints.tensors.loaded_names import loaded_names
from quantdraft.checkpoints.tensors.loading import load_model
from quantdraft.checkpoints.tensors.unpacking import read_rows, read_tensor
from quantdraft.checkpoints.weights import FLOAT_DTYPES, FLOAT_NAMES

Read = Callable[[], Iterable[Tensor]]  # a weight's rows in pieces; of an Embedding one piece


def load_on_demand(checkpoint: Checkpoint, device: torch.device) -> Any:
    """Return the checkpoint as transformers loads it, its weights read when they are needed.

    compressed-tensors unpacks its own layers one by one; a checkpoint of another
    quantization library is loaded whole, in float32.
    """
    gc.collect()  # hooks and what they refer to are cycles: an earlier model is still there
    if (checkpoint.quantization or {}).get("quant_method") not in (None, "compressed-tensors"):
        return load_model(checkpoint.path, torch.float32, device)
    model = load_model(
        checkpoint.path,
        _stored_dtype(checkpoint),
        device,
        is_unpacked=False,
        has_separate_experts=True,
    )
    if hasattr(model, "ct_decompress_hook"):  # it would unpack all at the first pass
        model.ct_decompress_hook.remove()
    own = dict(model.named_parameters())
    names = loaded_names(model, checkpoint.tensors)
    stored = {id(own[found]): name for name, found in names.items() if found in own}
    kept = loaded_names(model, [f"{module}.weight" for module in kept_modules(checkpoint.tensors)])
    for name, module in model.named_modules():
        if _is_packed(module):
            _unpack_when_reached(module)
        elif _is_plain(module) and f"{name}.weight" not in kept.values():
            provide(module, _make_reader(checkpoint, stored.get(id(module.weight)), module))
        else:  # also small Linears whose weight is used without their forward pass
            _to_float32(module)
    return model


def take_tensors(model: Any, checkpoint: Checkpoint, names: Iterable[str]) -> None:
    """Put the checkpoint's tensors in place of a loaded model's own, also where they are shared.

    Names that the model does not have are ignored.
    """
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    users: dict[int, list[Any]] = {}
    for module in filter(_is_plain, model.modules()):
        users.setdefault(id(module.weight), []).append(module)
    for name, found in loaded_names(model, names).items():
        if found not in own or own[found].shape != checkpoint.tensors[name].shape:
            continue
        for module in users.get(id(own[found]), ()):
            provide(module, _read_from_file(checkpoint, name, module))
        if id(own[found]) not in users:
            own[found].data.copy_(read_tensor(checkpoint, name))


def provide(module: Any, read: Read) -> None:
    """Compute a Linear's or an Embedding's outputs from what `read` returns at each call.

    read: gives the weight, (out, in) or (tokens, width), in any float type
    """
    if type(module) is nn.Embedding:
        module.forward = lambda ids: _look_up(ids, *read())  # type: ignore[assignment,method-assign]
        return
    if module.bias is not None:
        module.bias.data = module.bias.data.float()
    module.forward = lambda inputs: _multiply(inputs.float(), read(), module.bias)


def _look_up(ids: Tensor, table: Tensor) -> Tensor:
    return functional.embedding(ids, table.to(ids.device)).float()


def _multiply(inputs: Tensor, weight: Iterable[Tensor], bias: Tensor | None) -> Tensor:
    parts = [functional.linear(inputs, rows.to(inputs.device).float()) for rows in weight]
    outputs = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
    return outputs if bias is None else outputs + bias


def _stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Return the one float type of its tensors; float32, which loses nothing, for several."""
    found = {info.dtype for info in checkpoint.tensors.values()} & FLOAT_DTYPES
    name = FLOAT_NAMES[found.pop()] if len(found) == 1 else "float32"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _is_plain(module: Any) -> bool:
    """Return True for a Linear or Embedding of torch that no library has changed."""
    is_one = type(module) in (nn.Linear, nn.Embedding) and isinstance(module.weight, nn.Parameter)
    return is_one and not hasattr(module, "quantization_scheme")


def _make_reader(checkpoint: Checkpoint, name: str | None, module: Any) -> Read:
    """Return what reads a weight from its file; pages of a closed map use no memory.

    Where the loader gave the weight another name or shape, the loaded one is taken.
    """
    if name is None or not _is_as_stored(checkpoint, name, module.weight):
        loaded = module.weight
        return lambda: [loaded]
    return _read_from_file(checkpoint, name, module)


def _read_from_file(checkpoint: Checkpoint, name: str, module: Any) -> Read:
    if type(module) is nn.Embedding:  # of the whole table only the pages looked up are read
        return lambda: [read_tensor(checkpoint, name)]
    return lambda: read_rows(checkpoint, name)


def _is_as_stored(checkpoint: Checkpoint, name: str, loaded: Tensor) -> bool:
    if checkpoint.tensors[name].shape != tuple(loaded.shape):
        return False
    stored = read_tensor(checkpoint, name)
    ends = [0, -1]  # not all of it: to look at a page is to have it in memory
    return torch.equal(stored[ends].to(loaded), loaded[ends])


def _is_packed(module: nn.Module) -> bool:
    """Return True for a layer that compressed-tensors holds compressed."""
    status = getattr(module, "quantization_status", None)
    return getattr(status, "value", None) == "compressed" and isinstance(module, nn.Linear)


def _unpack_when_reached(module: Any) -> None:
    from compressed_tensors.compressors.base import decompress_module
    from compressed_tensors.utils.module import get_direct_state_dict, replace_direct_state_dict

    _to_float32(module)  # the scales: what is unpacked is then float32 too
    packed, status = get_direct_state_dict(module), module.quantization_status

    def unpack(*_: Any) -> None:
        decompress_module(module)
        module.weight.data = module.weight.data.float()  # FP4 and MX come as bfloat16

    def forget(*_: Any) -> None:
        replace_direct_state_dict(module, packed)
        module.quantization_status = status

    module.register_forward_pre_hook(unpack)
    module.register_forward_hook(forget)


def _to_float32(module: nn.Module) -> None:
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        if tensor.dtype in (torch.bfloat16, torch.float16):
            tensor.data = tensor.data.float()
