"""Random weights have the shapes, the formats and the bytes that a recipe's checkpoint would."""

from __future__ import annotations

import pytest
import torch

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.checkpoints.tensors.unpacking import Unpacked, dequantize
from quantdraft.engines.native.linears import stack_weights
from quantdraft.engines.native.model import load_native
from quantdraft.engines.native.session import Session
from quantdraft.engines.native.steps import Stepper
from quantdraft.engines.native.weight_sources import RandomWeights, stored_weights
from quantdraft.quantize.recipe import load_recipe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shape(tiny_pair):
    return open_checkpoint(tiny_pair.draft)


@pytest.mark.parametrize("recipe", [None, "int4", "int8", "int4-head8", "int8-weight-only"])
def test_a_random_model_runs_and_is_the_same_every_time(shape, recipe):
    source = RandomWeights(shape, None if recipe is None else load_recipe(recipe))
    native = load_native(source, torch.float32, CPU)
    ids = torch.arange(6)[None]
    with torch.inference_mode():
        one, other = (
            Session(load_native(source, torch.float32, CPU), 1, 6).forward(ids, ids, 6)
            for _ in range(2)
        )
    assert one.isfinite().all()
    assert torch.equal(one, other)
    assert native.source is source


def test_random_weights_have_the_spread_of_real_ones(shape):
    module = "model.layers.0.mlp.down_proj"
    weights = {
        recipe: RandomWeights(shape, load_recipe(recipe)).weight(module)
        for recipe in ("int4", "int8", "fp8")
    }
    for weight in weights.values():
        assert isinstance(weight, Unpacked)
        assert dequantize(weight).std() == pytest.approx(0.02, rel=0.1)


def test_a_quantized_head_of_a_tied_model_is_its_own(shape):
    assert shape.has_tied_head
    assert RandomWeights(shape, load_recipe("int4-head8")).has("lm_head.weight")
    assert not RandomWeights(shape, load_recipe("int4")).has("lm_head.weight")


def test_step_bytes_are_the_ledgers(shape):
    source = stored_weights(shape)
    native = load_native(source, torch.bfloat16, CPU)
    ledger = source.ledger
    assert native.step_bytes(1, 0) == ledger.weight_bytes
    # bf16 keys and values: 2 layers, 2 of them, 2 heads of 64, 2 bytes each, two rows of ten tokens
    assert native.step_bytes(2, 10) - ledger.weight_bytes == 2 * 2 * 2 * 64 * 2 * 20
    wider = load_native(source, torch.float32, CPU)
    assert wider.step_bytes(1, 10) - ledger.weight_bytes == 2 * 2 * 2 * 64 * 4 * 10


def test_stacking_keeps_every_rows_integers_and_refuses_what_cannot_be_joined():
    def weight(rows: int, group_size: int | None) -> Unpacked:
        integers = torch.randint(-8, 8, (rows, 64), dtype=torch.int8)
        groups = 1 if group_size is None else 64 // group_size
        return Unpacked(integers, torch.rand(rows, groups), None, group_size, None)

    one, other = weight(3, 32), weight(5, 32)
    joined = stack_weights([one, other])
    assert isinstance(joined, Unpacked)
    assert torch.equal(dequantize(joined)[:3], dequantize(one))
    assert torch.equal(dequantize(joined)[3:], dequantize(other))
    assert stack_weights([one, weight(5, None)]) is None
    assert stack_weights([one, torch.rand(5, 64)]) is None
    blocks = torch.zeros(96, 64, dtype=torch.int8)
    blocked = Unpacked(blocks, torch.rand(2, 1), None, None, (64, 64))
    assert stack_weights([blocked, blocked]) is None  # 96 rows end within a block of 64


def test_a_step_leaves_the_context_as_it_was(shape):
    stepper = Stepper(load_native(stored_weights(shape), torch.float32, CPU), 2, 20, 8)
    cache = stepper.session.cache
    assert cache is not None
    before = cache.entries[:, :, :, :20].clone()
    stepper.step(8)
    stepper.step(1)
    assert torch.equal(cache.entries[:, :, :, :20], before)
    assert cache.entries[:, :, :, 20:28].abs().sum() > 0
