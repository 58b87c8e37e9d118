"""Load a quantized checkpoint as a plain model: weights dequantized, inputs rounded as it says.

For the formats that transformers cannot load, or would load without their scales: the weights are
read by `unpacking`, and a hook before every quantized Linear rounds its inputs. It computes what
the format says, slowly; it is never timed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.configs import GENERATION_FILE
from quantdraft.checkpoints.dense_view import (
    dense_view,
    expert_blocks,
    says_cache,
    stored_modules,
)
from quantdraft.checkpoints.stored_parts import StoredModule
from quantdraft.checkpoints.tensors.foreign import unpack_experts
from quantdraft.checkpoints.tensors.rotary import fix_frequencies
from quantdraft.checkpoints.tensors.rounded_cache import require_fp8_cache, round_cache
from quantdraft.checkpoints.tensors.rounding import round_inputs
from quantdraft.checkpoints.tensors.unpacking import (
    Unpacked,
    dequantize,
    read_tensor,
    stored_weight,
)
from quantdraft.errors import CheckpointError


def load_dequantized(
    checkpoint: Checkpoint, config: Any, dtype: torch.dtype, trust_remote_code: bool = False
) -> Any:
    """Return the model in `dtype`, on the CPU, in eval mode.

    config: of transformers, without its quantization section
    Raises CheckpointError for what `dense_view` refuses, and where inputs or the cache cannot be
    rounded as the format says.
    """
    view = dense_view(checkpoint)
    settings = checkpoint.quantization or {}
    has_cache = says_cache(settings)
    if has_cache:
        require_fp8_cache(checkpoint, settings)  # before anything is read
    modules = {module.name: module for module in stored_modules(checkpoint)}
    config._experts_implementation = "eager"  # its products are those that the hooks round
    model = _build_plain(config, trust_remote_code).from_pretrained(
        None, config=config, state_dict=_read_state(checkpoint, view, modules, dtype), dtype=dtype
    )
    _round_all_inputs(checkpoint, model, modules.values())
    if has_cache:
        round_cache(checkpoint, model, settings)
    if (checkpoint.path / GENERATION_FILE).is_file():
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(checkpoint.path)
    fix_frequencies(model)
    return model.eval()


def _build_plain(config: Any, trust_remote_code: bool) -> Any:
    """Return the class that transformers has for the config."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return type(AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code))


def _read_state(
    checkpoint: Checkpoint,
    view: Mapping[str, Any],
    modules: Mapping[str, StoredModule],
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for parameter, blocks, scales in expert_blocks(checkpoint.tensors):
        stored = (read_tensor(checkpoint, str(name)) for name in (blocks, scales))
        state[parameter] = unpack_experts(*stored).to(dtype)
    for name in view.keys() - state.keys():
        module = modules.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        if module is None:
            state[name] = read_tensor(checkpoint, name)
        else:
            state[name] = _read_weight(checkpoint, module).to(dtype)
    return state


def _read_weight(checkpoint: Checkpoint, module: StoredModule) -> Tensor:
    weight = stored_weight(checkpoint, module.name, module.fmt)
    if isinstance(weight, Unpacked) and module.fmt.activations is not None:
        weight = weight._replace(input_factor=None)  # the inputs are multiplied, then rounded
    return dequantize(weight)


def _round_all_inputs(checkpoint: Checkpoint, model: Any, modules: Iterable[StoredModule]) -> None:
    linears = {name: each for name, each in model.named_modules() if isinstance(each, nn.Linear)}
    experts: dict[str, list[StoredModule]] = {}
    for module in modules:
        if module.fmt.activations is None:
            continue
        name = find_module(module.name, linears)
        if name is not None:
            hook = _input_hook(checkpoint, module)
            linears[name].register_forward_pre_hook(hook)
        else:
            experts.setdefault(module.name.rpartition(".experts.")[0], []).append(module)
    for owner, inside in experts.items():
        _round_experts(checkpoint, model, owner, inside)


def find_module(stored: str, modules: Mapping[str, nn.Module]) -> str | None:
    """Return the model's name of a stored module; None where it has no module of that name.

    transformers renames what some publishers store: the longest common ending decides.
    """
    if stored in modules:
        return stored
    parts = stored.split(".")
    for start in range(1, len(parts) - 1):
        ending = ".".join(parts[start:])
        found = [name for name in modules if name == ending or name.endswith(f".{ending}")]
        if len(found) == 1:
            return found[0]
    return None


def _input_hook(checkpoint: Checkpoint, module: StoredModule) -> Any:
    scale = _static_scale(checkpoint, module)
    factor = _read_part(checkpoint, module, "pre_quant_scale")

    def round_first(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        inputs = arguments[0] if factor is None else arguments[0] * factor.to(arguments[0])
        return round_inputs(inputs, module.fmt, scale), *arguments[1:]

    return round_first


def _static_scale(checkpoint: Checkpoint, module: StoredModule) -> Tensor | None:
    """Return the inputs' calibrated scale as `round_inputs` takes it."""
    if _read_part(checkpoint, module, "input_zero_point") is not None:
        raise CheckpointError(
            f"'{checkpoint.path}' rounds the inputs of {module.name} around a zero point, which "
            "quantdraft does not read. Export the draft with symmetric inputs."
        )
    found = _read_part(checkpoint, module, "input_global_scale")
    if found is not None:
        return found
    scale = _read_part(checkpoint, module, "input_scale")
    is_inverse = module.fmt.library == "modelopt" and module.fmt.scale_type == "e4m3"
    return 1 / scale if is_inverse and scale is not None else scale


def _read_part(checkpoint: Checkpoint, module: StoredModule, part: str) -> Tensor | None:
    if part not in module.parts:
        return None
    return read_tensor(checkpoint, f"{module.name}.{part}").float().flatten()


class _RoundedProducts(TorchFunctionMode):
    """Rounds the inputs of every `linear` that runs inside: experts are no modules of their own."""

    def __init__(self, module: StoredModule) -> None:
        super().__init__()
        self.fmt = module.fmt

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is nn.functional.linear:
            args = (round_inputs(args[0], self.fmt), *args[1:])
        return func(*args, **(kwargs or {}))


def _find_experts(model: Any, owner: str) -> Any:
    """Return the layer's stacked experts, whatever transformers calls what holds them, or None."""
    named = dict(model.named_modules())
    found = find_module(f"{owner}.experts", named)
    layer = re.search(r"\blayers\.\d+\.", f"{owner}.")
    if found is None and layer is not None:
        inside = [name for name in named if layer[0] in name and name.endswith(".experts")]
        found = inside[0] if len(inside) == 1 else None
    return None if found is None else named[found]


def _round_experts(
    checkpoint: Checkpoint, model: Any, owner: str, inside: list[StoredModule]
) -> None:
    """Round the inputs of experts that transformers stacks; each has the same dynamic rounding."""
    experts = _find_experts(model, owner)
    fmt = inside[0].fmt
    is_one = all(module.fmt == fmt for module in inside) and not fmt.has_static_inputs
    if experts is None or not is_one or fmt.has_input_factors:
        raise CheckpointError(
            f"'{checkpoint.path}' quantizes the inputs of {inside[0].name} ({fmt.name}), which "
            "transformers has in no Linear of its own: they cannot be rounded as the format says. "
            "Export the experts with weights alone quantized, or with dynamic inputs."
        )
    forward = experts.forward

    def run_rounded(*args: Any, **kwargs: Any) -> Any:
        with _RoundedProducts(inside[0]):
            return forward(*args, **kwargs)

    experts.forward = run_rounded
