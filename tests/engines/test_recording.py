"""What a session gives to CUDA's graphs, on a stand-in: a CPU records nothing."""

from __future__ import annotations

import contextlib
import warnings
from types import SimpleNamespace

import pytest
import torch

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.checkpoints.tensors import devices
from quantdraft.checkpoints.tensors.devices import pick_device
from quantdraft.engines.native.model import load_native
from quantdraft.engines.native.session import Session
from quantdraft.engines.native.steps import Stepper
from quantdraft.engines.native.weight_sources import stored_weights
from quantdraft.errors import NoKernelError

CPU = torch.device("cpu")
EMPTY = (
    "The CUDA Graph is empty. This usually means that the graph was attempted to be captured on "
    "wrong device or stream."
)


@pytest.fixture(scope="module")
def native(tiny_pair):
    return load_native(stored_weights(open_checkpoint(tiny_pair.draft)), torch.float32, CPU)


class StandIn:
    """Takes the part of `torch.cuda`'s graphs; `pools` are those that captures were given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, warning: str | None = None) -> None:
        self.pools, self.warning = [], warning
        stream = SimpleNamespace(wait_stream=lambda other: None)
        names = {
            "Stream": lambda: stream,
            "current_stream": lambda: stream,
            "set_stream": lambda stream: None,
            "stream": lambda stream: contextlib.nullcontext(),
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
            "graph_pool_handle": object,
            "graph": self.capture,
        }
        for name, value in names.items():
            monkeypatch.setattr(torch.cuda, name, value)

    @contextlib.contextmanager
    def capture(self, graph, pool=None):
        self.pools.append(pool)
        yield
        if self.warning is not None:
            warnings.warn(self.warning, stacklevel=2)


def test_all_graphs_of_a_session_share_one_pool(native, monkeypatch):
    cuda = StandIn(monkeypatch)
    for session in (Session(native, 1, 16, "graph"), Session(native, 1, 16, "graph")):
        for size in (1, 2, 1):
            session.call(("double", size), lambda x: 2 * x, torch.ones(size))
    first, second, third, fourth = cuda.pools
    assert first is second is not None
    assert third is fourth is not first


def test_an_empty_graph_is_an_error_and_other_warnings_are_shown(native, monkeypatch):
    StandIn(monkeypatch, EMPTY)
    with pytest.raises(NoKernelError, match="the graph of a step is empty"):
        Session(native, 1, 16, "graph").call(("double",), lambda x: 2 * x, torch.ones(1))
    StandIn(monkeypatch, "something else")
    with pytest.warns(UserWarning, match="something else"):
        Session(native, 1, 16, "graph").call(("double",), lambda x: 2 * x, torch.ones(1))


def test_steps_of_models_of_one_shape_share_the_memory_of_their_caches(native):
    steps = [Stepper(native, 2, 20, 4) for _ in range(2)]
    other = Stepper(native, 1, 20, 4)
    first, second, third = (step.session.cache for step in (*steps, other))
    assert first.entries.data_ptr() == second.entries.data_ptr() != third.entries.data_ptr()
    assert (first.found_bytes, second.found_bytes) == (0, first.num_bytes)
    assert Session(native, 2, 24).cache.entries.data_ptr() != first.entries.data_ptr()
    del steps, first, second
    assert Stepper(native, 2, 20, 4).found_bytes == 0


@pytest.mark.parametrize("mode", ["graph", "compiled", "eager"])
def test_a_timed_step_reads_what_there_is_and_a_lone_token_has_no_mask(native, mode, monkeypatch):
    StandIn(monkeypatch)
    step, asked = Stepper(native, 1, 21, 4, mode), []

    def forward(token_ids, positions, num_live, at=None, sees_all=False):
        asked.append((num_live, sees_all))
        return torch.zeros(1, 1, 4)

    monkeypatch.setattr(step.session, "forward", forward)
    step.step(1)
    step.step(4)
    assert set(asked) == {(22, True), (25, False)}


def test_on_a_gpu_eager_steps_of_many_lengths_share_a_number_of_slots(native, monkeypatch):
    monkeypatch.setattr(
        "quantdraft.engines.native.session._device_of", lambda native: torch.device("cuda")
    )
    session = Session(native, 1, 70)
    assert {session.num_live(n) for n in range(1, 65)} == {64}
    assert session.cache.num_slots == 128
    assert Session(native, 1, 70, is_level=True).num_live(22) == 22


def test_a_gpu_is_picked_without_cudnns_attention_and_a_caller_may_have_it_back(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", calls.append)
    monkeypatch.setattr(devices, "_TOUCHED", set())
    assert pick_device().type == "cuda"
    torch.backends.cuda.enable_cudnn_sdp(True)  # as `gpu_suite --cudnn-attention` does
    pick_device("cuda")  # as every command does for itself
    assert calls == [False, True]
