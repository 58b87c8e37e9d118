"""A decoder's parts by torch's compiler: what lies between two products becomes a kernel or two.

All layers of all models are one compiled function. It is compiled anew for each set of kernels,
and for one token, several tokens and one row among shapes: its sizes are variables otherwise.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from quantdraft.engines.kernels import cpu, cuda, dense, dequantizing, few_rows
from quantdraft.engines.kernels.packed_products import packed_rows, register_product
from quantdraft.engines.native.decoder import Decoder, Layer, Parts

# Variants of one function that are kept. With more the compiler raises: it never goes on without.
MAX_VARIANTS = 256
# The kernels that torch's compiler is known to follow; those of other libraries it need not.
TRACED = {module.__name__ for module in (cpu, cuda, dense, dequantizing, few_rows)}
OFF = "torch's compiler is switched off here, by TORCHDYNAMO_DISABLE or TORCH_COMPILE_DISABLE"


def compiled_parts(model: Decoder) -> Parts:
    """Return the parts of a decoder; each is compiled when it is first called.

    On a CPU the layers alone: the rest is a few calls, and a C++ compiler takes seconds for it.
    """
    layer, begin = _compiled(Layer.forward), model.begin
    if model.embedding.device.type != "cpu":
        begin = functools.partial(_compiled(Decoder.begin), model)
    return Parts(begin, [functools.partial(layer, _traceable(each)) for each in model.layers])


class OpaqueLinear(nn.Module):
    """A Linear that a compiler calls as it is, as one operator."""

    number: Tensor

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.out_features = int(linear.out_features)  # type: ignore[arg-type]
        register_product(self, linear)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out), in x's float type."""
        return packed_rows(x, self.number, self.out_features)


def _traceable(module: nn.Module) -> nn.Module:
    """Return a module on the same weights, in which other libraries' kernels are opaque."""
    if hasattr(module, "out_features"):
        is_ours = type(module).__module__ in TRACED or isinstance(module, nn.Linear)
        return module if is_ours else OpaqueLinear(module)
    twin = copy.copy(module)
    twin._modules = {
        name: None if child is None else _traceable(child)
        for name, child in module._modules.items()
    }
    return twin


def compiler_cause(error: Exception) -> Exception:
    """Return what a compiler failed with, without what torch wraps around it."""
    inner = getattr(error, "inner_exception", None)
    return compiler_cause(inner) if isinstance(inner, Exception) else error


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that is compiled whole; where it cannot be, a call raises."""
    run = torch.compile(function, dynamic=True, fullgraph=True)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        config = torch._dynamo.config
        if config.disable:
            raise RuntimeError(OFF)
        limits = dict.fromkeys(("recompile_limit", "accumulated_recompile_limit"), MAX_VARIANTS)
        with config.patch({**limits, "suppress_errors": False}):
            return run(*arguments)

    return call
