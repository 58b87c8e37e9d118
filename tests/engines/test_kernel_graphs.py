"""A recording that fails names what failed, and leaves the current stream as it was."""

from __future__ import annotations

import warnings
from contextlib import contextmanager

import pytest
import torch

from quantdraft.engines.kernels.graphs import captured


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
