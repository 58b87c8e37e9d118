"""A recording that fails names what failed, and leaves the current stream as it was."""

from __future__ import annotations

import warnings
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from quantdraft.engines.kernels import KERNELS
from quantdraft.engines.kernels.graphs import captured, recorded
from quantdraft.measure.latency import point


@pytest.fixture
def streams(monkeypatch):
    """Stands for CUDA: a capture changes the stream, and ends with an error after a failure.

    Returns the current stream last, and what a capture warns of first.
    """
    state = ["", "default"]

    @contextmanager
    def graph(graph, pool=None):
        state[-1] = "capturing"
        try:
            yield
        except RuntimeError:
            raise RuntimeError("operation failed due to a previous error during capture") from None
        if state[0]:
            warnings.warn(state[0], stacklevel=2)
        state[-1] = "default"

    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: state[-1])
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: state.__setitem__(-1, stream))
    return state


def test_what_fails_inside_a_recording_is_raised(streams):
    with pytest.raises(RuntimeError, match="a host wait"), captured(None):
        raise RuntimeError("a host wait")
    assert streams[-1] == "default"


def test_an_empty_recording_is_an_error_and_other_warnings_are_shown(streams):
    streams[0] = "The CUDA Graph is empty. This usually means that ..."
    with pytest.raises(RuntimeError, match="the graph is empty"), captured(None):
        pass
    streams[0] = "another"
    with pytest.warns(UserWarning, match="another"), captured(None):
        assert streams[-1] == "capturing"


def test_a_recorded_function_runs_once_to_warm_up_and_once_to_be_recorded(streams, monkeypatch):
    graph, calls = MagicMock(), []
    streams[-1] = MagicMock()
    for name, stand_in in (("Stream", MagicMock), ("CUDAGraph", lambda: graph)):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    replay = recorded(lambda: calls.append(1))
    replay()
    replay()
    assert len(calls) == 2
    assert graph.replay.call_count == 2


@pytest.mark.parametrize("is_gpu", [False, True])
def test_the_head_is_timed_as_steps_are(monkeypatch, is_gpu):
    model = MagicMock(shape=SimpleNamespace(hidden_size=8), embedding=torch.ones(1))
    native = SimpleNamespace(is_own=True, model=model, dtype=torch.float32)
    monkeypatch.setattr(point, "is_recorded", lambda device: is_gpu)
    monkeypatch.setattr(point, "recorded", lambda function: ("recorded", function))
    found = point.head_product(native, 3)
    assert isinstance(found, tuple) == is_gpu
    (found[1] if is_gpu else found)()
    assert model.head.call_args.args[0].shape == (3, 1, 8)


def test_a_baseline_has_a_choice_of_kernels_on_a_gpu_too():
    assert len(KERNELS["cuda", "dense"]) >= 2
