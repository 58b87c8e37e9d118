"""An arm at one point, and what runs before and how often when one of its steps is timed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from quantdraft.engines.native.steps import Stepper
from quantdraft.measure.latency.interleaved import NUM_REPEATS
from quantdraft.measure.latency.loaded import BASELINE, TARGETS, Arm
from quantdraft.measure.latency.timing_plan import MIN_LOADS

BLOCKS_PER_LOAD, WARMUP_BLOCKS = 4, 1  # at least
# Weights that fit into a cache lie there when they are served; what other arms evicted comes back
# only after several passes: the same target took 1.38, 1.34, 1.09, 1.04, 0.99 and then 0.95 ms.
CACHED_BYTES = 512 * 2**20  # more than a processor's caches
NUM_REHEARSALS, NUM_IN_A_ROW = 4, 4  # passes before a step is timed, and under one reading
# A reading this long hides the wait for a GPU (0.01 ms and more): long steps need no row.
READING_MS = 5.0


@dataclass(frozen=True, slots=True)
class Opened:
    """One arm at one point."""

    arm: Arm
    step: Stepper
    peak_memory_bytes: int
    probe_ms: dict[int, float]  # by new tokens: one look, not a sample

    @property
    def is_cached(self) -> bool:
        """Whether a processor's caches may hold a part of the weights from step to step."""
        return self.arm.native.weight_bytes < CACHED_BYTES


def fewest_seconds(opened: Mapping[str, Opened], device: torch.device) -> float:
    """Return the seconds of the fewest blocks of the fewest loads: a step runs twice a block."""
    block_ms = 0.0
    for arm in opened.values():
        for width, ms in arm.probe_ms.items():
            rehearsal_ms = NUM_REHEARSALS * arm.probe_ms.get(1, ms) if arm.is_cached else 0.0
            block_ms += 2 * (num_repeats(arm, width, device) * ms + rehearsal_ms)
    return block_ms * MIN_LOADS * (WARMUP_BLOCKS + BLOCKS_PER_LOAD) / 1e3


def rehearsal(
    opened: Mapping[str, Opened], name: str, what: int | str
) -> Callable[[], object] | None:
    """Return what comes before a step when it is served, where a cache can hold any of it.

    A draft's step follows another, and so does the target's alone. A verification follows draft
    steps, before which the target was run.
    """
    arm = opened[name]
    if not arm.is_cached:
        return None
    if name not in TARGETS or what == 1:
        return partial(_run_steps, arm.step, NUM_REHEARSALS)
    draft = opened[BASELINE].step if BASELINE in opened else None
    return partial(_run_target_then_draft, arm.step, draft)


def _run_steps(step: Stepper, times: int) -> None:
    for _ in range(times):
        step.step(1)


def _run_target_then_draft(target: Stepper, draft: Stepper | None) -> None:
    _run_steps(target, NUM_REHEARSALS - 1)
    if draft is not None:
        _run_steps(draft, 1)


def num_repeats(opened: Opened, what: int | str, device: torch.device) -> int:
    """Return how often a step runs in a row: steps of one token follow one another when served.

    On a GPU until a reading is long enough to hide the wait for the device.
    """
    most = NUM_REPEATS.get(device.type)
    if most is not None:
        ms = opened.probe_ms.get(what) if isinstance(what, int) else None
        return most if not ms else max(1, min(most, math.ceil(READING_MS / ms)))
    return NUM_IN_A_ROW if what == 1 and opened.is_cached else 1
