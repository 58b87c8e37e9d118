"""Keep compressed-tensors' scales of inputs to one token each, also where tokens come in one list.

Experts are given (tokens, width). The library finds a token's scale over what follows the first two
dimensions, so there it would take one scale for all: a token's numbers would depend on its batch.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def keep_tokens_apart(model: nn.Module) -> None:
    """Give every Linear whose inputs are scaled by token a batch dimension where it gets none."""
    for module in model.modules():
        scheme: Any = getattr(module, "quantization_scheme", None)
        inputs = getattr(scheme, "input_activations", None)
        if inputs is not None and inputs.dynamic and inputs.strategy == "token":
            module.register_forward_pre_hook(_add_batch)
            module.register_forward_hook(_drop_batch)


def _add_batch(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    module.__dict__["has_list"] = inputs[0].dim() == 2
    return (inputs[0][None], *inputs[1:]) if inputs[0].dim() == 2 else inputs


def _drop_batch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output[0] if module.__dict__.pop("has_list") else output
