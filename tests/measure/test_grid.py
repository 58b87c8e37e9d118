"""Arms whose steps take a known time by a clock that they move themselves."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from quantdraft.engines.kernels.book import Book
from quantdraft.errors import OptionError
from quantdraft.measure.latency import grid as benchmark
from quantdraft.measure.latency import interleaved as latency
from quantdraft.measure.latency import loaded as arms
from quantdraft.measure.latency import memory
from quantdraft.measure.latency import point as point_timing
from quantdraft.measure.latency.grid import measure_grid
from quantdraft.measure.latency.loaded import Arms, row_counts
from quantdraft.measure.latency.memory import weight_bytes
from quantdraft.measure.latency.opened import (
    BLOCKS_PER_LOAD,
    CACHED_BYTES,
    NUM_IN_A_ROW,
    NUM_REHEARSALS,
    WARMUP_BLOCKS,
    Opened,
    fewest_seconds,
    num_repeats,
    rehearsal,
)
from quantdraft.measure.latency.point import PointTiming
from quantdraft.measure.latency.timing_plan import (
    MIN_LOADS,
    Place,
    Review,
    TimingPlan,
    num_loads_for,
)
from quantdraft.record import GpuState, Roofline
from quantdraft.record.step_bytes import Ledger
from tests.clock import Clock

CPU = torch.device("cpu")
BF16, F32 = torch.bfloat16, torch.float32
LEDGER = Ledger(500, 300, 150, 20, 30, 0, 8)
ROOF = Roofline(1e9, 1e9, {})
NUM_BLOCKS = MIN_LOADS * BLOCKS_PER_LOAD


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
    fault: Exception | None = None  # what its step raises
    fails_from: int = 1  # rows


CLOCK = Clock()


class Step:
    """Moves the clock instead of computing."""

    found_bytes = 0

    def __init__(self, native, batch_size, context_length, max_new, mode):
        rows_cost = native.source.slow if native.dtype is BF16 and batch_size > 1 else 1.0
        self.seconds = native.source.ms * rows_cost / 1e3
        self.batch_size = batch_size
        self.fault, self.fails_from = native.source.fault, native.source.fails_from
        assert mode == "eager"

    def step(self, num_tokens: int) -> None:
        if self.fault is not None and num_tokens * self.batch_size >= self.fails_from:
            raise self.fault
        CLOCK.sleep(self.seconds * num_tokens)


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
            quantized_bytes=0,
            promised_bytes=0,
            runtime="native decoder",
            is_own=False,
            model=SimpleNamespace(config=LlamaConfig()),
            step_bytes=lambda batch, context: 1000 + 8 * batch * context,
        )

    monkeypatch.setattr(gc, "collect", lambda: 0)  # what is loaded here takes no memory
    monkeypatch.setattr(arms, "time", CLOCK)
    monkeypatch.setattr(latency, "time", CLOCK)
    monkeypatch.setattr(arms, "load_native", load)
    monkeypatch.setattr(arms, "Stepper", Step)
    monkeypatch.setattr(arms, "modes", lambda native, device: ("eager",))
    monkeypatch.setattr(benchmark, "time", CLOCK)
    monkeypatch.setattr(point_timing, "time", CLOCK)
    monkeypatch.setattr(arms, "TRIAL_SECONDS", 0.0)
    book = Book(None)
    monkeypatch.setattr(arms, "book_of", lambda device, num_threads: book)
    monkeypatch.setattr(benchmark, "measure_roofline", lambda device: ROOF)
    return loaded


def plan(*points: tuple[int, int], **options: Any) -> TimingPlan:
    chosen = {"widths": (1, 3), "device": CPU, "max_seconds": 0.0} | options
    return TimingPlan(points=points, **chosen)


def five_arms(ms: float = 0.2) -> dict[str, Source]:
    return {
        "baseline": Source("draft", ms=ms),
        "candidate": Source("quick", ms=ms / 2, formats={"layer": "int8"}),
        "target": Source("target", ms=ms),
        "control": Source("draft", ms=ms),
        "target-control": Source("target", ms=ms),
    }


def test_arms_differ_as_their_steps_do_and_the_control_does_not(loads):
    (found,) = measure_grid(five_arms(ms=4.0), plan((1, 16)))
    times = {(arm, m): s.samples_ms for arm, a in found.arms.items() for m, s in a.steps.items()}
    wanted = dict.fromkeys(five_arms(), 4.0) | {"candidate": 2.0}
    for arm, ms in wanted.items():
        assert times[arm, 1] == pytest.approx([ms] * NUM_BLOCKS)
    assert times["target", 3] == pytest.approx([12.0] * NUM_BLOCKS)
    assert set(times) == {*((arm, 1) for arm in wanted), ("target", 3)}
    assert found.undefined == {}
    assert found.roofline == ROOF


def test_an_arm_says_what_it_reads_and_how_it_runs(loads):
    (found,) = measure_grid(five_arms(), plan((2, 16)))
    arm = found.arms["candidate"]
    assert arm.step_bytes == 1000 + 8 * 2 * 16
    assert (arm.head_bytes, arm.mode, arm.runtime) == (150, "eager", "native decoder")
    assert arm.peak_memory_bytes


def test_a_format_without_a_kernel_is_left_out_with_its_reason(loads):
    sources = five_arms() | {"candidate": Source("fp8", formats={"layer": "fp8"})}
    (found,) = measure_grid(sources, plan((1, 16)))
    assert found.undefined == {"candidate": "no cpu kernel computes in fp8"}
    assert set(found.arms) == {"baseline", "control", "target", "target-control"}


def test_arms_whose_steps_fail_are_left_out_each_with_its_reason_and_all_others_go_on(loads):
    lost = RuntimeError("operation not permitted when stream is capturing\nmore")
    faults = {
        "lost": (lost, "batch 2, context 16 cannot run: a step fails: operation not permitted"),
        "strides": (ValueError("a stride must be 1"), "a step fails: ValueError: a stride must"),
        "lone": (arms.UndefinedMetricError("no kernel takes it"), "cannot run: no kernel takes"),
        "large": (torch.OutOfMemoryError("x"), "does not fit: the device ran out of memory"),
    }
    sources = five_arms() | {
        name: Source(name, formats={"layer": "int8"}, fault=fault, fails_from=2)
        for name, (fault, _) in faults.items()
    }
    sources["first"] = Source("first", formats={"layer": "int8"}, fault=lost)
    one, two = measure_grid(sources, plan((1, 16), (2, 16), max_seconds=1.0))
    assert set(one.arms) == {*five_arms(), *faults}
    assert set(two.arms) == {*five_arms()}
    for name, (_, reason) in faults.items():
        assert reason in two.undefined[name]
        assert "\n" not in two.undefined[name]
    assert "stream is capturing" in one.undefined["first"]


def test_a_baseline_that_cannot_be_loaded_leaves_the_others(loads, monkeypatch):
    load = arms.load_native

    def failing(source, dtype, device, rows):
        if source.name == "draft":
            raise RuntimeError("no kernel image is available for execution on the device")
        return load(source, dtype, device, rows)

    monkeypatch.setattr(arms, "load_native", failing)
    (found,) = measure_grid(five_arms(), plan((1, 16)))
    assert set(found.arms) == {"candidate", "target", "target-control"}
    assert "no kernel image is available" in found.undefined["baseline"]


def test_an_error_of_the_users_is_no_fault_of_an_arm(loads):
    sources = five_arms() | {"candidate": Source("quick", fault=OptionError("--mode fused: no"))}
    with pytest.raises(OptionError, match="--mode fused: no"):
        measure_grid(sources, plan((1, 16)))


def test_a_peak_is_the_arms_own_weights_and_what_its_steps_allocate(loads, monkeypatch):
    allocated = iter(range(30_000, 80_000, 10_000))  # by the arms before
    monkeypatch.setattr(point_timing, "reset_peak", lambda device: next(allocated))
    peaks = iter(range(30_100, 80_100, 10_000))
    monkeypatch.setattr(point_timing, "peak_bytes", lambda device: next(peaks))
    monkeypatch.setattr(point_timing, "memory_shortage", lambda num_bytes, device: None)
    timing = PointTiming(plan(device=torch.device("cuda")), 1, 16, ROOF, (1,), 0.0, 0, None)
    monkeypatch.setattr(point_timing, "probe_ms", lambda step, width, device: 1.0)
    native = arms.load_native(Source("draft"), BF16, CPU, (1,))
    drafts = {name: arms.Arm(native, "eager", Source("draft")) for name in ("baseline", "control")}
    opened = timing._open_arms(drafts, {})
    assert [arm.peak_memory_bytes for arm in opened.values()] == [1100, 1100]


def test_full_precision_models_share_the_baselines_float_type(loads):
    sources = {
        "baseline": Source("draft", slow=20.0),
        "target": Source("target", slow=0.1),
        "candidate": Source("quick", slow=0.1, formats={"layer": "int8"}),
    }
    found = Arms(sources, dict.fromkeys(sources, (1,)), (2,), CPU)
    found.settle(2, 16)
    loaded = found.load(list(sources))
    types = {name: arm.native.dtype for name, arm in loaded.items()}
    assert types == {"baseline": F32, "target": F32, "candidate": BF16}


def test_a_float_type_is_settled_once_for_every_process(loads):
    sources = {"baseline": Source("draft", slow=20.0)}
    for _ in range(2):
        Arms(sources, {"baseline": (1,)}, (2,), CPU).settle(2, 16)
    assert loads == [("draft", BF16), ("draft", F32), ("draft", BF16)]


def test_every_arm_is_loaded_anew_for_every_load_in_another_order(loads):
    (found,) = measure_grid(five_arms(), plan((1, 16)))
    assert found.num_loads == MIN_LOADS
    assert found.loads == tuple(n for n in range(MIN_LOADS) for _ in range(BLOCKS_PER_LOAD))
    names = [name for name, _ in loads][-5 * MIN_LOADS :]
    orders = {tuple(names[i : i + 5]) for i in range(0, len(names), 5)}
    assert all(sorted(order) == sorted(names[:5]) for order in orders)
    assert len(orders) > 1


def test_more_time_is_more_loads():
    assert num_loads_for(0.0, 0.1) == MIN_LOADS
    assert num_loads_for(5.0, 0.1) == 10
    assert num_loads_for(20.0, 2.0) == 10
    assert num_loads_for(20.0, 60.0) == MIN_LOADS


def test_time_goes_where_the_review_says_and_old_blocks_stay_paired(loads):
    def review(latency):
        assert latency.num_loads == MIN_LOADS // 2
        return Review((1, 3), ())

    (found,) = measure_grid(five_arms(), plan((1, 16), widths=(1, 3, 5), review=review))
    steps = found.arms["target"].steps
    half = NUM_BLOCKS // 2
    assert len(steps[3].samples_ms) == NUM_BLOCKS
    assert steps[3].blocks == ()
    assert steps[5].blocks == ()  # those of the first loads, from 0 on
    assert len(steps[5].samples_ms) == half
    assert found.retried == ()


def test_contradicting_steps_are_timed_again_once_on_new_choices(loads, monkeypatch):
    forgotten, asked = [], []
    monkeypatch.setattr(benchmark, "forget_choices", lambda: forgotten.append(1))

    def review(latency):
        asked.append(latency.num_loads)
        return Review((), ("the target takes 0.5 times as long for 3 new tokens as for 1",))

    places: list[Place] = []

    def keep(place, measure):
        places.append(place)
        return measure()

    (found,) = measure_grid(five_arms(), plan((1, 16), review=review), keep=keep)
    assert (len(forgotten), len(asked)) == (1, 2)
    assert found.retried == ("the target takes 0.5 times as long for 3 new tokens as for 1",)
    assert found.num_loads == MIN_LOADS  # those of the first attempt are not among them
    assert [place.attempt for place in places] == [0] * (MIN_LOADS // 2) + [1] * MIN_LOADS


def test_loads_that_are_kept_are_not_loaded_again(loads):
    kept = {}

    def keep(place, measure):
        if place not in kept:
            kept[place] = measure()
        return kept[place]

    first = measure_grid(five_arms(), plan((1, 16)), keep=keep)
    del kept[Place(0, 2, 1, 16)]
    loads.clear()
    again = measure_grid(five_arms(), plan((1, 16)), keep=keep)
    assert again[0].arms == first[0].arms
    assert len(loads) <= 3 * len(five_arms())  # to settle (two types), and the one that was lost


def test_points_come_in_the_order_asked_for(loads):
    asked = ((2, 32), (1, 16), (1, 32))
    measured = measure_grid(five_arms(), plan(*asked))
    assert tuple((p.batch_size, p.context_length) for p in measured) == asked


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


def test_what_does_not_fit_into_memory_is_left_out_with_both_sizes(loads, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 5_000)
    config = {"vocab_size": 10, "hidden_size": 4}
    large = {"baseline": Source("draft", config=config)}
    measured = measure_grid(large, plan((1, 16), (1, 1000)))
    assert set(measured[0].arms) == {"baseline"}
    reason = measured[1].undefined["baseline"]
    assert reason.startswith("batch 1, context 1000 does not fit: it needs about")


def test_a_target_without_room_beside_the_drafts_is_timed_after_them(loads, monkeypatch):
    sources = {"baseline": Source("draft"), "target": Source("target", ms=4.0)}
    monkeypatch.setattr(
        point_timing, "memory_shortage", lambda size, device: None if next(asks) > size else "no"
    )
    asks = iter([9e9, 10.0, 9e9] * MIN_LOADS)  # the draft, the target beside it, the target alone
    (found,) = measure_grid(sources, plan((1, 16), is_paired=False, max_seconds=1.0))
    assert found.undefined == {}
    draft, target = found.arms["baseline"].steps[1], found.arms["target"].steps[3]
    assert target.samples_ms == pytest.approx([12.0] * len(target.samples_ms))
    assert not {*draft.blocks} & {*target.blocks}
    assert sorted({*draft.blocks, *target.blocks}) == [*range(len(found.loads))]


def test_the_card_is_asked_before_and_after_every_load_of_a_point(loads, monkeypatch):
    states = iter(GpuState(utilization_percent=share) for share in range(2 * MIN_LOADS))
    monkeypatch.setattr(point_timing, "read_gpu_state", lambda device: next(states))
    (found,) = measure_grid({"baseline": Source("draft")}, plan((1, 16)))
    assert [state.utilization_percent for state in found.gpu_states] == [*range(2 * MIN_LOADS)]


def test_models_of_one_shape_need_one_cache(loads, monkeypatch):
    needed: list[int] = []
    monkeypatch.setattr(
        point_timing, "memory_shortage", lambda size, device: needed.append(int(size))
    )
    timing = PointTiming(plan(), 2, 1000, ROOF, (1,), 0.0, 0, None)
    native = arms.load_native(Source("draft"), BF16, CPU, (1,))
    native.is_own, native.model = True, SimpleNamespace(shape="one", config=LlamaConfig())
    drafts = {name: arms.Arm(native, "eager", Source("draft")) for name in ("baseline", "control")}
    timing._open_arms(drafts, {})
    assert needed[0] - needed[1] == 8 * 2 * 1001  # keys and values, by `step_bytes`


def test_weights_that_do_not_fit_are_not_loaded(loads, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 500)
    (found,) = measure_grid({"baseline": Source("draft")}, plan((1, 16)))
    assert "draft does not fit" in found.undefined["baseline"]
    assert loads == []


def test_apart_from_the_target_the_drafts_keep_their_own_blocks(loads):
    sources = {"baseline": Source("draft"), "target": Source("target", ms=4.0)}
    (found,) = measure_grid(sources, plan((1, 16), is_paired=False, max_seconds=0.8))
    draft = found.arms["baseline"].steps[1].samples_ms
    target = found.arms["target"].steps[3].samples_ms
    assert len(draft) > len(target) >= NUM_BLOCKS


def opened(cached: bool = True, **probes: dict[int, float]) -> dict[str, Opened]:
    """Arms as they are before they are timed; `calls` gets what their steps do."""
    size = 1000 if cached else 2 * CACHED_BYTES
    return {
        name: Opened(
            SimpleNamespace(native=SimpleNamespace(weight_bytes=size)),
            SimpleNamespace(step=lambda width, name=name: calls.append((name, width))),
            0,
            looks,
        )
        for name, looks in probes.items()
    }


calls: list[tuple[str, int]] = []


def test_the_fewest_seconds_are_those_of_the_fewest_blocks_of_the_fewest_loads():
    arms = opened(baseline={1: 10.0}, target={1: 20.0, 5: 30.0})
    row, before = NUM_IN_A_ROW, NUM_REHEARSALS
    block_ms = 2 * ((row + before) * 10 + (row + before) * 20 + (30 + before * 20))
    num_blocks = MIN_LOADS * (WARMUP_BLOCKS + BLOCKS_PER_LOAD)
    assert fewest_seconds(arms, CPU) == block_ms * num_blocks / 1e3
    large = opened(cached=False, baseline={1: 10.0}, target={1: 20.0, 5: 30.0})
    assert fewest_seconds(large, CPU) == 2 * (10 + 20 + 30) * num_blocks / 1e3


def test_short_steps_of_a_gpu_run_in_a_row_and_long_ones_alone():
    cuda = torch.device("cuda")
    arms = opened(cached=False, baseline={1: 0.5}, target={1: 2.0, 9: 12.0})
    assert num_repeats(arms["baseline"], 1, cuda) == 8
    assert num_repeats(arms["baseline"], "head", cuda) == 8
    assert num_repeats(arms["target"], 1, cuda) == 3
    assert num_repeats(arms["target"], 9, cuda) == 1
    num_blocks = MIN_LOADS * (WARMUP_BLOCKS + BLOCKS_PER_LOAD)
    assert fewest_seconds(arms, cuda) == 2 * (8 * 0.5 + 3 * 2 + 12) * num_blocks / 1e3


def test_before_a_step_runs_what_comes_before_it_when_it_is_served():
    arms = opened(baseline={1: 10.0}, candidate={1: 5.0}, target={1: 20.0, 5: 30.0})
    for name, width, wanted in (
        ("candidate", 1, [("candidate", 1)] * NUM_REHEARSALS),
        ("target", 1, [("target", 1)] * NUM_REHEARSALS),
        ("target", 5, [*[("target", 1)] * (NUM_REHEARSALS - 1), ("baseline", 1)]),
    ):
        calls.clear()
        before = rehearsal(arms, name, width)
        assert before is not None
        before()
        assert calls == wanted


def test_weights_that_no_cache_holds_need_no_rehearsal():
    assert rehearsal(opened(cached=False, target={1: 20.0}), "target", 1) is None


def test_rows_are_every_batch_with_every_number_of_tokens():
    assert row_counts((1, 2, 64), (1,)) == (1, 2, 64)
    assert row_counts((1, 2), (1, 3)) == (1, 2, 3, 6)


def test_weights_take_what_a_step_reads_and_the_table():
    cuda = torch.device("cuda")
    assert weight_bytes(Source("draft"), BF16, cuda) == 1000 + 10 * 4 * 2
    assert weight_bytes(Source("draft"), F32, cuda) == 2000 + 10 * 4 * 4
    # on a CPU many rows are multiplied in float32, whatever the type of one
    assert weight_bytes(Source("draft"), BF16, CPU) == 1000 + 2000 + 10 * 4 * 2
    quantized = Source("quick", formats={"layer": "int8"})
    assert weight_bytes(quantized, F32, CPU) == 1000 + 10 * 4 * 4
    # on a GPU few and many rows may have each a packing, if there are both
    assert weight_bytes(quantized, BF16, cuda, (1,)) == 1000 + 10 * 4 * 2
    assert weight_bytes(quantized, BF16, cuda, (1, 64)) == 2000 + 10 * 4 * 2


def test_weights_that_were_loaded_count_what_they_took(loads, monkeypatch):
    sources = {"baseline": Source("draft", ledger=Ledger(*[900] * 7, 8))}
    found = Arms(sources, {"baseline": (1,)}, (1,), CPU)
    found.settle(1, 16)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1200)
    assert found.fit_twice()  # 1000 bytes, far below what the ledger would have them take
