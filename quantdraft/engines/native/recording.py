"""A function recorded as a CUDA graph, with the buffers it reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from quantdraft.engines.kernels.graphs import captured, run_unrecorded
from quantdraft.errors import NoKernelError

EMPTY = (
    "the graph of a step is empty: its kernels ran on another device or stream than the one that "
    "was recorded. Choose the GPU by CUDA_VISIBLE_DEVICES."
)


class Recording:
    """Replays a function on buffers of its own; `pool` is the memory of all graphs of a session.

    Graphs of one pool write over each other's results: only those of the last replay are valid.
    """

    def __init__(self, function: Callable[..., Any], inputs: Sequence[Tensor], pool: Any) -> None:
        self.inputs = [tensor.clone() for tensor in inputs]
        run_unrecorded(lambda: function(*self.inputs), times=3)
        self.graph = torch.cuda.CUDAGraph()
        with captured(self.graph, pool, NoKernelError(EMPTY)):
            self.outputs = function(*self.inputs)

    def __call__(self, inputs: Sequence[Tensor]) -> Any:
        """Return the function's result for inputs of the same shapes and types."""
        for buffer, tensor in zip(self.inputs, inputs, strict=True):
            buffer.copy_(tensor, non_blocking=True)
        self.graph.replay()
        return self.outputs
