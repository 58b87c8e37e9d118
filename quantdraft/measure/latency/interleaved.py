"""Step times: interleaved, warmed up, every sample kept. Measures; never judges.

A step is one forward pass over m new tokens on top of a KV cache of a given length: m = 1 for a
draft step, m = k + 1 for a verification. Arms take turns within a block (A B C C B A, shuffled
anew for each block), so a drift of the machine's speed and the place in the order fall on all of
them alike, and samples are paired by block.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from quantdraft.record import StepSamples

MIN_BLOCKS = 10
NUM_WARMUP_BLOCKS = 2
# Steps per clock reading, at most. A GPU runs steps from a queue, as a draft's k steps are: waiting
# for each would add the wait to a step that takes as long.
NUM_REPEATS = {"cuda": 8}


def synchronize(device: torch.device) -> None:
    """Wait for the device: a GPU call returns before its kernels end."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_interleaved(
    steps: Mapping[str, Callable[[], None]],
    device: torch.device,
    max_seconds: float,
    max_blocks: int = 400,
    rehearsals: Mapping[str, Callable[[], object] | None] | None = None,
    repeats: Mapping[str, int] | None = None,
    seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
    min_blocks: int = MIN_BLOCKS,
    num_warmup_blocks: int = NUM_WARMUP_BLOCKS,
) -> dict[str, StepSamples]:
    """Return samples in ms for every named step; sample i of all names comes from block i.

    A block runs every step forwards, then backwards, and its sample is the mean of the two (on a
    GPU of several in a row, each). Blocks repeat for `max_seconds`, at least `min_blocks` of them;
    the first ones are warm-up and discarded.

    A step that follows itself finds its weights in the caches, and one that follows a larger model
    does not: timed in a fixed order, two copies of one draft differed by 3 %. So the order changes
    with every block, and what comes before a step when it is served comes before it here.

    rehearsals: what runs, untimed, just before a step
    repeats: how often a step runs in a row under one reading of the clock; where it is absent as
        often as the device needs
    """
    names, shuffled = list(steps), random.Random(seed)
    samples: dict[str, list[float]] = {name: [] for name in names}
    often = NUM_REPEATS.get(device.type, 1)
    runs = {
        name: TimedStep(steps[name], (rehearsals or {}).get(name), (repeats or {}).get(name, often))
        for name in names
    }
    for _ in range(num_warmup_blocks):
        _run_block(runs, names, device)
    started = time.perf_counter()
    for block in range(max_blocks):
        elapsed = time.perf_counter() - started
        if block >= min_blocks and elapsed > max_seconds:
            break
        progress(min(1.0, elapsed / max_seconds) if max_seconds > 0 else 1.0)
        shuffled.shuffle(names)
        for name, ms in _run_block(runs, names, device).items():
            samples[name].append(ms)
    return {name: StepSamples(tuple(values)) for name, values in samples.items()}


class TimedStep(NamedTuple):
    """A step, what runs before it, and how often it runs under one reading of the clock."""

    step: Callable[[], None]
    rehearsal: Callable[[], object] | None
    repeats: int


def _run_block(
    runs: Mapping[str, TimedStep], names: list[str], device: torch.device
) -> dict[str, float]:
    total = dict.fromkeys(runs, 0.0)
    for name in [*names, *reversed(names)]:
        step, rehearsal, repeats = runs[name]
        if rehearsal is not None:
            rehearsal()
        synchronize(device)
        started = time.perf_counter()
        for _ in range(repeats):
            step()
        synchronize(device)
        total[name] += (time.perf_counter() - started) / repeats
    return {name: seconds * 1e3 / 2 for name, seconds in total.items()}
