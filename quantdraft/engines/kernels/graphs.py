"""Recording of a CUDA graph: what fails in it is named, and an empty one is an error."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

EMPTY = "CUDA Graph is empty"  # what torch warns of where nothing of a function was recorded


@contextmanager
def captured(
    graph: torch.cuda.CUDAGraph, pool: Any = None, empty: Exception | None = None
) -> Iterator[None]:
    """Record what runs inside; the current stream stays what it was, also where that fails.

    Raises what failed inside, not the end of the recording, which then fails too; `empty`, or a
    RuntimeError, for an empty graph, whose replays would take no time.
    """
    before = torch.cuda.current_stream()
    inside: Exception | None = None
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            with torch.cuda.graph(graph, pool=pool):
                try:
                    yield
                except Exception as error:
                    inside = error
                    raise
    except Exception as error:
        raise inside or error from None
    finally:
        torch.cuda.set_stream(before)
    for each in found:
        if EMPTY in str(each.message):
            raise empty or RuntimeError(
                "the graph is empty: its kernels ran on another device or stream"
            )
        warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


def run_unrecorded(function: Callable[[], object], times: int = 1) -> None:
    """Run a function on a stream of its own: libraries allocate and choose kernels on first use.

    That must not be recorded.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(times):
            function()
    torch.cuda.current_stream().wait_stream(stream)


def recorded(function: Callable[[], object]) -> Callable[[], None]:
    """Return what replays a function from a CUDA graph, in which launching costs no Python."""
    run_unrecorded(function)
    graph = torch.cuda.CUDAGraph()
    with captured(graph):
        function()

    def replay(_owner: Callable[[], object] = function) -> None:  # of what the graph reads
        graph.replay()

    return replay


def is_recorded(device: torch.device) -> bool:
    """Return True where decoding is recorded as a CUDA graph."""
    return device.type == "cuda"
