"""Time the products of one layer in bitsandbytes' formats on this machine, a token at a time.

python -m tests.benchmarks.bitsandbytes_layer [--shape llama-3.2-1b] [--rounds 60] [--threads 2]

Random weights, one row of inputs, on a CPU. The arms take turns, each with two copies of its layer
in rotation, so that no cache holds them; bf16 and INT4 stand beside as this project computes them.
The last line is one JSON object: the median ms of each arm, and its multiple of the fastest bf16.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import nn

from quantdraft.checkpoints.shapes import shape_checkpoint
from quantdraft.engines.kernels.bitsandbytes import BitsandbytesLinear, LlmInt8Linear
from quantdraft.engines.kernels.dense import DenseLinear
from quantdraft.engines.kernels.few_rows import Bf16FewRowsLinear, Int4FewRowsLinear
from quantdraft.engines.native.weight_sources import RandomWeights
from quantdraft.quantize.recipe import load_recipe

LAYER = "model.layers.0"
MODULES = [f"{LAYER}.self_attn.{name}_proj" for name in "qkvo"]
MODULES += [f"{LAYER}.mlp.{name}_proj" for name in ("gate", "up", "down")]
# arm -> recipe (None: full precision) and the kernel
ARMS: dict[str, tuple[str | None, Callable[..., nn.Module]]] = {
    "bf16, torch": (None, DenseLinear),
    "bf16": (None, Bf16FewRowsLinear),
    "int4": ("int4", Int4FewRowsLinear),
    "nf4": ("nf4", BitsandbytesLinear),
    "fp4": ("fp4", BitsandbytesLinear),
    "int8-bnb": ("int8-bnb", LlmInt8Linear),
}


def layer(shape: str, arm: str, seed: int) -> list[tuple[nn.Module, torch.Tensor]]:
    """The Linears of one layer under an arm's recipe and kernel, each with a row of inputs."""
    recipe, kernel = ARMS[arm]
    weights = RandomWeights(
        shape_checkpoint(shape), load_recipe(recipe) if recipe else None, seed=seed
    )
    tensors = shape_checkpoint(shape).tensors
    widths = [tensors[f"{module}.weight"].shape[1] for module in MODULES]
    made = [kernel(weights.weight(module), None, torch.float32) for module in MODULES]
    return [(module, torch.ones(1, width)) for module, width in zip(made, widths, strict=True)]


@torch.inference_mode()
def product_ms(linears: Sequence[tuple[nn.Module, torch.Tensor]]) -> float:
    """One token through every Linear of a layer."""
    started = time.perf_counter()
    for module, row in linears:
        module(row)
    return 1e3 * (time.perf_counter() - started)


def main() -> None:
    """Print a line for each arm, then the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    copies = {arm: [layer(options.shape, arm, seed) for seed in (0, 1)] for arm in ARMS}
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for index in range(options.rounds):
        for arm in list(ARMS)[:: 1 if index % 2 else -1]:
            times[arm].append(product_ms(copies[arm][index // 2 % 2]))
    medians = {arm: median(samples[2:]) for arm, samples in times.items()}
    fastest = min(medians["bf16"], medians["bf16, torch"])
    for arm, ms in medians.items():
        print(f"{arm:<12} {ms:8.2f} ms  {ms / fastest:6.2f} times the fastest bf16")
    print(
        json.dumps(
            {"median_ms": medians, "times_bf16": {a: m / fastest for a, m in medians.items()}}
        )
    )


if __name__ == "__main__":
    main()
