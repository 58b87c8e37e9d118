"""The engine of this process: a checkpoint's own integers, multiplied by real kernels.

transformers unpacks a compressed-tensors checkpoint and would time nothing of it. Here every
quantized Linear is replaced by a module that holds the stored integers and scales.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from quantdraft.checkpoint import Checkpoint
from quantdraft.kernels import NoKernelError, kernel_for
from quantdraft.models import load_config, load_model
from quantdraft.proof import claims_but_not_quantized
from quantdraft.schemes import WeightFormat
from quantdraft.unpacking import module_tensors, quantized_modules, read_tensor, unpacked


@dataclass(frozen=True, slots=True)
class NativeModel:
    """A model ready to be timed, and what it computes with."""

    model: Any
    compute_dtype: str
    kernels: tuple[str, ...]
    weight_bytes: int  # resident, embedding table included


def load_native(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> NativeModel:
    """Load a checkpoint for timing in `dtype`; NoKernelError where no kernel takes its format."""
    false_claim = claims_but_not_quantized(checkpoint)
    if false_claim is not None:
        raise NoKernelError(false_claim)
    formats = quantized_modules(checkpoint)
    name = str(dtype).removeprefix("torch.")
    if not formats:
        if checkpoint.quantization is not None:
            method = checkpoint.quantization.get("quant_method")
            raise NoKernelError(f"no native kernel reads checkpoints of the kind {method!r}")
        model = load_model(checkpoint.path, dtype, device)
        return NativeModel(model, name, (f"linear_{name}",), _weight_bytes(model))
    for fmt in set(formats.values()):
        kernel_for(device.type, kernel_format(fmt))  # before anything is loaded
    model = _load_unquantized(checkpoint, formats, dtype, device)
    kernels = {f"linear_{name}"} if _has_dense_linear(model, formats) else set()
    for module, fmt in formats.items():
        kernels.add(_replace_linear(model, checkpoint, module, fmt, dtype, device))
    return NativeModel(model, name, tuple(sorted(kernels)), _weight_bytes(model))


def kernel_format(fmt: WeightFormat) -> str:
    """The name under which `quantdraft.kernels` lists a format."""
    if fmt.kind == "float":
        return "fp8-block" if fmt.block else "fp8"
    if fmt.num_bits == 8:
        return "int8" if fmt.activations else "int8-weight-only"
    return f"int{fmt.num_bits}"


def _load_unquantized(
    checkpoint: Checkpoint,
    formats: dict[str, WeightFormat],
    dtype: torch.dtype,
    device: torch.device,
) -> Any:
    """The model with every tensor that is stored unquantized; quantized Linears are left empty."""
    import transformers

    config = load_config(checkpoint.path, keep_quantization=False)
    plain = {
        name: read_tensor(checkpoint, name)
        for name in checkpoint.tensors
        if name.rpartition(".")[0] not in formats or name.endswith(".bias")
    }
    architecture = checkpoint.config["architectures"][0]
    model_class = getattr(transformers, architecture, None)
    if model_class is None:
        raise NoKernelError(f"transformers has no {architecture} for the native engine to build on")
    model = model_class.from_pretrained(None, config=config, state_dict=plain, dtype=dtype)
    return model.to(device).eval()


def _replace_linear(
    model: Any,
    checkpoint: Checkpoint,
    name: str,
    fmt: WeightFormat,
    dtype: torch.dtype,
    device: torch.device,
) -> str:
    """Put the kernel's module in the place of a Linear, and return the kernel's name."""
    weight = unpacked(module_tensors(checkpoint, name), name, fmt)
    old = model.get_submodule(name)
    bias = None if old.bias is None else old.bias.detach()
    build = kernel_for(device.type, kernel_format(fmt))
    try:
        new = build(weight.integers, weight.scale.float(), weight.zero_point, bias, dtype)
    except ValueError as error:
        raise NoKernelError(f"the {device.type} kernel cannot take {name}: {error}") from error
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, child, new.to(device))
    return str(new.kernel)


def _has_dense_linear(model: nn.Module, formats: dict[str, WeightFormat]) -> bool:
    return any(
        isinstance(module, nn.Linear) and name not in formats
        for name, module in model.named_modules()
    )


def _weight_bytes(model: nn.Module) -> int:
    """Bytes held by parameters and by kernels' own buffers; each tensor once, ties included."""
    total, seen = 0, set()
    for parameter in model.parameters():
        if parameter.data_ptr() not in seen:
            seen.add(parameter.data_ptr())
            total += parameter.nbytes
    for module in model.modules():
        if hasattr(module, "kernel"):
            total += int(module.weight_bytes)  # type: ignore[arg-type]
    return total
