"""How many kernels a layer launches on a GPU, by the code that torch's compiler writes for one."""

from __future__ import annotations

import pytest
import torch

from quantdraft.checkpoints.shapes import shape_checkpoint
from quantdraft.engines.kernels import cuda
from quantdraft.engines.kernels.cuda import Fp8Linear
from tests.benchmarks.launches import compiled_launches, graph_launches

PRODUCTS = "extern_kernels.mm"
ATTENTION = "torch.ops.launches.attention.default"


@pytest.mark.parametrize(("name", "most"), [("llama-3.2-1b", 10), ("qwen3-0.6b", 9)])
def test_a_compiled_layer_is_four_products_attention_and_few_kernels_between(name, most):
    """Norms with the sums before them, rotation with the write to the cache, silu with its product.

    Qwen3's heads, normed, are one kernel; Llama's queries are one, its keys and values another.
    """
    config = shape_checkpoint(name).config
    begin, layer = compiled_launches(config, 1)
    assert len(begin) <= 3
    assert len(layer) <= most
    assert layer.count(PRODUCTS) == 4
    assert layer.count(ATTENTION) == 1
    one, two = (graph_launches(config, layers, 1) for layers in (1, 2))
    assert len(layer) < 0.6 * (two - one)


def test_two_of_four_roundings_to_fp8_are_in_the_kernel_that_makes_the_inputs(monkeypatch):
    """The others stand behind attention, and at the layer's beginning, behind the layer before."""
    monkeypatch.setattr(cuda, "require_capability", lambda *_: None)

    def linear(outputs: int, inputs: int) -> Fp8Linear:
        values = torch.empty(outputs, inputs, dtype=torch.float8_e4m3fn, device="meta")
        scale = torch.empty(outputs, 1, device="meta")
        weight = cuda.Unpacked(values, scale, None, None, None)
        return Fp8Linear(weight, None, torch.bfloat16)

    _, layer = compiled_launches(shape_checkpoint("qwen3-0.6b").config, 1, linear)
    assert len(layer) <= 9 + 2, layer
