"""Simulate paired measurements whose truth is known, from a large population.

A run draws prompts and blocks from it, with replacement, as the world draws ours, and loads whose
arms are a little faster or slower each. What the whole population gives is the truth that intervals
are held against.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from quantdraft.judge.acceptance import Replayed, replay_rounds
from quantdraft.record import ArmLatency, Latency, StepSamples

K = 4
POPULATION = 20_000
NUM_BLOCKS = 200_000
DRAFT_MS, VERIFY_MS, ALONE_MS = 1.0, 6.0, 5.0
# Two loads of one model differ by 1 % in speed on a CPU, on a busy one by 2 %: by where their
# memory lies, which no block of one load shows.
NUM_LOADS, LOAD_SPREAD = 10, 0.015
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class World:
    """Prompts under both arms, and blocks of step times of equal drafts."""

    baseline: Replayed
    candidate: Replayed
    blocks: dict[str, Floats]  # (NUM_BLOCKS,) each
    candidate_ms: float  # of a draft step, before noise

    @property
    def length_ratio(self) -> float:
        """Candidate over baseline, of the whole population."""
        lengths = [arm.counts(K).mean_acceptance_length for arm in (self.candidate, self.baseline)]
        return lengths[0] / lengths[1]

    @property
    def loss(self) -> float:
        """Baseline minus candidate acceptance rate, of the whole population."""
        return self.baseline.counts(K).acceptance_rate - self.candidate.counts(K).acceptance_rate

    @property
    def speedup(self) -> float:
        """Candidate over baseline: the median ratio within a block, times that of the lengths."""
        base = K * self.blocks["baseline"] + self.blocks["verify"]
        cand = K * self.candidate_ms * self.blocks["candidate"] + self.blocks["verify"]
        return float(np.median(base / cand)) * self.length_ratio

    @property
    def over_autoregressive(self) -> float:
        """The same over the target alone."""
        cand = K * self.candidate_ms * self.blocks["candidate"] + self.blocks["verify"]
        length = self.candidate.counts(K).mean_acceptance_length
        return float(np.median(self.blocks["alone"] / cand)) * length


def make_world(rng: np.random.Generator, flips: tuple[float, float]) -> World:
    """flips: how often baseline and candidate err on a token that an ideal draft would keep.

    The prompts differ in difficulty, and both arms share it; equal flips are two equal drafts.
    """
    difficulty = rng.beta(6, 2, POPULATION)
    lengths = rng.integers(24, 128, POPULATION)
    arms: tuple[list[Floats], list[Floats]] = ([], [])
    for length, easy in zip(lengths, difficulty, strict=True):
        ideal = rng.random(length) < easy
        for arm, flip in zip(arms, flips, strict=True):
            arm.append((ideal & (rng.random(length) >= flip)).astype(np.float64))
    names = [str(i) for i in range(POPULATION)]
    baseline, candidate = (replay_rounds(names, arm, [K]) for arm in arms)
    return World(baseline, candidate, _blocks(rng), DRAFT_MS)


def with_speedup(world: World, speedup: float) -> World:
    """The same world, with the candidate's step made as long as gives this true speedup."""
    low, high = 0.01, 4.0
    for _ in range(40):
        middle = (low + high) / 2
        is_faster = replace(world, candidate_ms=middle).speedup > speedup
        low, high = (middle, high) if is_faster else (low, middle)
    return replace(world, candidate_ms=(low + high) / 2)


def drawn(
    world: World, num_prompts: int, num_blocks: int, rng: np.random.Generator
) -> tuple[Replayed, Replayed, Latency]:
    """One run: both arms on the same prompts, all steps in the same blocks."""
    prompts = rng.integers(0, POPULATION, num_prompts)
    blocks = rng.integers(0, NUM_BLOCKS, num_blocks)
    arms = world.baseline.of_prompts(prompts), world.candidate.of_prompts(prompts)
    return *arms, _latency(world, blocks, rng)


def _latency(world: World, blocks: NDArray[np.int64], rng: np.random.Generator) -> Latency:
    """Steps in blocks of NUM_LOADS loads, in each of which every arm has a speed of its own."""
    loads = np.sort(np.arange(len(blocks)) % NUM_LOADS)
    some = {
        name: samples[blocks] * np.exp(rng.normal(0, LOAD_SPREAD, NUM_LOADS))[loads]
        for name, samples in world.blocks.items()
    }
    steps = {
        "baseline": {1: DRAFT_MS * some["baseline"]},
        "candidate": {1: world.candidate_ms * some["candidate"]},
        "control": {1: DRAFT_MS * some["control"]},
        "target": {1: some["alone"], K + 1: some["verify"]},
    }
    arms = {
        name: ArmLatency(
            name, "float32", (), 0, {m: StepSamples(tuple(s.tolist())) for m, s in timed.items()}
        )
        for name, timed in steps.items()
    }
    return Latency("native", "cpu", 2, 1, 128, arms, loads=tuple(loads.tolist()))


def _blocks(rng: np.random.Generator) -> dict[str, Floats]:
    """A drift that all steps of a block share, 2 % of noise of their own, and rare long delays."""
    drift = np.exp(0.1 * rng.normal(size=NUM_BLOCKS))

    def steps(ms: float) -> Floats:
        delay = np.where(rng.random(NUM_BLOCKS) < 0.1, 1 + rng.pareto(1.5, NUM_BLOCKS), 1.0)
        return np.asarray(ms * drift * (1 + 0.02 * rng.normal(size=NUM_BLOCKS)) * delay)

    drafts = {name: steps(DRAFT_MS) for name in ("baseline", "candidate", "control")}
    return drafts | {"verify": steps(VERIFY_MS), "alone": steps(ALONE_MS)}
