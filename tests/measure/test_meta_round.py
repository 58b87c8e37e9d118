"""What a graph records of a round holds no wait of the host: it runs on tensors without data."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from quantdraft.engines.native.decoder import Decoder, DecoderShape, Layer, Rotary
from quantdraft.engines.native.model import NativeModel
from quantdraft.engines.native.session import Session
from quantdraft.measure.speculation import propose, verify_pass
from quantdraft.measure.verification import RoundPlan
from quantdraft.traffic.traffic import Sampling

META = torch.device("meta")
K = 3
SHAPE = DecoderShape(2, 4, 2, 8, 32, 48, 64, 1e-5)
DRAWN = Sampling(temperature=0.8, top_k=20, top_p=0.9)


class NoWait(TorchDispatchMode):
    """Refuses what waits for a GPU: a value read, a copy between devices, a boolean index."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
        for arg in args:
            if isinstance(arg, (list, tuple)):
                tensors += [each for each in arg if isinstance(each, torch.Tensor)]
        assert function not in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
        )
        if function.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put_):
            assert all(each is None or each.dtype != torch.bool for each in args[1])
        out = function(*args, **(kwargs or {}))
        made = [out] if isinstance(out, torch.Tensor) else []
        is_number = [each for each in tensors if each.dim() == 0]
        for tensor in [*tensors, *made]:
            assert tensor.device == META or any(tensor is each for each in is_number), function
        return out


def session(batch_size: int) -> Session:
    def linear(outputs: int, inputs: int) -> nn.Module:
        return nn.Linear(inputs, outputs, bias=False, device=META)

    def ones(size: int) -> torch.Tensor:
        return torch.ones(size, device=META)

    heads = (SHAPE.num_heads + 2 * SHAPE.num_kv_heads) * SHAPE.head_dim
    layers = [
        Layer(
            SHAPE,
            qkv=linear(heads, 32),
            out=linear(32, 32),
            gate_up=linear(96, 32),
            down=linear(32, 48),
            norms=(ones(32), ones(32)),
            head_norms=(ones(8), ones(8)),
        )
        for _ in range(SHAPE.num_layers)
    ]
    embedding = torch.empty(64, 32, device=META)
    model = Decoder(SHAPE, embedding, layers, ones(32), linear(64, 32), Rotary(ones(4), 1.0))
    return Session(NativeModel(model, "native decoder", "float32", (), 0, None), batch_size, 16)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("sampling", [Sampling(), DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("rule", ["greedy", "greedy_draft", "rejection", "exact_match"])
@torch.inference_mode()
def test_a_round_waits_for_nothing(rule, sampling, batch_size):
    plan, model = RoundPlan(K, rule, sampling), session(batch_size)
    fed = torch.zeros(batch_size, 1, dtype=torch.int64, device=META)
    uniforms = torch.zeros(batch_size, 2 * K + 1, dtype=torch.float64, device=META)
    with NoWait():
        proposed, logprobs = propose(model, plan, fed, fed, (16,) * K, uniforms[:, :K])
        tokens = torch.cat([fed, proposed], dim=1)
        places = torch.arange(K + 1, device=META).expand(batch_size, -1)
        found = verify_pass(model, plan, tokens, places, 16, False, uniforms[:, K:], logprobs)
    assert proposed.shape == (batch_size, K)
    assert found.shape == (batch_size, K + 2)
    assert (logprobs is not None) == (rule == "rejection" and plan.is_drawn)
