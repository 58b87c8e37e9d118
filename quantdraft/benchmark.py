"""The arms of an evaluation, timed side by side: target, baseline, control, candidates.

Every arm is loaded once and stepped at each point (batch, context). A point or an arm that does
not fit into memory or time is left out, and `Latency.undefined` says why; nothing is estimated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import groupby
from operator import itemgetter
from typing import Literal

import torch

from quantdraft.arms import (
    BASELINE,
    CONTROL,
    TARGET,
    Arm,
    Arms,
    Step,
    memory_shortage,
    point_bytes,
    probe_ms,
)
from quantdraft.checkpoint import Checkpoint
from quantdraft.engines.native import NativeModel
from quantdraft.engines.session import Mode
from quantdraft.engines.source import WeightSource, stored_weights
from quantdraft.latency import MIN_BLOCKS, NUM_WARMUP_BLOCKS, time_interleaved
from quantdraft.memory import peak_bytes, reset_peak
from quantdraft.provenance import load_around, load_average
from quantdraft.results import ArmLatency, Latency, Roofline, StepSamples
from quantdraft.roofline import measure_roofline

# A point beyond the first is given up where its fewest blocks take this many times the budget.
MAX_OVERRUN = 3.0
OVERRUN = "the fewest timings that mean anything take"
HEAD = "head"

Progress = Callable[[float], None]
# (batch size, context length) and how to measure there -> what was measured, now or before
Keep = Callable[[tuple[int, int], Callable[[], Latency]], Latency]
Key = tuple[str, int | str]  # arm, and its new tokens or HEAD


@dataclass(frozen=True, slots=True)
class Plan:
    """What is timed, and for how long."""

    points: tuple[tuple[int, int], ...]  # (batch size, context length)
    widths: tuple[int, ...]  # new tokens of the target's steps; a draft's step has one
    device: torch.device
    max_seconds: float  # a point
    # Target steps in the blocks of the draft steps: a round is then paired. Apart, the drafts get
    # more samples, being the shorter steps.
    is_paired: bool = True
    has_heads: bool = False  # the drafts' output heads too, each alone
    mode: Mode | Literal["auto"] = "auto"  # auto: graphs on a GPU; on a CPU what a trial finds
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Opened:
    """One arm at one point."""

    arm: Arm
    step: Step
    peak_memory_bytes: int
    probe_ms: dict[int, float]  # by new tokens: one look, not a sample


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
    mode: Mode | Literal["auto"] = "auto",
    progress: Progress = lambda share: None,
    keep: Keep = lambda point, measure: measure(),
) -> tuple[Latency, ...]:
    """Draft steps of baseline, control and candidate, and target steps of 1 and k + 1 tokens.

    The first is the operating point, the others those of `more_points` (batch, context) in order.
    The control is the baseline loaded a second time: its ratio to the baseline is the noise floor.
    """
    operating = (batch_size, context_length)
    plan = Plan(
        points=(operating, *(point for point in more_points if point != operating)),
        widths=tuple(sorted({1, *(k + 1 for k in ks)})),
        device=device,
        max_seconds=max_seconds,
        mode=mode,
    )
    sources = {
        BASELINE: stored_weights(baseline),
        "candidate": stored_weights(candidate),
        CONTROL: stored_weights(baseline),
        TARGET: stored_weights(target),
    }
    return measure_grid(sources, plan, progress, keep)


def measure_grid(
    sources: Mapping[str, WeightSource],
    plan: Plan,
    progress: Progress = lambda share: None,
    keep: Keep = lambda point, measure: measure(),
) -> tuple[Latency, ...]:
    """One Latency a point of the plan, in its order; the roofline is measured once, before.

    sources: weights by arm. BASELINE comes before the drafts that share its float type; where
    memory ends, the arms that come last are the ones left out.
    keep: gives back a point that an earlier run measured, or measures it; points stand alone
    """
    roofline = measure_roofline(plan.device)
    widths = {name: plan.widths if name == TARGET else (1,) for name in sources}
    batch_sizes = [batch for batch, _ in plan.points]
    arms = Arms(sources, widths, batch_sizes, plan.device, plan.mode)
    measured: dict[tuple[int, int], Latency] = {}
    in_order = sorted(set(plan.points))  # by batch: float32 wins from some batch on
    for batch_size, group in groupby(in_order, key=itemgetter(0)):
        contexts = [context for _, context in group]
        load = cache(partial(arms.at, batch_size, contexts[0]))
        for context_length in contexts:
            base = len(measured)

            def share(part: float, base: int = base) -> None:
                progress((base + part) / len(in_order))

            point = _Point(plan, batch_size, context_length, roofline)
            where = batch_size, context_length
            too_dear = _smaller_and_too_dear(point, measured)
            if too_dear is not None:  # not even loaded
                measured[where] = point.untimed(dict.fromkeys(sources, too_dear))
            else:
                measured[where] = keep(where, partial(_measure, point, load, arms, share))
            share(1.0)
    return tuple(measured[point] for point in plan.points)


def _smaller_and_too_dear(point: _Point, measured: Mapping[tuple[int, int], Latency]) -> str | None:
    """Why a point was given up that has no larger batch and no longer context than this one."""
    if point.is_first:
        return None
    for (batch_size, context_length), found in measured.items():
        if batch_size <= point.batch_size and context_length <= point.context_length:
            reasons = [why for why in found.undefined.values() if OVERRUN in why]
            if reasons and not found.arms:
                return reasons[0]
    return None


def _measure(
    point: _Point, load: Callable[[], dict[str, Arm]], arms: Arms, share: Progress
) -> Latency:
    loaded = load()  # first: it says what could not be loaded
    return point.latency(loaded, arms.undefined, share)


@dataclass(frozen=True, slots=True)
class _Point:
    plan: Plan
    batch_size: int
    context_length: int
    roofline: Roofline

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
        timed = self._time(opened, progress)
        return replace(
            self.untimed(undefined),
            arms={n: self._arm(n, arm, timed) for n, arm in opened.items()} if timed else {},
            load_average=load_around(before, load_average()),
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
            widths = self.plan.widths if name == TARGET else (1,)
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
        seconds = fewest_seconds({name: arm.probe_ms for name, arm in opened.items()})
        if seconds <= MAX_OVERRUN * self.plan.max_seconds:
            return None
        return (
            f"from {self.where} on {OVERRUN} {seconds:.0f} s and more; "
            f"the budget is {self.plan.max_seconds:.0f} s a point"
        )

    def _time(self, opened: Mapping[str, Opened], progress: Progress) -> dict[Key, StepSamples]:
        drafts = self._steps(opened, is_target=False)
        target = self._steps(opened, is_target=True)
        seconds, time = self.plan.max_seconds, self._interleave
        if self.plan.is_paired or not drafts or not target:
            return time(drafts | target, drafts, seconds, progress)
        first = time(drafts, drafts, seconds / 2, lambda share: progress(share / 2))
        return first | time(target, {}, seconds / 2, lambda share: progress(0.5 + share / 2))

    def _steps(
        self, opened: Mapping[str, Opened], is_target: bool
    ) -> dict[Key, Callable[[], None]]:
        steps: dict[Key, Callable[[], None]] = {}
        for name, arm in opened.items():
            if (name == TARGET) != is_target:
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
        steps: Mapping[Key, Callable[[], None]],
        rehearsed: Mapping[Key, Callable[[], None]],
        seconds: float,
        progress: Progress,
    ) -> dict[Key, StepSamples]:
        names = {f"{arm} {what}": (arm, what) for arm, what in steps}
        timed = time_interleaved(
            {name: steps[key] for name, key in names.items()},
            self.plan.device,
            seconds,
            rehearsed=frozenset(name for name, key in names.items() if key in rehearsed),
            seed=self.plan.seed,
            progress=progress,
        )
        return {names[name]: samples for name, samples in timed.items()}

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


def fewest_seconds(probes_ms: Mapping[str, Mapping[int, float]]) -> float:
    """What warm-up and MIN_BLOCKS take: a step runs twice a block, a draft's rehearsed as well."""
    block_ms = sum(
        (2 if name == TARGET else 4) * sum(looks.values()) for name, looks in probes_ms.items()
    )
    return block_ms * (NUM_WARMUP_BLOCKS + MIN_BLOCKS) / 1e3


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
