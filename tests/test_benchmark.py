"""Arms whose steps take a known time by a clock that they move themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from quantdraft import arms, benchmark, latency
from quantdraft.arms import Arms, row_counts, weight_bytes
from quantdraft.benchmark import Plan, fewest_seconds, measure_grid
from quantdraft.latency import MIN_BLOCKS, NUM_WARMUP_BLOCKS
from quantdraft.results import Roofline
from quantdraft.step_bytes import Ledger

CPU = torch.device("cpu")
BF16, F32 = torch.bfloat16, torch.float32
LEDGER = Ledger(500, 300, 150, 20, 30, 0, 8)
ROOF = Roofline(1e9, 1e9, {})


@dataclass
class Source:
    """A model whose step takes `ms`, in bfloat16 `slow` times as long from 2 rows on."""

    name: str
    ms: float = 0.2
    slow: float = 1.0
    formats: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=lambda: {"vocab_size": 10, "hidden_size": 4})
    checkpoint: None = None
    ledger: Ledger = LEDGER


class Clock:
    """Time passes only when a step says so."""

    seconds = 0.0

    def perf_counter(self) -> float:
        return self.seconds


CLOCK = Clock()


class Step:
    """Moves the clock instead of computing."""

    def __init__(self, native, batch_size, context_length, max_new, mode):
        rows_cost = native.source.slow if native.dtype is BF16 and batch_size > 1 else 1.0
        self.seconds = native.source.ms * rows_cost / 1e3
        assert mode == "eager"

    def step(self, num_tokens: int) -> None:
        CLOCK.seconds += self.seconds * num_tokens


@pytest.fixture
def loads(monkeypatch) -> list[tuple[str, torch.dtype]]:
    """What was loaded, in order."""
    loaded = []

    def load(source, dtype, device, rows):
        loaded.append((source.name, dtype))
        if source.name == "fp8":
            raise arms.UndefinedMetricError("no cpu kernel computes in fp8")
        return SimpleNamespace(
            source=source,
            dtype=dtype,
            compute_dtype=str(dtype).removeprefix("torch."),
            kernels=("sleep",),
            weight_bytes=1000,
            runtime="native decoder",
            is_own=False,
            step_bytes=lambda batch, context: 1000 + 8 * batch * context,
        )

    monkeypatch.setattr(arms, "time", CLOCK)
    monkeypatch.setattr(latency, "time", CLOCK)
    monkeypatch.setattr(arms, "load_native", load)
    monkeypatch.setattr(arms, "Stepper", Step)
    monkeypatch.setattr(arms, "modes", lambda native, device: ("eager",))
    monkeypatch.setattr(arms, "TRIAL_SECONDS", 0.0)
    monkeypatch.setattr(benchmark, "measure_roofline", lambda device: ROOF)
    return loaded


def plan(*points: tuple[int, int], **options: Any) -> Plan:
    chosen = {"widths": (1, 3), "device": CPU, "max_seconds": 0.0} | options
    return Plan(points=points, **chosen)


def four_arms(ms: float = 0.2) -> dict[str, Source]:
    return {
        "baseline": Source("draft", ms=ms),
        "candidate": Source("quick", ms=ms / 2, formats={"layer": "int8"}),
        "control": Source("draft", ms=ms),
        "target": Source("target", ms=ms),
    }


def test_arms_differ_as_their_steps_do_and_the_control_does_not(loads):
    (found,) = measure_grid(four_arms(ms=4.0), plan((1, 16)))
    times = {(arm, m): s.samples_ms for arm, a in found.arms.items() for m, s in a.steps.items()}
    wanted = {"baseline": 4.0, "candidate": 2.0, "control": 4.0, "target": 4.0}
    for arm, ms in wanted.items():
        assert times[arm, 1] == pytest.approx([ms] * MIN_BLOCKS)
    assert times["target", 3] == pytest.approx([12.0] * MIN_BLOCKS)
    assert set(times) == {*((arm, 1) for arm in wanted), ("target", 3)}
    assert found.undefined == {}
    assert found.roofline == ROOF


def test_an_arm_says_what_it_reads_and_how_it_runs(loads):
    (found,) = measure_grid(four_arms(), plan((2, 16)))
    arm = found.arms["candidate"]
    assert arm.step_bytes == 1000 + 8 * 2 * 16
    assert (arm.head_bytes, arm.mode, arm.runtime) == (150, "eager", "native decoder")
    assert arm.peak_memory_bytes


def test_a_format_without_a_kernel_is_left_out_with_its_reason(loads):
    sources = four_arms() | {"candidate": Source("fp8", formats={"layer": "fp8"})}
    (found,) = measure_grid(sources, plan((1, 16)))
    assert found.undefined == {"candidate": "no cpu kernel computes in fp8"}
    assert set(found.arms) == {"baseline", "control", "target"}


def test_the_fastest_type_is_taken_at_each_batch_and_the_control_follows(loads):
    sources = {"baseline": Source("draft", slow=20.0), "control": Source("draft", slow=20.0)}
    found = Arms(sources, dict.fromkeys(sources, (1,)), (1, 2, 4), CPU)
    first = found.at(2, 16)
    assert [first[name].native.dtype for name in sources] == [F32, F32]
    assert loads == [("draft", BF16), ("draft", F32), ("draft", F32)]
    second = found.at(4, 16)  # float32 gains with every row more: nothing is tried again
    assert second["baseline"].native is first["baseline"].native
    assert len(loads) == 3


def test_points_come_in_the_order_asked_for_and_models_are_loaded_once(loads):
    asked = ((2, 32), (1, 16), (1, 32))
    measured = measure_grid(four_arms(), plan(*asked))
    assert tuple((p.batch_size, p.context_length) for p in measured) == asked
    assert loads.count(("target", F32)) <= 2  # once a batch size at most


def test_a_point_that_takes_too_long_is_left_out_but_never_the_first(loads):
    sources = {"baseline": Source("draft", ms=2.0)}
    measured = measure_grid(sources, plan((1, 16), (1, 32), max_seconds=0.01))
    assert set(measured[0].arms) == {"baseline"}
    assert measured[1].arms == {}
    reason = measured[1].undefined["baseline"]
    assert reason.startswith("from batch 1, context 32 on the fewest timings that mean anything")


def test_points_larger_than_one_that_takes_too_long_are_not_even_loaded(loads):
    sources = {"baseline": Source("draft", ms=2.0)}
    asked = ((4, 64), (1, 16), (1, 32), (2, 16), (2, 32), (8, 16))
    measured = dict(zip(asked, measure_grid(sources, plan(*asked, max_seconds=0.01)), strict=True))
    assert [point for point in asked if measured[point].arms] == [(4, 64)]  # the first, whatever
    reasons = {measured[point].undefined["baseline"] for point in asked[1:]}
    assert len(reasons) == 1
    assert reasons.pop().startswith("from batch 1, context 16 on")
    assert loads.count(("draft", F32)) <= 2  # of batches 1 and 4


def test_what_does_not_fit_into_memory_is_left_out_with_both_sizes(loads, monkeypatch):
    monkeypatch.setattr(arms, "available_bytes", lambda device: 5_000)
    config = {"vocab_size": 10, "hidden_size": 4}
    large = {"baseline": Source("draft", config=config)}
    measured = measure_grid(large, plan((1, 16), (1, 1000)))
    assert set(measured[0].arms) == {"baseline"}
    reason = measured[1].undefined["baseline"]
    assert reason.startswith("batch 1, context 1000 does not fit: it needs about")


def test_weights_that_do_not_fit_are_not_loaded(loads, monkeypatch):
    monkeypatch.setattr(arms, "available_bytes", lambda device: 500)
    (found,) = measure_grid({"baseline": Source("draft")}, plan((1, 16)))
    assert "draft does not fit" in found.undefined["baseline"]
    assert loads == []


def test_apart_from_the_target_the_drafts_keep_their_own_blocks(loads):
    sources = {"baseline": Source("draft"), "target": Source("target", ms=4.0)}
    (found,) = measure_grid(sources, plan((1, 16), is_paired=False, max_seconds=0.8))
    draft = found.arms["baseline"].steps[1].samples_ms
    target = found.arms["target"].steps[3].samples_ms
    assert len(draft) > len(target) >= MIN_BLOCKS


def test_the_fewest_seconds_are_those_of_warmup_and_fewest_blocks():
    probes = {"baseline": {1: 10.0}, "target": {1: 20.0, 5: 30.0}}
    # a block: the draft forwards and backwards, rehearsed each time; the target twice
    assert fewest_seconds(probes) == (4 * 10 + 2 * 50) * (NUM_WARMUP_BLOCKS + MIN_BLOCKS) / 1e3


def test_kernels_are_chosen_for_one_row_count_a_power_of_two():
    assert row_counts((1, 2, 64), (1,)) == (1, 2, 64)
    assert row_counts((1,), range(1, 18)) == (1, 2, 4, 8, 16)


def test_weights_take_what_a_step_reads_and_the_table():
    cuda = torch.device("cuda")
    assert weight_bytes(Source("draft"), BF16, cuda) == 1000 + 10 * 4 * 2
    assert weight_bytes(Source("draft"), F32, cuda) == 2000 + 10 * 4 * 4
    # on a CPU many rows are multiplied in float32, whatever the type of one
    assert weight_bytes(Source("draft"), BF16, CPU) == 1000 + 2000 + 10 * 4 * 2
    quantized = Source("quick", formats={"layer": "int8"})
    assert weight_bytes(quantized, F32, CPU) == 1000 + 10 * 4 * 4
