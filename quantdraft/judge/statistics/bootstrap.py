"""Resampling with a seed, and intervals that stay honest for small samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from quantdraft.judge.acceptance import Floats, Ints
from quantdraft.judge.conversations import Units
from quantdraft.record import Interval

MIN_TIMINGS = 5  # as MIN_PROMPTS, of the samples of a step
FLOATS_AT_ONCE = 2**20
# Beyond, prompts are drawn in groups: the spread of 4,096 sums is known to 1.1 %.
MAX_UNITS = 4096


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How intervals are drawn: the number of resamples, the seed, the confidence, the units."""

    num_resamples: int = 2000
    seed: int = 0
    confidence: float = 0.95
    # The conversation of each prompt of the traffic, which is resampled as a whole; None: each
    # prompt stands alone.
    units: Units | None = None

    def units_at(self, prompts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the unit of each of these prompts, which are places in the traffic."""
        return prompts if self.units is None else np.array(self.units, np.int64)[prompts]


DEFAULT = Bootstrap()


class Weights:
    """How often each resample draws each prompt, (num_resamples, num_prompts), to multiply by.

    Of more than MAX_UNITS prompts whole groups are drawn, which prompts enter by chance: their
    sums spread as single prompts do, and memory and time no longer grow with the prompts.
    """

    def __init__(self, counts: NDArray[np.uint8], group: NDArray[np.int16] | None = None) -> None:
        self.counts = counts  # (num_resamples, units)
        self.group = group  # (num_prompts,), the unit that each prompt is of; None: its own

    def __matmul__(self, values: Floats | Ints) -> Floats:
        """Return sums of `values`, (num_prompts, ...), over each resample: (num_resamples, ...)."""
        if self.group is not None:
            sums = np.zeros((self.counts.shape[1], *values.shape[1:]))
            np.add.at(sums, self.group, values)
            values = sums
        # Counts are a byte each, and made floats a part at a time.
        rows = max(1, FLOATS_AT_ONCE // max(1, self.counts.shape[1]))
        parts = np.array_split(self.counts, math.ceil(len(self.counts) / rows))
        return np.concatenate([part.astype(np.float64) @ values for part in parts])


@lru_cache(maxsize=4)
def prompt_weights(num_prompts: int, bootstrap: Bootstrap) -> Weights:
    """Return the resamples of so many prompts, the same for every k and for both arms."""
    rng = np.random.default_rng([bootstrap.seed, 0])
    units = min(num_prompts, MAX_UNITS)
    even = np.full(units, 1 / units)
    counts = np.empty((bootstrap.num_resamples, units), np.uint8)
    for row in range(bootstrap.num_resamples):  # at once it would take 8 bytes a number
        counts[row] = rng.multinomial(units, even)
    if units == num_prompts:
        return Weights(counts)
    # The same number of prompts in every group, or one more.
    return Weights(counts, (rng.permutation(num_prompts) % units).astype(np.int16))


@lru_cache(maxsize=4)
def block_draws(num_blocks: int, bootstrap: Bootstrap) -> Ints:
    """Return indices of the timing blocks of each resample, (num_resamples, num_blocks)."""
    rng = np.random.default_rng([bootstrap.seed, 1])
    return rng.integers(0, num_blocks, size=(bootstrap.num_resamples, num_blocks))


def interval_of(
    value: float, draws: Floats, sample_size: int | None, bootstrap: Bootstrap
) -> Interval:
    """Return the estimate with percentiles of its resamples, (num_resamples,).

    sample_size: None for draws that are as wide as they must be already
    """
    tail = (1 - bootstrap.confidence) / 2
    if sample_size is not None:
        factor = t_factor(sample_size, bootstrap.confidence)
        tail = 1 - NormalDist().cdf(factor * NormalDist().inv_cdf(0.5 + bootstrap.confidence / 2))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(float(value), float(min(low, value)), float(max(high, value)))


def t_factor(sample_size: int, confidence: float) -> float:
    """Return by how much the spread of resamples is too small for an interval of a mean.

    Resamples of n spread less than the data did, by sqrt((n - 1) / n), and their percentiles are
    a normal's where Student's t is due: the expanded percentile interval (Hesterberg 2015,
    arXiv 1411.5279, section 5.1). At n = 8 it asks for 0.5 % a side instead of 2.5 %.
    """
    freedom = max(sample_size - 1, 1)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    # Student's t by its expansion around the normal (Abramowitz & Stegun 26.7.5).
    t = (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
    return t / z * math.sqrt(sample_size / freedom)
