"""Count what one decoding step launches on a GPU, without one: recorded, and compiled and recorded.

python -m tests.benchmarks.launches [--shapes llama-3.2-1b,qwen3-0.6b,llama-3.1-8b] [--tokens 1,5]

Batch 1, bfloat16. "graph": torch's operators are run on tensors without data, and each that is no
view counts as one launch. "compiled": the launches in the code that torch's compiler writes for an
H100 (`offline_inductor`), for what comes before the layers, for one layer, and, as operators, for
the head and argmax. The last line is one JSON object: launches a step, and of one layer.

What is not counted: a matrix product or an attention that is several kernels inside its library
(split sums, and the sum of a split attention; both modes call the same ones, so both are too low by
as much), fills and copies inside of them, and whether launches are what a step waits for.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from quantdraft.checkpoints.shapes import shape_checkpoint
from quantdraft.engines.kernels.dense import DenseLinear
from quantdraft.engines.native.decoder import Decoder, DecoderShape, KVCache, Layer, Rotary
from tests.benchmarks.offline_inductor import launches
from tests.fake_cuda import share_memory

SHAPES = ("llama-3.2-1b", "qwen3-0.6b", "llama-3.1-8b")
META = torch.device("meta")
CONTEXT = 512
MEMORY = {"empty", "empty_like"}  # operators that launch nothing, besides views

torch.library.define(
    "launches::attention", "(Tensor q, Tensor k, Tensor v, Tensor? mask) -> Tensor"
)


@torch.library.register_fake("launches::attention")  # type: ignore[untyped-decorator]
def _attended(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Return what stands for the output, (batch, heads, rows, dim).

    Without a mask it lies in memory as the query does (flash attention), with one rows before heads
    (the memory-efficient kernel).
    """
    _, heads, rows, dim = query.shape
    if mask is None:
        return torch.empty_like(query)
    return query.new_empty_strided(query.shape, (heads * rows * dim, dim, heads * dim, 1))


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    out: Tensor = torch.ops.launches.attention(query, key, value, attn_mask)
    return out


class Launches(TorchDispatchMode):
    """Counts the operators that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        if name == "attention":
            self.number += 1
            with _disable_current_modes():
                return _attended(*args)
        results = function(*args, **(kwargs or {}))
        is_view = not function._schema.is_mutable and share_memory(results, (args, kwargs))
        self.number += not (is_view or name in MEMORY)
        return results


def main() -> None:
    """Print a line a shape and number of tokens, then the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--tokens", default="1,5")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for name in options.shapes.split(","):
        for tokens in map(int, options.tokens.split(",")):
            counts = step_launches(name, tokens)
            found.setdefault(name, {})[str(tokens)] = counts
            print(f"{name}, {tokens} new tokens:", counts, flush=True)
    print(json.dumps(found))


def step_launches(name: str, num_tokens: int) -> dict[str, int]:
    """Return the launches of a step and of one layer, recorded and compiled."""
    config = shape_checkpoint(name).config
    one, two = (graph_launches(config, layers, num_tokens) for layers in (1, 2))
    begin, layer = compiled_launches(config, num_tokens)
    num_layers = int(config["num_hidden_layers"])
    head_and_argmax = 2
    return {
        "graph": one + (num_layers - 1) * (two - one),
        "compiled": len(begin) + num_layers * len(layer) + head_and_argmax,
        "graph_layer": two - one,
        "compiled_layer": len(layer),
    }


def graph_launches(config: dict[str, Any], num_layers: int, num_tokens: int) -> int:
    """Return the operators of a step, with argmax, that are no views."""
    model = decoder(config, num_layers)
    cache, *inputs = step_inputs(model, num_tokens)
    with one_attention(), torch.inference_mode(), Launches() as counted:
        model(cache, *inputs[:3], None, inputs[3]).argmax(-1)
    return counted.number


def compiled_launches(
    config: dict[str, Any], num_tokens: int, linear: type[nn.Module] | Any = None
) -> tuple[list[str], list[str]]:
    """Return the names of what the beginning of a step launches, and of what one layer does.

    linear: makes a Linear of (outputs, inputs); None: in bfloat16
    """
    model = decoder(config, 1, linear or dense)
    cache, *inputs = step_inputs(model, num_tokens)
    with one_attention(), torch.inference_mode():
        begin = launches(Decoder.begin, model, cache, *inputs)
        x, normed, shared = model.begin(cache, *inputs)
        layer = launches(
            Layer.forward, model.layers[0], x, normed, cache.entries[0], shared, model.norm
        )
    return begin, layer


def step_inputs(model: Decoder, num_tokens: int) -> tuple[KVCache, Tensor, Tensor, int, bool]:
    """Return what a step of the timing reads: see `Decoder.begin`. A lone token sees all."""
    cache = KVCache(model.shape, 1, 2 * CONTEXT, model.rotary(2 * CONTEXT, torch.bfloat16))
    ids = torch.zeros(1, num_tokens, dtype=torch.int64, device=META)
    return cache, ids, ids, CONTEXT + num_tokens, num_tokens == 1


def decoder(config: dict[str, Any], num_layers: int, linear: Any = None) -> Decoder:
    """Return a decoder of a published shape, with so many layers, without data."""
    shape = DecoderShape.of(SimpleNamespace(**config | {"num_hidden_layers": num_layers}))
    heads, dim, hidden = shape.num_heads + 2 * shape.num_kv_heads, shape.head_dim, shape.hidden_size
    linear = linear or dense
    layers = [
        Layer(
            shape,
            qkv=linear(heads * dim, hidden),
            out=linear(hidden, shape.num_heads * dim),
            gate_up=linear(2 * shape.intermediate_size, hidden),
            down=linear(hidden, shape.intermediate_size),
            norms=(ones(hidden), ones(hidden)),
            head_norms=(ones(dim), ones(dim)) if config["model_type"] == "qwen3" else None,
        )
        for _ in range(num_layers)
    ]
    embedding = torch.empty(shape.vocab_size, hidden, dtype=torch.bfloat16, device=META)
    rotary = Rotary(torch.ones(dim // 2, device=META), 1.0)
    return Decoder(shape, embedding, layers, ones(hidden), dense(shape.vocab_size, hidden), rotary)


def dense(outputs: int, inputs: int) -> nn.Module:
    """Return a Linear in bfloat16, without data."""
    weight = torch.empty(outputs, inputs, dtype=torch.bfloat16, device=META)
    return DenseLinear(weight, None, torch.bfloat16)


def ones(size: int) -> Tensor:
    """Return a norm's weight, without data."""
    return torch.ones(size, dtype=torch.bfloat16, device=META)


@contextmanager
def one_attention() -> Iterator[None]:
    """Let attention be one operator, as it is on a GPU; a CPU's torch takes it apart."""
    with mock.patch.object(F, "scaled_dot_product_attention", _attention):
        yield


if __name__ == "__main__":
    main()
