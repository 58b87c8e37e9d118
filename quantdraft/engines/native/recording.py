"""A function recorded as a CUDA graph, with the buffers it reads and writes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from quantdraft.errors import NoKernelError

EMPTY = "CUDA Graph is empty"  # what torch warns of where nothing of a function was recorded


class Recording:
    """Replays a function on buffers of its own; `pool` is the memory of all graphs of a session.

    Graphs of one pool write over each other's results: only those of the last replay are valid.
    """

    def __init__(self, function: Callable[..., Any], inputs: Sequence[Tensor], pool: Any) -> None:
        self.inputs = [tensor.clone() for tensor in inputs]
        # Libraries allocate and choose kernels on first use, which must not be recorded.
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                function(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        # As an error the warning would leave the capture's stream behind as the current one.
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            with torch.cuda.graph(self.graph, pool=pool):
                self.outputs = function(*self.inputs)
        _check(found)

    def __call__(self, inputs: Sequence[Tensor]) -> Any:
        """Return the function's result for inputs of the same shapes and types."""
        for buffer, tensor in zip(self.inputs, inputs, strict=True):
            buffer.copy_(tensor, non_blocking=True)
        self.graph.replay()
        return self.outputs


def _check(found: Sequence[warnings.WarningMessage]) -> None:
    """Raise NoKernelError for an empty graph, whose replays take no time; show other warnings."""
    if any(EMPTY in str(each.message) for each in found):
        raise NoKernelError(
            "the graph of a step is empty: its kernels ran on another device or stream than the "
            "one that was recorded. Choose the GPU by CUDA_VISIBLE_DEVICES."
        )
    for each in found:
        warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
