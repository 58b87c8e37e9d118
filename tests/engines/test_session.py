"""Which modes a session offers, and that what it decodes does not depend on the mode."""

from __future__ import annotations

import pytest
import torch

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.engines.kernels.book import NUM_VOTES, Book
from quantdraft.engines.kernels.operations import operations_fault
from quantdraft.engines.native import fused, session
from quantdraft.engines.native.decoder import Parts
from quantdraft.engines.native.model import load_native
from quantdraft.engines.native.session import (
    Session,
    decoding_mode,
    live_mode,
    modes,
    tried_modes,
)
from quantdraft.engines.native.steps import Stepper
from quantdraft.engines.native.weight_sources import stored_weights
from quantdraft.errors import OptionError
from quantdraft.measure.latency import loaded as loading
from quantdraft.measure.latency.loaded import Arm, Arms, mode_trials
from quantdraft.measure.sampling import Sampling
from quantdraft.measure.speculation import speculate
from quantdraft.measure.verification import RoundPlan

CPU = torch.device("cpu")
needs_operations = pytest.mark.skipif(
    operations_fault() is not None, reason=f"not offered on this machine: {operations_fault()}"
)


@pytest.fixture(scope="module")
def natives(tiny_pair):
    """Target and draft on this CPU."""
    return [
        load_native(stored_weights(open_checkpoint(path)), torch.float32, CPU)
        for path in (tiny_pair.target, tiny_pair.draft)
    ]


@needs_operations
def test_a_cpu_offers_the_fused_mode_behind_the_safe_one(natives):
    assert modes(natives[0], CPU) == ("eager", "fused", "compiled")
    assert tried_modes(natives[0], CPU) == ("eager", "fused")
    assert live_mode(CPU) == "fused"
    assert live_mode(torch.device("cuda")) == "eager"


def test_without_the_c_library_the_mode_is_not_offered(natives, monkeypatch):
    monkeypatch.setattr(fused, "operations_fault", lambda: "there is no C compiler")
    monkeypatch.setattr(session, "operations_fault", lambda: "there is no C compiler")
    assert modes(natives[0], CPU) == tried_modes(natives[0], CPU) == ("eager", "compiled")
    assert live_mode(CPU) == "eager"


def test_asked_for_where_it_is_not_offered_it_is_an_error_with_the_reason(tiny_pair, monkeypatch):
    monkeypatch.setattr(fused, "operations_fault", lambda: "there is no C compiler")
    sources = {"baseline": stored_weights(open_checkpoint(tiny_pair.draft))}
    arms = Arms(sources, {"baseline": (1,)}, (1,), CPU, "fused")
    with pytest.raises(OptionError, match="--mode fused: there is no C compiler"):
        arms.settle(1, 16)


def test_a_gpu_tries_the_compiler_first_where_it_can_write_triton(natives, monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(session, "has_triton", lambda: True)
    assert modes(natives[0], cuda) == ("graph", "compiled")
    assert tried_modes(natives[0], cuda) == ("compiled", "graph")
    assert decoding_mode(natives[0], cuda) == "graph"
    monkeypatch.setattr(session, "has_triton", lambda: False)
    assert modes(natives[0], cuda) == tried_modes(natives[0], cuda) == ("graph",)


def test_what_is_compiled_for_a_gpu_is_recorded_in_the_steps_of_graphs(natives, monkeypatch):
    recorded = []
    for device in ("cpu", "cuda"):
        found = torch.device(device)
        monkeypatch.setattr(session, "_device_of", lambda native, found=found: found)
        opened = Session(natives[1], 1, 16, "compiled")
        recorded.append((opened.is_recorded, opened.num_live(3), opened.row(0).is_recorded))
    assert recorded == [(False, 64, False), (True, 256, False)]


def failing(words: str):
    """Stand for compiled parts: calls fail as torch's compiler does."""

    def call(*_arguments):
        error = RuntimeError("backend='inductor' raised:\n" + words)
        error.inner_exception = ValueError(words)
        raise error

    return lambda model: Parts(call, [call] * len(model.layers))


def test_a_mode_that_cannot_compile_is_left_out_of_the_trial_by_name(natives, monkeypatch):
    monkeypatch.setattr(session, "compiled_parts", failing("there is no C++ compiler"))
    monkeypatch.setattr(loading, "_trials", lambda steps, device: [dict.fromkeys(steps, 1.0)])
    arm = Arm(natives[1], "eager", natives[1].source)
    said = "mode compiled is not used: a step fails: ValueError: there is no C"
    with pytest.warns(UserWarning, match=said):
        assert mode_trials(arm, ("eager", "compiled"), 1, 16, CPU) == [{"eager": 1.0}]
    with pytest.raises(RuntimeError, match="no C"), pytest.warns(UserWarning, match=said):
        mode_trials(arm, ("compiled",), 1, 16, CPU)


def test_where_one_arm_cannot_compile_no_arm_does_and_none_is_lost(tiny_pair, monkeypatch):
    book = Book(None)
    monkeypatch.setattr(loading, "book_of", lambda device, num_threads: book)
    monkeypatch.setattr(loading, "tried_modes", lambda native, device: ("compiled", "eager"))
    times = {"compiled": 1.0, "eager": 2.0}
    monkeypatch.setattr(loading, "mode_trials", lambda *arguments: [times] * NUM_VOTES)
    monkeypatch.setattr(loading, "float_types", lambda device: [torch.float32])
    faults = {"baseline": None, "candidate": "a step fails: no such operator"}
    asked = iter(faults.values())
    monkeypatch.setattr(loading, "compiling_fault", lambda *arguments: next(asked))
    source = stored_weights(open_checkpoint(tiny_pair.draft))
    arms = Arms(dict.fromkeys(faults, source), dict.fromkeys(faults, (1,)), (1,), CPU)
    with pytest.warns(UserWarning, match="compiled is not used: candidate: a step fails: no such"):
        found = loaded(arms)
    assert [arm.mode for arm in found.values()] == ["eager", "eager"]
    assert found["candidate"].mode_trial_ms == {"eager": pytest.approx(2.0)}


def test_asked_for_by_name_where_it_cannot_compile_is_an_error_with_arm_and_reason(
    tiny_pair, monkeypatch
):
    monkeypatch.setattr(session, "compiled_parts", failing("there is no C++ compiler"))
    sources = {"baseline": stored_weights(open_checkpoint(tiny_pair.draft))}
    arms = Arms(sources, {"baseline": (1,)}, (1,), CPU, "compiled")
    with pytest.raises(OptionError, match=r"--mode compiled: baseline: .* there is no C\+\+"):
        arms.settle(1, 16)


@needs_operations
def test_all_arms_run_fused_when_it_is_asked_for_or_found_faster(tiny_pair, monkeypatch):
    sources = {
        name: stored_weights(open_checkpoint(path))
        for name, path in (("baseline", tiny_pair.draft), ("target", tiny_pair.target))
    }
    asked = loaded(Arms(sources, dict.fromkeys(sources, (1,)), (1,), CPU, "fused"))
    assert {arm.mode for arm in asked.values()} == {"fused"}
    book = Book(None)
    monkeypatch.setattr(loading, "book_of", lambda device, num_threads: book)
    times = {"eager": 2.0, "fused": 1.0}
    monkeypatch.setattr(loading, "mode_trials", lambda *arguments: [times] * NUM_VOTES)
    monkeypatch.setattr(loading, "step_trials", None)  # a fused pass has one float type
    found = loaded(Arms(sources, dict.fromkeys(sources, (1,)), (1,), CPU))
    assert {arm.mode for arm in found.values()} == {"fused"}
    assert found["target"].mode_trial_ms == pytest.approx(times)


def loaded(arms: Arms) -> dict[str, Arm]:
    arms.settle(1, 16)
    return arms.load(list(arms.sources))


@needs_operations
@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_live_loops_text_and_counts_are_the_eager_ones(natives, batch_size):
    prompts = [[5 + row, 7, 9, 11 * row + 3][: 3 + row % 2] for row in range(batch_size)]
    runs = {}
    for mode in ("eager", "fused"):
        target, draft = (Session(native, batch_size, 48, mode) for native in natives)
        batch = speculate(
            target, draft, prompts, RoundPlan(3, "greedy", Sampling()),
            max_new_tokens=[40] * batch_size, eos_token_ids=frozenset(), seeds=[0] * batch_size,
        )  # fmt: skip
        runs[mode] = batch.runs
    alone, _ = (Session(native, batch_size, 48, "fused") for native in natives)
    plain = speculate(
        alone, None, prompts, RoundPlan(0, "greedy", Sampling()),
        max_new_tokens=[40] * batch_size, eos_token_ids=frozenset(), seeds=[0] * batch_size,
    )  # fmt: skip
    assert runs["fused"] == runs["eager"]
    assert [run.token_ids for run in runs["fused"]] == [run.token_ids for run in plain.runs]


@needs_operations
@torch.inference_mode()
def test_a_stepper_steps_back_to_its_context(natives):
    stepper = Stepper(natives[1], 2, 20, 8, "fused")
    for num_tokens in (1, 5, 1, 8):
        stepper.step(num_tokens)
    assert stepper.session.cache is not None
    behind = stepper.session.cache.entries[:, :, :, :20]
    assert torch.equal(behind, torch.full_like(behind, 0.01))
