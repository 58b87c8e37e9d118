"""A GPU that is not there: tensors say they are on it, and a CPU computes them.

What the code does on a GPU alone is then run to its end: choosing kernels, recording steps, timing,
reading memory. Recorded graphs replay: each operator that ran while one was recorded runs again, on
the same memory. As on a GPU, a recording fails at whatever needs a value on the host. What no CPU
has (Triton, cuBLAS's scales of blocks) is refused, as on a machine that lacks it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
CAPTURING = "operation not permitted when stream is capturing"
# Operators that write nothing into what they return: views of it, and memory.
UNWRITTEN = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach"}
TO_HOST = {"item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__"}
PROPERTIES = SimpleNamespace(
    name="NVIDIA H100 that is not there",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=85_000_000_000,
    L2_cache_size=50 << 20,
    uuid="none",
)


class Graph:
    """A recording: operators with their inputs, and the memory of their results."""

    recording: Graph | None = None

    def __init__(self) -> None:
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.num_replays = 0

    def replay(self) -> None:
        """Run all operators again; each result goes where it was."""
        self.num_replays += 1
        with torch.inference_mode():
            for function, args, kwargs, results in self.calls:
                again = function(*args, **kwargs)
                for old, new in zip(tree_leaves(results), tree_leaves(again), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


def share_memory(results: Any, inputs: Any) -> bool:
    """Return whether all results lie in the memory of inputs: such an operator runs nothing.

    Its schema does not tell: `to` and `reshape` return views or copies.
    """
    known = {each.untyped_storage()._cdata for each in tree_leaves(inputs) if is_tensor(each)}
    found = [each.untyped_storage()._cdata for each in tree_leaves(results) if is_tensor(each)]
    return bool(found) and known.issuperset(found)


def is_tensor(value: Any) -> bool:
    """Return whether a value is a tensor."""
    return isinstance(value, Tensor)


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        if name in {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim"}:
            raise RuntimeError(f"CUDA error: {CAPTURING} ({name})")
        results = function(*args, **kwargs)
        is_view = not function._schema.is_mutable and share_memory(results, (args, kwargs))
        if not is_view and name not in UNWRITTEN:
            self.graph.calls.append((function, args, kwargs, results))
        return results


class _OnCuda(TorchFunctionMode):
    """Answers for the GPU; what is asked of it goes to the CPU."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function == Tensor.device.__get__:  # type: ignore[attr-defined]
            return CUDA
        if function == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return True
        if function is torch.device:
            return function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        if Graph.recording is not None and name in TO_HOST:
            raise RuntimeError(f"CUDA error: {CAPTURING} ({name})")
        if name in {"cuda", "pin_memory"}:
            return args[0]
        if Graph.recording is not None and name == "to" and "cpu" in map(str, args[1:2]):
            raise RuntimeError(f"CUDA error: {CAPTURING} (to cpu)")
        args, kwargs = tree_map(_on_cpu, (args, kwargs))
        function = {
            "_convert_weight_to_int4pack": _packed,
            "_weight_int4pack_mm": _int4_product,
        }.get(name, function)
        return function(*args, **kwargs)


def _packed(pairs: Tensor, inner_k_tiles: int) -> Tensor:
    """Return tinygemm's weight as it was given: (out, in / 2) uint8, even columns high."""
    return pairs


def _int4_product(x: Tensor, pairs: Tensor, group_size: int, scales: Tensor) -> Tensor:
    """Return tinygemm's product. scales: (groups, out, 2), scale and zero of values -8 to 7."""
    values = torch.stack((pairs >> 4, pairs & 15), dim=-1).flatten(1).float() - 8
    scale, zero = (each.T.repeat_interleave(group_size, 1) for each in scales.float().unbind(-1))
    return (x.float() @ (values * scale + zero).T).to(x.dtype)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == "cuda":
        return CPU
    return "cpu" if isinstance(value, str) and value.partition(":")[0] == "cuda" else value


@contextlib.contextmanager
def _captured(graph: Graph, pool: Any = None) -> Iterator[None]:
    Graph.recording = graph
    try:
        with _Recorder(graph):
            yield
    finally:
        Graph.recording = None


class Stream:
    """A queue in which nothing waits."""

    def wait_stream(self, other: Stream) -> None:
        """Wait for nothing."""


class _Event:
    def __init__(self, enable_timing: bool = False) -> None:
        self.seconds = 0.0

    def record(self) -> None:
        """Take the time."""
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        """Wait for nothing."""

    def elapsed_time(self, end: _Event) -> float:
        """Return the ms between two events."""
        return (end.seconds - self.seconds) * 1e3


@contextlib.contextmanager
def fake_cuda() -> Iterator[None]:
    """Pretend that this machine has one GPU, on which all tensors are."""
    stream = Stream()
    answers = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "get_device_properties": lambda *_: PROPERTIES,
        "get_device_capability": lambda *_: (9, 0),
        "get_device_name": lambda *_: PROPERTIES.name,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "mem_get_info": lambda *_: (80_000_000_000, 85_000_000_000),
        "memory_allocated": lambda *_: 0,
        "memory_reserved": lambda *_: 0,
        "max_memory_allocated": lambda *_: 1 << 20,
        "reset_peak_memory_stats": lambda *_: None,
        "Stream": Stream,
        "current_stream": lambda *_: stream,
        "set_stream": lambda _: None,
        "stream": lambda _: contextlib.nullcontext(),
        "CUDAGraph": Graph,
        "graph": _captured,
        "graph_pool_handle": object,
        "Event": _Event,
    }
    with mock.patch.multiple(torch.cuda, **answers), _OnCuda():
        yield
