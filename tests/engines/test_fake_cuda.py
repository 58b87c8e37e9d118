"""What runs on a GPU alone, to its end, on one that is not there (`tests/fake_cuda.py`)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.engines.kernels import trials
from quantdraft.engines.native import session as sessions
from quantdraft.engines.native.model import load_native
from quantdraft.engines.native.recording import Recording
from quantdraft.engines.native.session import Session
from quantdraft.engines.native.weight_sources import RandomWeights, stored_weights
from quantdraft.measure import speculation
from quantdraft.measure.latency import grid, opened, timing_plan
from quantdraft.measure.latency.loaded import BASELINE, TARGET
from quantdraft.measure.speculation import LiveBatch, speculate
from quantdraft.measure.verification import RoundPlan
from quantdraft.quantize.recipe import load_recipe
from quantdraft.traffic.traffic import Sampling
from quantdraft.workflows.bench import BenchSettings, Contenders, measure_bench
from tests.benchmarks.gpu_loop import decode_timed
from tests.clock import Clock
from tests.fake_cuda import CUDA, fake_cuda

GREEDY = Sampling()
PROMPTS = ((5, 7, 9), (11, 3, 2, 8))


@pytest.fixture
def cuda(short_timing, monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(trials, "CUDA_CALLS", 1)
    monkeypatch.setattr(trials, "NUM_ROUNDS", 1)
    for module in (grid, opened, timing_plan):
        monkeypatch.setattr(module, "MIN_LOADS", 1, raising=False)
    with fake_cuda(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kernels that no CPU has
        yield


def pair(tiny_pair, mode: str) -> list[Session]:
    """Sessions of a target and its draft."""
    paths = (tiny_pair.target, tiny_pair.draft)
    natives = [load_native(stored_weights(open_checkpoint(p)), torch.float32, CUDA) for p in paths]
    return [Session(native, 2, 64, mode) for native in natives]


def decode(verifier: Session, proposer: Session, sampling: Sampling = GREEDY) -> LiveBatch:
    """Both prompts in one batch."""
    plan = RoundPlan(3, "greedy" if sampling.is_greedy else "rejection", sampling)
    return speculate(
        verifier, proposer, PROMPTS, plan,
        max_new_tokens=[20, 24], eos_token_ids=frozenset(), seeds=[0, 1],
    )  # fmt: skip


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.8)])
def test_a_loop_of_recorded_rounds_writes_what_an_eager_one_writes(cuda, tiny_pair, sampling):
    eager, recorded = (pair(tiny_pair, mode) for mode in ("eager", "graph"))
    wanted = decode(*eager, sampling).runs
    assert decode(*recorded, sampling).runs == wanted
    graphs = [graph.graph for session in recorded for graph in session._graphs.values()]
    assert sum(graph.num_replays for graph in graphs) > len(graphs)
    assert decode(*recorded, sampling).runs == wanted  # replayed alone


def test_no_seconds_of_a_live_loop_hold_a_recording(cuda, tiny_pair, monkeypatch):
    clock, loop = Clock(), pair(tiny_pair, "graph")

    class Slow(Recording):
        def __init__(self, *given) -> None:
            super().__init__(*given)
            clock.sleep(100.0)

    monkeypatch.setattr(sessions, "Recording", Slow)
    monkeypatch.setattr(speculation, "time", clock)
    found = decode_timed(loop, decode)
    assert found.decode_seconds == 0
    number = [session.num_recordings for session in loop]
    assert min(number) > 0
    assert clock.seconds == 100 * sum(number)


def test_a_step_that_reads_a_value_on_the_host_cannot_be_recorded(cuda, tiny_pair):
    session = pair(tiny_pair, "graph")[0]
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        session.call(("bad",), lambda x: x * float(x.sum()), torch.ones(2))


def test_a_bench_records_every_arm_that_has_a_kernel(cuda, tiny_pair):
    shape = open_checkpoint(tiny_pair.draft)
    recipes = ("fp8-block", "int8-head8", "int4")
    sources = {BASELINE: RandomWeights(shape, None)}
    sources |= {name: RandomWeights(shape, load_recipe(name)) for name in recipes}
    sources |= {TARGET: RandomWeights(open_checkpoint(tiny_pair.target), None, seed=1)}
    settings = BenchSettings(
        shape="tiny", recipes=recipes, batch_sizes=(2,), context_lengths=(16,),
        new_tokens=(1, 5), seconds=0.01, device="cuda",
    )  # fmt: skip
    bench = measure_bench(settings, Contenders("tiny", sources), lambda _, measure: measure())
    (point,) = bench.points
    assert set(point.arms) == set(sources) - {"fp8-block"}
    assert "Invalid scaling configuration" in point.undefined["fp8-block"]  # no CPU has it
    for name, arm in point.arms.items():
        assert (arm.mode, arm.compute_dtype) == ("graph", "bfloat16")
        assert set(arm.steps) == ({1, 5} if name == TARGET else {1})
        assert (arm.head_step is None) == (name == TARGET)
        assert arm.peak_memory_bytes
    assert "int4_tinygemm" in point.arms["int4"].kernels
