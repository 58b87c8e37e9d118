"""Keep compressed-tensors' scales of inputs to one token each, whatever shape tokens come in.

The library finds a token's scale over what follows the first two dimensions: right for (texts,
tokens, width) alone. Experts are given (tokens, width), latent attention's expanding projection
(texts, 1, tokens, width); there it would take one scale for all tokens of a text or of a batch: a
token's numbers would depend on its batch, on padding, and on the tokens that follow.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def keep_tokens_apart(model: nn.Module) -> None:
    """Give every Linear whose inputs are scaled by token its tokens as (1, tokens, width)."""
    for module in model.modules():
        scheme: Any = getattr(module, "quantization_scheme", None)
        inputs = getattr(scheme, "input_activations", None)
        if inputs is not None and inputs.dynamic and inputs.strategy == "token":
            module.register_forward_pre_hook(_as_list)
            module.register_forward_hook(_as_given)


def _as_list(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    given = inputs[0]
    module.__dict__["given_shape"] = given.shape[:-1]
    if given.dim() == 3:
        return inputs
    return (given.reshape(1, -1, given.shape[-1]), *inputs[1:])


def _as_given(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.reshape(*module.__dict__.pop("given_shape"), output.shape[-1])
