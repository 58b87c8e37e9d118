"""One load of all arms, timed at one point of batch and context, in the same blocks."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from quantdraft.engines.kernels.graphs import is_recorded, recorded
from quantdraft.engines.native.model import NativeModel
from quantdraft.measure.latency.faults import arm_fault, is_too_large
from quantdraft.measure.latency.interleaved import time_interleaved
from quantdraft.measure.latency.loaded import TARGETS, Arm, probe_ms
from quantdraft.measure.latency.memory import memory_shortage, peak_bytes, point_bytes, reset_peak
from quantdraft.measure.latency.opened import (
    BLOCKS_PER_LOAD,
    WARMUP_BLOCKS,
    Opened,
    fewest_seconds,
    num_repeats,
    rehearsal,
)
from quantdraft.measure.latency.timing_plan import Progress, TimingPlan, widths_of, within
from quantdraft.record import ArmLatency, Latency, Roofline, StepSamples
from quantdraft.record.gpu import read_gpu_state
from quantdraft.record.provenance import load_around, load_average

# A point beyond the first is given up where its fewest blocks take this many times the budget.
MAX_OVERRUN = 3.0
OVERRUN = "the fewest timings that mean anything take"
TOO_LARGE = "does not fit"
HEAD = "head"

Key = tuple[str, int | str]  # arm, and its new tokens or HEAD


def untimed(
    point: tuple[int, int],
    device: torch.device,
    roofline: Roofline | None,
    undefined: Mapping[str, str],
) -> Latency:
    """Return a point (batch, context) without arms, with a reason by arm."""
    return Latency(
        engine="native",
        device=str(device),
        num_threads=torch.get_num_threads(),
        batch_size=point[0],
        context_length=point[1],
        arms={},
        undefined=dict(undefined),
        roofline=roofline,
    )


@dataclass(frozen=True, slots=True)
class PointTiming:
    """The timing of one load at one point: which steps, and for how many seconds."""

    plan: TimingPlan
    batch_size: int
    context_length: int
    roofline: Roofline
    widths: tuple[int, ...]  # of the target's steps at this load
    seconds: float
    seed: int
    load_seconds: float | None  # what loading the arms took

    @property
    def point(self) -> tuple[int, int]:
        """Batch size and context length."""
        return self.batch_size, self.context_length

    @property
    def where(self) -> str:
        """The point in words."""
        return f"batch {self.batch_size}, context {self.context_length}"

    def time_arms(
        self, arms: Mapping[str, Arm], not_loaded: Mapping[str, str], progress: Progress
    ) -> Latency:
        """Time all arms at this point.

        not_loaded: why other arms are not among them
        """
        undefined = dict(not_loaded)
        before, states = load_average(), [read_gpu_state(str(self.plan.device))]
        opened = self._open_arms(arms, undefined)
        too_long = self._overrun(opened)
        if too_long is not None:
            return self._untimed(undefined | dict.fromkeys(opened, too_long))
        late = self._late_arms(arms, opened, undefined)
        seconds = self.seconds / 2 if late else self.seconds
        started = time.perf_counter()
        timed, num_blocks = self._time_steps(opened, seconds, progress)
        found = {n: self._arm_latency(n, arm, timed) for n, arm in opened.items() if timed}
        if late:
            opened.clear()  # their caches make room
            gc.collect()
            targets, num_blocks = self._time_late(late, undefined, num_blocks, progress)
            found |= targets
        states.append(read_gpu_state(str(self.plan.device)))
        return replace(
            self._untimed(undefined),
            arms=found,
            gpu_states=tuple(state for state in states if state is not None),
            load_average=load_around(before, load_average()),
            loads=(0,) * num_blocks,
            timing_seconds=time.perf_counter() - started,
        )

    def _late_arms(
        self, arms: Mapping[str, Arm], opened: Mapping[str, Opened], undefined: Mapping[str, str]
    ) -> dict[str, Arm]:
        """Return the targets that may fit once the drafts, which have blocks of their own, go."""
        if self.plan.is_paired or not opened or any(name in TARGETS for name in opened):
            return {}
        return {n: a for n, a in arms.items() if n in TARGETS and TOO_LARGE in undefined.get(n, "")}

    def _time_late(
        self, late: Mapping[str, Arm], undefined: dict[str, str], start: int, progress: Progress
    ) -> tuple[dict[str, ArmLatency], int]:
        """Time targets alone, in blocks from `start` on; return the next number too."""
        for name in late:
            undefined.pop(name)
        opened = self._open_arms(late, undefined)
        too_long = self._overrun(opened)
        if too_long is not None:
            undefined |= dict.fromkeys(opened, too_long)
            return {}, start
        timed, end = self._time_steps(opened, self.seconds / 2, progress, start)
        return {n: self._arm_latency(n, arm, timed) for n, arm in opened.items()}, end

    def _untimed(self, undefined: Mapping[str, str]) -> Latency:
        found = untimed(self.point, self.plan.device, self.roofline, undefined)
        return replace(found, load_seconds=self.load_seconds)

    def _open_arms(self, arms: Mapping[str, Arm], undefined: dict[str, str]) -> dict[str, Opened]:
        """Open every arm that fits; write the reason for each other one into `undefined`."""
        opened: dict[str, Opened] = {}
        caches: set[Any] = set()  # of models of one shape, which share theirs
        for name, arm in arms.items():
            widths = widths_of(name, self.widths)
            cache = _cache_key(arm, max(widths))
            needed = point_bytes(
                arm.native,
                arm.source,
                self.batch_size,
                self.context_length,
                max(widths),
                has_cache=cache is not None and cache in caches,
            )
            shortage = memory_shortage(needed, self.plan.device)
            if shortage is not None:
                undefined[name] = f"{self.where} {TOO_LARGE}: {shortage}"
                continue
            try:
                opened[name] = self._open(arm, widths)
                caches.add(cache)
            except Exception as error:  # whatever a kernel or a recording failed with
                fit = TOO_LARGE if is_too_large(error) else "cannot run"
                reason = arm_fault(f"{name} at {self.where}", error, self.plan.device)
                undefined[name] = f"{self.where} {fit}: {reason}"
        return opened

    def _open(self, arm: Arm, widths: tuple[int, ...]) -> Opened:
        """Open an arm, and run each of its steps twice."""
        device = self.plan.device
        before = reset_peak(device)  # other arms' weights and caches
        step = arm.open_step(self.batch_size, self.context_length, max(widths))
        looks = {width: probe_ms(step, width, device) for width in widths}
        own = arm.native.weight_bytes + step.found_bytes if device.type == "cuda" else 0
        return Opened(arm, step, own + peak_bytes(device) - before, looks)

    def _overrun(self, opened: Mapping[str, Opened]) -> str | None:
        """Return why this point is given up; the first one of a plan never is."""
        budget, seconds = self.plan.max_seconds, fewest_seconds(opened, self.plan.device)
        if self.point == self.plan.points[0] or seconds <= MAX_OVERRUN * budget:
            return None
        return (
            f"from {self.where} on {OVERRUN} {seconds:.0f} s and more; "
            f"the budget is {budget:.0f} s a point"
        )

    def _time_steps(
        self, opened: Mapping[str, Opened], seconds: float, progress: Progress, start: int = 0
    ) -> tuple[dict[Key, StepSamples], int]:
        """Return the samples of every step, each with its blocks, and the next block's number."""
        drafts = self._steps({n: arm for n, arm in opened.items() if n not in TARGETS})
        target = self._steps({n: arm for n, arm in opened.items() if n in TARGETS})
        if self.plan.is_paired or not drafts or not target:
            return self._interleave(opened, drafts | target, seconds, progress, start)
        half = seconds / 2
        first, middle = self._interleave(opened, drafts, half, within(progress, 0.0, 0.5), start)
        second, end = self._interleave(opened, target, half, within(progress, 0.5, 1.0), middle)
        return first | second, end

    def _steps(self, opened: Mapping[str, Opened]) -> dict[Key, Callable[[], None]]:
        steps: dict[Key, Callable[[], None]] = {}
        for name, arm in opened.items():
            for width in arm.probe_ms:
                steps[name, width] = partial(arm.step.step, width)
            if self.plan.has_heads and name not in TARGETS:
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
        """Time steps in the same blocks, numbered from `start`; return the next number too."""
        if not steps:
            return {}, start
        names = {f"{arm} {what}": (arm, what) for arm, what in steps}
        timed = time_interleaved(
            {name: steps[key] for name, key in names.items()},
            self.plan.device,
            seconds,
            rehearsals={name: rehearsal(opened, *key) for name, key in names.items()},
            repeats={
                name: num_repeats(opened[key[0]], key[1], self.plan.device)
                for name, key in names.items()
            },
            seed=self.seed,
            progress=progress,
            min_blocks=BLOCKS_PER_LOAD,
            num_warmup_blocks=WARMUP_BLOCKS,
        )
        end = start + len(next(iter(timed.values())).samples_ms)
        blocks = tuple(range(start, end))
        return {names[n]: replace(found, blocks=blocks) for n, found in timed.items()}, end

    def _arm_latency(
        self, name: str, opened: Opened, timed: Mapping[Key, StepSamples]
    ) -> ArmLatency:
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


def _cache_key(arm: Arm, num_new_tokens: int) -> Any:
    """Return what arms that share the memory of their caches have in common; None: its own."""
    native = arm.native
    return (native.model.shape, native.dtype, num_new_tokens) if native.is_own else None


def head_product(native: NativeModel, batch_size: int) -> Callable[[], None] | None:
    """Return the output head's product of one token a row, alone; None where there is no such part.

    Its weights were read just before, so a head that fits into the caches looks cheaper than it is
    inside a step. On a GPU it is replayed from a graph, as steps are.
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

    return recorded(product) if is_recorded(x.device) else product
