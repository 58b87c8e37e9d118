"""A token's inputs are scaled by themselves, in whatever shape a model hands tokens over."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationScheme,
    QuantizationStatus,
    initialize_module_for_quantization,
)
from torch import nn

from quantdraft.checkpoints.tensors.token_scales import keep_tokens_apart

WIDTH, OUTPUTS = 16, 8
# As one token, a list (experts), texts, and texts with one head (latent attention).
SHAPES = ((), (6,), (2, 6), (2, 1, 6), (2, 1, 3, 2))


@pytest.fixture(scope="module")
def linear() -> nn.Module:
    """A Linear whose inputs compressed-tensors rounds to FP8, one scale a token."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, OUTPUTS))
    inputs = QuantizationArgs(num_bits=8, type="float", strategy="token", dynamic=True)
    scheme = QuantizationScheme(targets=["Linear"], input_activations=inputs)
    initialize_module_for_quantization(model[0], scheme)
    model[0].quantization_status = QuantizationStatus.FROZEN
    keep_tokens_apart(model)
    return model


@pytest.mark.parametrize("shape", SHAPES)
def test_a_token_is_scaled_by_itself_in_any_shape(linear, shape):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn((*shape, WIDTH), generator=generator)
    sizes = torch.logspace(-3, 3, max(1, tokens[..., 0].numel())).reshape(*shape, 1)
    tokens = tokens * sizes  # under one scale for all, the small ones would vanish
    with torch.inference_mode():
        found = linear(tokens)
        alone = [linear(token[None, None])[0, 0] for token in tokens.reshape(-1, WIDTH)]
    assert found.shape == (*shape, OUTPUTS)
    wanted = torch.stack(alone).reshape(found.shape)
    torch.testing.assert_close(found, wanted)
    assert not torch.equal(found, nn.functional.linear(tokens, linear[0].weight, linear[0].bias))
