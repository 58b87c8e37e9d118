"""The arms of an evaluation, timed side by side: target, baseline, candidates, and two controls.

Every arm is loaded several times, in fresh memory and in a new order, and stepped at each point
(batch, context): what differs between two loads of one model is then in the samples. A point or an
arm that does not fit into memory or time is left out, and `Latency.undefined` says why; nothing is
estimated.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.engines.kernels.choice import forget_choices
from quantdraft.engines.native.model import NativeModel
from quantdraft.engines.native.weight_sources import WeightSource, stored_weights
from quantdraft.measure.latency.interleaved import time_interleaved
from quantdraft.measure.latency.loaded import (
    BASELINE,
    CONTROL,
    TARGET,
    TARGET_CONTROL,
    TARGETS,
    Arm,
    Arms,
    Step,
    memory_shortage,
    point_bytes,
    probe_ms,
)
from quantdraft.measure.latency.memory import peak_bytes, reset_peak
from quantdraft.measure.latency.roofline import measure_roofline
from quantdraft.record import ArmLatency, Latency, Roofline, StepSamples
from quantdraft.record.choices import ModeChoice
from quantdraft.record.provenance import load_around, load_average

# Loads of every arm: as many as there are slots of so many seconds, each at least a load long.
SLOT_SECONDS = 0.5
MIN_LOADS, MAX_LOADS = 4, 200
BLOCKS_PER_LOAD, WARMUP_BLOCKS = 4, 1  # at least
# Weights that fit into a cache lie there when they are served; what other arms evicted comes back
# only after several passes: the same target took 1.38, 1.34, 1.09, 1.04, 0.99 and then 0.95 ms.
CACHED_BYTES = 512 * 2**20  # more than a processor's caches
NUM_REHEARSALS, NUM_IN_A_ROW = 4, 4  # passes before a step is timed, and under one reading
# A point beyond the first is given up where its fewest blocks take this many times the budget.
MAX_OVERRUN = 3.0
OVERRUN = "the fewest timings that mean anything take"
HEAD = "head"

Progress = Callable[[float], None]
Key = tuple[str, int | str]  # arm, and its new tokens or HEAD


class Place(NamedTuple):
    """Where a part of the timing stands: all parts of one point are merged."""

    attempt: int
    load: int
    batch_size: int
    context_length: int


# a part of the timing and how to measure it -> what was measured, now or before
Keep = Callable[[Place, Callable[[], Latency]], Latency]


class Review(NamedTuple):
    """What the first half of the loads tells about the second."""

    widths: tuple[int, ...]  # new tokens of the target's steps that are worth more time
    doubts: tuple[str, ...]  # contradictions: kernels are chosen again, and all is timed again


@dataclass(frozen=True, slots=True)
class Plan:
    """What is timed, and for how long."""

    points: tuple[tuple[int, int], ...]  # (batch size, context length)
    widths: tuple[int, ...]  # new tokens of the target's steps; a draft's step has one
    device: torch.device
    max_seconds: float  # a point, loads not counted
    # Target steps in the blocks of the draft steps: a round is then paired. Apart, the drafts get
    # more samples, being the shorter steps.
    is_paired: bool = True
    has_heads: bool = False  # the drafts' output heads too, each alone
    mode: ModeChoice = "auto"  # auto: graphs on a GPU; on a CPU what trials find
    seed: int = 0
    review: Callable[[Latency], Review] | None = None  # of the first point, after half of the loads


@dataclass(frozen=True, slots=True)
class Opened:
    """One arm at one point."""

    arm: Arm
    step: Step
    peak_memory_bytes: int
    probe_ms: dict[int, float]  # by new tokens: one look, not a sample

    @property
    def is_cached(self) -> bool:
        """True where a processor's caches may hold a part of the weights from step to step."""
        return self.arm.native.weight_bytes < CACHED_BYTES


def measure_latency(
    target: Checkpoint,
    baseline: Checkpoint,
    candidate: Checkpoint,
    *,
    ks: Sequence[int],
    batch_size: int,
    context_length: int,
    device: torch.device,
    max_seconds: float,
    more_points: Sequence[tuple[int, int]] = (),
    mode: ModeChoice = "auto",
    progress: Progress = lambda share: None,
    keep: Keep = lambda place, measure: measure(),
    review: Callable[[Latency], Review] | None = None,
) -> tuple[Latency, ...]:
    """Draft steps of baseline, control and candidate, and target steps of 1 and k + 1 tokens.

    The first is the operating point, the others those of `more_points` (batch, context) in order.
    The controls are the baseline and the target loaded a second time: their ratios to the first
    are the noise floor.
    """
    operating = (batch_size, context_length)
    plan = Plan(
        points=(operating, *(point for point in more_points if point != operating)),
        widths=tuple(sorted({1, *(k + 1 for k in ks)})),
        device=device,
        max_seconds=max_seconds,
        mode=mode,
        review=review,
    )
    sources = {
        BASELINE: stored_weights(baseline),
        "candidate": stored_weights(candidate),
        TARGET: stored_weights(target),
        CONTROL: stored_weights(baseline),
        TARGET_CONTROL: stored_weights(target),
    }
    return measure_grid(sources, plan, progress, keep)


def measure_grid(
    sources: Mapping[str, WeightSource],
    plan: Plan,
    progress: Progress = lambda share: None,
    keep: Keep = lambda place, measure: measure(),
) -> tuple[Latency, ...]:
    """One Latency a point of the plan, in its order; the roofline is measured once, before.

    sources: weights by arm. BASELINE comes before the models that share its float type; where
    memory ends, the arms that come last are the ones left out.
    keep: gives back a part that an earlier run measured, or measures it; parts stand alone
    """
    roofline = measure_roofline(plan.device)
    found = _Run(sources, plan, roofline, progress, keep).all_loads(attempt=0, retried=())
    if isinstance(found, Review):  # what was timed contradicts itself: once more, on fresh trials
        forget_choices()
        again = _Run(sources, plan, roofline, progress, keep)
        found = again.all_loads(attempt=1, retried=found.doubts)
    assert not isinstance(found, Review)
    return found


class _Run:
    """All loads of a plan; arms are settled and loaded only where a part is not kept."""

    def __init__(
        self,
        sources: Mapping[str, WeightSource],
        plan: Plan,
        roofline: Roofline,
        progress: Progress,
        keep: Keep,
    ) -> None:
        self.sources, self.plan, self.progress, self.keep = sources, plan, progress, keep
        self.roofline = roofline
        widths = {name: _widths(name, plan.widths) for name in sources}
        batch_sizes = [batch for batch, _ in plan.points]
        self.arms = Arms(sources, widths, batch_sizes, plan.device, plan.mode)
        self.order = random.Random(plan.seed)
        self.loaded: dict[str, Arm] = {}
        self.load_seconds: float | None = None
        self.is_settled = False
        self.parts: dict[tuple[int, int], list[Latency]] = {point: [] for point in plan.points}

    def all_loads(self, attempt: int, retried: tuple[str, ...]) -> tuple[Latency, ...] | Review:
        """Every point's Latency, or the review that found contradictions in a first attempt."""
        widths, load, num_loads = self.plan.widths, 0, MIN_LOADS
        first = self.parts[self.plan.points[0]]
        while load < num_loads:
            self._one_load(attempt, load, widths, num_loads)
            if load == 0:
                num_loads = num_loads_for(self.plan.max_seconds, first[0].load_seconds)
            load += 1
            if load == num_loads // 2 and self.plan.review is not None and first[0].arms:
                review = self.plan.review(merged(first))
                if review.doubts and attempt == 0:
                    return review
                widths = review.widths or widths
        self.progress(1.0)
        return tuple(replace(merged(self.parts[p]), retried=retried) for p in self.plan.points)

    def _one_load(self, attempt: int, load: int, widths: Sequence[int], num_loads: int) -> None:
        """One load of every arm, timed at every point that is not given up."""
        # The first point comes first: its first load says how many there are.
        in_order = [self.plan.points[0], *sorted({*self.plan.points} - {self.plan.points[0]})]
        is_loaded = False
        for number, where in enumerate(in_order):

            def share(part: float, number: int = number) -> None:
                done = load + (number + part) / len(in_order)
                self.progress(min(1.0, done / num_loads))

            def measure(where: tuple[int, int] = where, share: Progress = share) -> Latency:
                nonlocal is_loaded
                if not is_loaded:
                    self._load(where)
                    is_loaded = True
                return self._time(where, widths, load, share)

            given_up = self._given_up(where, in_order)
            if given_up is None:
                self.parts[where].append(self.keep(Place(attempt, load, *where), measure))
            elif load == 0:
                self.parts[where].append(given_up)
            share(1.0)

    def _given_up(
        self, where: tuple[int, int], in_order: Sequence[tuple[int, int]]
    ) -> Latency | None:
        """What stands for a point that was found too dear, or is larger than one that was."""
        if where == self.plan.points[0]:
            return None
        own = self.parts[where]
        if own and not own[0].arms:
            return own[0]
        for other in in_order:
            known = self.parts[other]
            is_smaller = other[0] <= where[0] and other[1] <= where[1]
            if other != where and is_smaller and known and not known[0].arms:
                reasons = [why for why in known[0].undefined.values() if OVERRUN in why]
                if reasons:
                    point = _Point(self.plan, *where, self.roofline, self.plan.widths)
                    return point.untimed(dict.fromkeys(self.sources, reasons[0]))
        return None

    def _load(self, where: tuple[int, int]) -> None:
        """All arms in fresh memory: the earlier ones are let go of after, where both have room."""
        if not self.is_settled:
            self.arms.settle(*where)
            self.is_settled = True
        if not (self.loaded and self.arms.fit_twice()):
            self.loaded = {}
            gc.collect()
        names = list(self.sources)
        self.order.shuffle(names)
        started = time.perf_counter()
        loaded = self.arms.load(names)
        self.load_seconds = time.perf_counter() - started
        self.loaded = loaded
        gc.collect()

    def _time(
        self, where: tuple[int, int], widths: Sequence[int], load: int, share: Progress
    ) -> Latency:
        first = self.parts[self.plan.points[0]]
        load_seconds = first[0].load_seconds if first else self.load_seconds
        num_loads = num_loads_for(self.plan.max_seconds, load_seconds)
        is_first = where == self.plan.points[0]
        chosen = tuple(widths) if is_first else self.plan.widths
        plan = replace(
            self.plan, max_seconds=self.plan.max_seconds / num_loads, seed=self.plan.seed + load
        )
        point = _Point(plan, *where, self.roofline, chosen, self.plan.max_seconds)
        found = point.latency(self.loaded, self.arms.undefined, share)
        return replace(found, load_seconds=self.load_seconds)


def num_loads_for(max_seconds: float, load_seconds: float | None) -> int:
    """Loads that share the time: a slot is SLOT_SECONDS, or as long as a load takes."""
    slot = max(SLOT_SECONDS, load_seconds or 0.0)
    return max(MIN_LOADS, min(MAX_LOADS, int(max_seconds / slot)))


def merged(parts: Sequence[Latency]) -> Latency:
    """The loads of one point as one: blocks are numbered through, arms are those of all loads."""
    arms = {name: arm for name, arm in parts[0].arms.items() if all(name in p.arms for p in parts)}
    undefined = {name: why for part in parts for name, why in part.undefined.items()}
    sizes = [len(part.loads) for part in parts]
    starts = [sum(sizes[:number]) for number in range(len(parts))]
    return replace(
        parts[0],
        arms={
            name: replace(
                parts[-1].arms[name],
                steps={
                    width: _joined([part.arms[name].steps.get(width) for part in parts], starts)
                    for width in arm.steps
                },
                head_step=None
                if arm.head_step is None
                else _joined([part.arms[name].head_step for part in parts], starts),
            )
            for name, arm in arms.items()
        },
        undefined=undefined,
        loads=tuple(load for load, size in enumerate(sizes) for _ in range(size)),
        load_average=load_around(
            None if parts[0].load_average is None else parts[0].load_average[0],
            None if parts[-1].load_average is None else parts[-1].load_average[1],
        ),
        timing_seconds=sum(part.timing_seconds or 0.0 for part in parts),
    )


def _joined(parts: Sequence[StepSamples | None], starts: Sequence[int]) -> StepSamples:
    """One step's samples of all loads, with their blocks where a load left the step out."""
    known = [(part, start) for part, start in zip(parts, starts, strict=True) if part is not None]
    samples = tuple(ms for part, _ in known for ms in part.samples_ms)
    blocks = tuple(start + block for part, start in known for block in part.blocks)
    return StepSamples(samples, () if blocks == tuple(range(len(blocks))) else blocks)


def _widths(name: str, widths: Sequence[int]) -> tuple[int, ...]:
    """New tokens of an arm's steps: the target's control shows what one step differs by."""
    return tuple(widths) if name == TARGET else (1,)


@dataclass(frozen=True, slots=True)
class _Point:
    plan: Plan
    batch_size: int
    context_length: int
    roofline: Roofline
    widths: tuple[int, ...]  # of the target's steps at this load
    budget_seconds: float = 0.0  # of all loads together

    def latency(
        self, arms: Mapping[str, Arm], not_loaded: Mapping[str, str], progress: Progress
    ) -> Latency:
        """All arms at this point, in the same blocks."""
        undefined = dict(not_loaded)
        before = load_average()
        opened = self._open(arms, undefined)
        too_long = self._overrun(opened)
        if too_long is not None:
            return self.untimed(undefined | dict.fromkeys(opened, too_long))
        started = time.perf_counter()
        timed, num_blocks = self._time(opened, progress)
        return replace(
            self.untimed(undefined),
            arms={n: self._arm(n, arm, timed) for n, arm in opened.items()} if timed else {},
            load_average=load_around(before, load_average()),
            loads=(0,) * num_blocks,
            timing_seconds=time.perf_counter() - started,
        )

    def untimed(self, undefined: dict[str, str]) -> Latency:
        """This point without arms, for these reasons by arm."""
        return Latency(
            engine="native",
            device=str(self.plan.device),
            num_threads=torch.get_num_threads(),
            batch_size=self.batch_size,
            context_length=self.context_length,
            arms={},
            undefined=undefined,
            roofline=self.roofline,
        )

    def _open(self, arms: Mapping[str, Arm], undefined: dict[str, str]) -> dict[str, Opened]:
        opened: dict[str, Opened] = {}
        for name, arm in arms.items():
            widths = _widths(name, self.widths)
            needed = point_bytes(arm, self.batch_size, self.context_length, max(widths))
            shortage = memory_shortage(needed, self.plan.device)
            if shortage is not None:
                undefined[name] = f"{self.where} does not fit: {shortage}"
                continue
            try:
                opened[name] = self._look(arm, widths)
            except torch.OutOfMemoryError:
                undefined[name] = f"{self.where} does not fit: the device ran out of memory"
        return opened

    def _look(self, arm: Arm, widths: Sequence[int]) -> Opened:
        device = self.plan.device
        reset_peak(device)
        step = arm.open_step(self.batch_size, self.context_length, max(widths))
        looks = {width: probe_ms(step, width, device) for width in widths}
        return Opened(arm, step, peak_bytes(device), looks)

    @property
    def is_first(self) -> bool:
        """Of the plan: it is timed whatever it takes."""
        return (self.batch_size, self.context_length) == self.plan.points[0]

    @property
    def where(self) -> str:
        """The point in words."""
        return f"batch {self.batch_size}, context {self.context_length}"

    def _overrun(self, opened: Mapping[str, Opened]) -> str | None:
        """Why this point is given up; the first one of a plan never is."""
        if self.is_first:
            return None
        seconds = fewest_seconds(opened)
        if seconds <= MAX_OVERRUN * self.budget_seconds:
            return None
        return (
            f"from {self.where} on {OVERRUN} {seconds:.0f} s and more; "
            f"the budget is {self.budget_seconds:.0f} s a point"
        )

    def _time(
        self, opened: Mapping[str, Opened], progress: Progress
    ) -> tuple[dict[Key, StepSamples], int]:
        """Samples of every step, each with its blocks, and the number of blocks."""
        drafts = self._steps(opened, is_target=False)
        target = self._steps(opened, is_target=True)
        seconds, time = self.plan.max_seconds, partial(self._interleave, opened)
        if self.plan.is_paired or not drafts or not target:
            return time(drafts | target, seconds, progress, 0)
        first, middle = time(drafts, seconds / 2, lambda share: progress(share / 2), 0)
        second, end = time(target, seconds / 2, lambda share: progress(0.5 + share / 2), middle)
        return first | second, end

    def _steps(
        self, opened: Mapping[str, Opened], is_target: bool
    ) -> dict[Key, Callable[[], None]]:
        steps: dict[Key, Callable[[], None]] = {}
        for name, arm in opened.items():
            if (name in TARGETS) != is_target:
                continue
            for width in arm.probe_ms:
                steps[name, width] = partial(arm.step.step, width)
            if self.plan.has_heads and not is_target:
                head = head_product(arm.arm.native, self.batch_size)
                if head is not None:
                    steps[name, HEAD] = head
        return steps

    def _interleave(
        self,
        opened: Mapping[str, Opened],
        steps: Mapping[Key, Callable[[], None]],
        seconds: float,
        progress: Progress,
        start: int,
    ) -> tuple[dict[Key, StepSamples], int]:
        """Steps in the same blocks, which are numbered from `start`; the number after the last."""
        if not steps:
            return {}, start
        names = {f"{arm} {what}": (arm, what) for arm, what in steps}
        timed = time_interleaved(
            {name: steps[key] for name, key in names.items()},
            self.plan.device,
            seconds,
            rehearsals={name: _rehearsal(opened, *key) for name, key in names.items()},
            repeats={name: _repeats(opened, *key) for name, key in names.items()},
            seed=self.plan.seed,
            progress=progress,
            min_blocks=BLOCKS_PER_LOAD,
            num_warmup_blocks=WARMUP_BLOCKS,
        )
        end = start + len(next(iter(timed.values())).samples_ms)
        blocks = tuple(range(start, end))
        return {names[n]: replace(found, blocks=blocks) for n, found in timed.items()}, end

    def _arm(self, name: str, opened: Opened, timed: Mapping[Key, StepSamples]) -> ArmLatency:
        native = opened.arm.native
        return ArmLatency(
            name=name,
            compute_dtype=native.compute_dtype,
            kernels=native.kernels,
            weight_bytes=native.weight_bytes,
            steps={width: timed[name, width] for width in opened.probe_ms},
            step_bytes=native.step_bytes(self.batch_size, self.context_length),
            head_bytes=opened.arm.source.ledger.head_bytes,
            head_step=timed.get((name, HEAD)),
            peak_memory_bytes=opened.peak_memory_bytes,
            mode=opened.arm.mode,
            mode_trial_ms=opened.arm.mode_trial_ms,
            runtime=native.runtime,
            quantized_bytes=native.quantized_bytes,
            promised_bytes=native.promised_bytes,
        )


def fewest_seconds(opened: Mapping[str, Opened]) -> float:
    """The seconds of the fewest blocks of the fewest loads: a step runs twice a block."""
    block_ms = 0.0
    for name, arm in opened.items():
        for width, ms in arm.probe_ms.items():
            rehearsal_ms = NUM_REHEARSALS * arm.probe_ms.get(1, ms) if arm.is_cached else 0.0
            block_ms += 2 * (_repeats(opened, name, width) * ms + rehearsal_ms)
    return block_ms * MIN_LOADS * (WARMUP_BLOCKS + BLOCKS_PER_LOAD) / 1e3


def _rehearsal(
    opened: Mapping[str, Opened], name: str, what: int | str
) -> Callable[[], object] | None:
    """What comes before a step when it is served, where a cache can hold any of it.

    A draft's step follows another, and so does the target's alone. A verification follows draft
    steps, before which the target was run.
    """
    arm = opened[name]
    if not arm.is_cached:
        return None
    if name not in TARGETS or what == 1:
        return partial(_run, arm.step, NUM_REHEARSALS)

    def target_then_draft() -> None:
        _run(arm.step, NUM_REHEARSALS - 1)
        if BASELINE in opened:
            _run(opened[BASELINE].step, 1)

    return target_then_draft


def _run(step: Step, times: int) -> None:
    for _ in range(times):
        step.step(1)


def _repeats(opened: Mapping[str, Opened], name: str, what: int | str) -> int:
    """Steps of one token follow one another when they are served."""
    return NUM_IN_A_ROW if what == 1 and opened[name].is_cached else 1


def head_product(native: NativeModel, batch_size: int) -> Callable[[], None] | None:
    """The output head's product of one token a row, alone; None where the model has no such part.

    Its weights were read just before, so a head that fits into the caches looks cheaper than it is
    inside a step.
    """
    if not native.is_own:
        return None
    model = native.model
    x = torch.ones(
        batch_size, 1, model.shape.hidden_size, dtype=native.dtype, device=model.embedding.device
    )

    @torch.inference_mode()
    def product() -> None:
        model.head(x)

    return product
