"""Layers by torch's compiler compute what they compute operation by operation, and never by halves.

These tests take the compiler's front alone, which traces a function as one graph of torch's own
operators: what inductor makes of such a graph is tested in test_decoder.py.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.engines.kernels import packed_products
from quantdraft.engines.native import compiled
from quantdraft.engines.native.decoder import Decoder, DecoderShape, KVCache, Layer, Rotary
from quantdraft.engines.native.linears import JoinedLinears
from quantdraft.engines.native.model import load_native
from quantdraft.engines.native.session import Session
from quantdraft.engines.native.weight_sources import stored_weights
from quantdraft.measure.speculation import speculate
from quantdraft.measure.verification import RoundPlan
from quantdraft.traffic.traffic import Sampling

CPU = torch.device("cpu")
TOLERANCE = 1e-5  # of the largest logit: sums of 64 float32 products in another order


@pytest.fixture
def variants(monkeypatch) -> Iterator[list[str]]:
    """Compile by the front alone; the names of the functions that were compiled, one a variant."""
    made: list[str] = []

    def backend(graph, inputs):
        made.append(str(graph.meta.get("name", "graph")))
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    compiled._compiled.cache_clear()
    yield made
    torch._dynamo.reset()
    compiled._compiled.cache_clear()


def decoder(
    *, heads: int = 4, kv_heads: int = 2, has_head_norms: bool = False, bias: bool = False
) -> Decoder:
    """Random weights: Llama, Qwen2 (biases) or Qwen3 (norms of queries and keys)."""
    generator = torch.Generator().manual_seed(0)
    shape = DecoderShape(2, heads, kv_heads, 16, 64, 96, 50, 1e-5)

    def linear(outputs: int, inputs: int) -> nn.Linear:
        module = nn.Linear(inputs, outputs, bias=bias)
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.2, generator=generator)
        return module.requires_grad_(False)

    def norm(size: int) -> torch.Tensor:
        return torch.rand(size, generator=generator) + 0.5

    layers = [
        Layer(
            shape,
            qkv=linear((heads + 2 * kv_heads) * 16, 64),
            out=linear(64, heads * 16),
            gate_up=linear(192, 64),
            down=linear(64, 96),
            norms=(norm(64), norm(64)),
            head_norms=(norm(16), norm(16)) if has_head_norms else None,
        )
        for _ in range(2)
    ]
    embedding = torch.randn(50, 64, generator=generator)
    rotary = Rotary(torch.rand(8, generator=generator), 1.0)
    return Decoder(shape, embedding, layers, norm(64), linear(50, 64), rotary)


MODELS = {
    "llama": {},
    "one-key": {"kv_heads": 1},
    "a-key-a-head": {"kv_heads": 4},
    "qwen2": {"bias": True},
    "qwen3": {"has_head_norms": True},
}


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_compiled_layers_compute_what_eager_ones_do(variants, name):
    """A prompt with logits at one place, several tokens, one row of them back, a lone token."""
    model, prompt = decoder(**MODELS[name]), torch.arange(16).expand(2, -1)
    ids = torch.randint(50, (2, 24), generator=torch.Generator().manual_seed(1))
    found = {}
    for parts in (None, compiled.compiled_parts(model)):
        cache = KVCache(model.shape, 2, 24, model.rotary(24, torch.float32))
        at = torch.tensor([[16], [11]])
        more = at + torch.arange(1, 4)
        found[parts is None] = [
            model(cache, ids[:, :16], prompt, 16, at - at + 15, False, parts),
            model(cache, ids.gather(1, more), more, 20, None, False, parts),
            model(cache, ids[:, 20:21], at - at + 20, 21, None, True, parts),
            cache.entries,
        ]  # fmt: skip
    for ours, wanted in zip(found[False], found[True], strict=True):
        assert (ours - wanted).abs().max() <= TOLERANCE * wanted.abs().max()
    for ours, wanted in zip(found[False][:-1], found[True][:-1], strict=True):
        assert torch.equal(ours.argmax(-1), wanted.argmax(-1))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_live_loops_text_and_counts_are_the_eager_ones(variants, tiny_pair, batch_size):
    natives = [
        load_native(stored_weights(open_checkpoint(path)), torch.float32, CPU)
        for path in (tiny_pair.target, tiny_pair.draft)
    ]
    prompts = [[5 + row, 7, 9, 11 * row + 3][: 3 + row % 2] for row in range(batch_size)]
    runs = {}
    for mode in ("eager", "compiled"):
        target, draft = (Session(native, batch_size, 64, mode) for native in natives)
        runs[mode] = speculate(
            target, draft, prompts, RoundPlan(3, "greedy", Sampling()),
            max_new_tokens=[24] * batch_size, eos_token_ids=frozenset(), seeds=[0] * batch_size,
        ).runs  # fmt: skip
    assert runs["compiled"] == runs["eager"]
    assert variants


@torch.inference_mode()
def test_layers_and_models_of_one_kind_share_what_is_compiled(variants):
    def step(num_tokens: int) -> None:
        model = decoder()
        cache = KVCache(model.shape, 1, 24, model.rotary(24, torch.float32))
        ids = torch.zeros(1, num_tokens, dtype=torch.int64)
        model(cache, ids, ids, num_tokens, None, num_tokens == 1, compiled.compiled_parts(model))

    for num_tokens in (1, 5, 1, 7, 9):
        step(num_tokens)
    assert len(variants) == 2  # a lone token, and several


@torch.inference_mode()
def test_beyond_its_variants_a_function_raises_and_does_not_go_on_uncompiled(variants, monkeypatch):
    model = decoder()
    cache = KVCache(model.shape, 1, 24, model.rotary(24, torch.float32))
    parts, ids = compiled.compiled_parts(model), torch.zeros(1, 3, dtype=torch.int64)
    monkeypatch.setattr(compiled, "MAX_VARIANTS", 1)
    model(cache, ids, ids, 3, None, False, parts)
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        model(cache, ids[:, :1], ids[:, :1], 3, None, True, parts)


@torch.inference_mode()
def test_a_compiler_that_is_switched_off_is_an_error(variants):
    model = decoder()
    cache = KVCache(model.shape, 1, 24, model.rotary(24, torch.float32))
    ids = torch.zeros(1, 1, dtype=torch.int64)
    off = torch._dynamo.config.patch(disable=True)
    with off, pytest.raises(RuntimeError, match="switched off here, by TORCHDYNAMO_DISABLE"):
        model(cache, ids, ids, 1, None, True, compiled.compiled_parts(model))


class Foreign(nn.Module):
    """A library's product, which reads a value on the host: no compiler follows that."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.out_features = outputs
        self.register_buffer("weight", torch.ones(outputs, inputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T if not bool(x.isnan().any()) else x


@torch.inference_mode()
def test_a_product_that_cannot_be_traced_is_one_operator_of_its_own(variants):
    model = decoder()
    for layer in model.layers:
        layer.down = JoinedLinears([Foreign(32, 96), Foreign(32, 96)], [32, 32])
    before = set(packed_products._products)
    parts = compiled.compiled_parts(model)
    numbers = set(packed_products._products) - before
    assert len(numbers) == 4
    ids = torch.zeros(1, 2, dtype=torch.int64)
    cache = KVCache(model.shape, 1, 8, model.rotary(8, torch.float32))
    wanted = model(cache, ids, ids, 2)
    found = model(cache, ids, ids, 2, None, False, parts)
    assert torch.allclose(wanted, found, atol=1e-4)
    assert len(variants) == 1  # both layers: a number is no part of the code
    on_meta = torch.ops.quantdraft.packed_product(
        torch.empty(3, 96, device="meta"), torch.tensor(min(numbers)), 32
    )
    assert on_meta.shape == (3, 32)
    del parts
    torch._dynamo.reset()
    gc.collect()
    assert not numbers & set(packed_products._products)
