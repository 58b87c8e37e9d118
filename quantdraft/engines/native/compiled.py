"""A decoder's parts by torch's compiler: what lies between two products becomes a kernel or two.

All layers of all models are one compiled function. It is compiled anew for each set of kernels,
and for one token, several tokens and one row among shapes: its sizes are variables otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from quantdraft.engines.native.decoder import Decoder, Layer, Parts

# Variants of one function that are kept. With more the compiler raises: it never goes on without.
MAX_VARIANTS = 256
OFF = "torch's compiler is switched off here, by TORCHDYNAMO_DISABLE or TORCH_COMPILE_DISABLE"


def compiled_parts(model: Decoder) -> Parts:
    """Return the parts of a decoder; each is compiled when it is first called.

    On a CPU the layers alone: the rest is a few calls, and a C++ compiler takes seconds for it.
    """
    layer, begin = _compiled(Layer.forward), model.begin
    if model.embedding.device.type != "cpu":
        begin = functools.partial(_compiled(Decoder.begin), model)
    return Parts(begin, [functools.partial(layer, each) for each in model.layers])


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
