"""Which recipes are really different: every pair of runs on the same traffic, corrected for many.

Acceptance is paired by prompt. Times of two runs were taken at different hours: each run is held
to its own baseline in the same timing blocks, and the ratio of the two speedups is compared. The
prompts of a resample are the same for both runs, its loads are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from quantdraft.judge.acceptance import Floats
from quantdraft.judge.comparison.lengths import draw_lengths, num_prompts_with_rounds
from quantdraft.judge.comparison.points import num_units, replayed_of
from quantdraft.judge.comparison.times import time_ratio, timed_rounds
from quantdraft.judge.comparison.traces import rounds_over_trace
from quantdraft.judge.statistics.bootstrap import Bootstrap, interval_of
from quantdraft.record import MIN_PROMPTS, Evaluation, Interval, RecipePair

# Corrected intervals reach further into the tails than 2,000 resamples can.
NUM_RESAMPLES = 10_000


def all_pairs(
    evaluations: Sequence[Evaluation], k: int | None, seed: int = 0
) -> tuple[RecipePair, ...]:
    """Return every pair of runs of one question, in the order given.

    k: of the acceptance rates, replayed by every run; None: acceptance is not compared
    """
    pairs = list(combinations(evaluations, 2))
    if not pairs:
        return ()
    bootstrap = Bootstrap(NUM_RESAMPLES, seed, 1 - 0.05 / len(pairs))
    speeds = {id(each): _speed_draws(each, at, bootstrap) for at, each in enumerate(evaluations)}
    return tuple(
        RecipePair(
            one.name,
            other.name,
            None if k is None else _acceptance_gap(one, other, k, bootstrap),
            _speed_ratio(one, other, speeds[id(one)], speeds[id(other)], bootstrap),
        )
        for one, other in pairs
    )


def _acceptance_gap(
    one: Evaluation, other: Evaluation, k: int, bootstrap: Bootstrap
) -> Interval | None:
    here, there = replayed_of(one, "candidate"), replayed_of(other, "candidate")
    num_prompts = num_prompts_with_rounds(here)
    if here.prompt_ids != there.prompt_ids or num_prompts < MIN_PROMPTS:
        return None
    drawn_here, drawn_there = draw_lengths(here, there, k, k, bootstrap)
    value = here.counts(k).acceptance_rate - there.counts(k).acceptance_rate
    return interval_of(value, drawn_here.rate - drawn_there.rate, num_prompts, bootstrap)


def _speed_ratio(
    one: Evaluation,
    other: Evaluation,
    here: Floats | None,
    there: Floats | None,
    bootstrap: Bootstrap,
) -> Interval | None:
    ends = one.speedup_over_baseline, other.speedup_over_baseline
    if here is None or there is None or ends[0] is None or ends[1] is None:
        return None
    sample_size = min(num_units(one), num_units(other))
    return interval_of(ends[0].value / ends[1].value, here / there, sample_size, bootstrap)


def _speed_draws(evaluation: Evaluation, number: int, bootstrap: Bootstrap) -> Floats | None:
    """Return the speedup over the baseline in every resample; None where it is undefined."""
    point = evaluation.judged_speed
    if point is None or point.speedup_over_baseline is None or evaluation.served is not None:
        return None
    ks = point.baseline_num_speculative_tokens, point.candidate_num_speculative_tokens
    baseline, candidate = replayed_of(evaluation, "baseline"), replayed_of(evaluation, "candidate")
    if num_prompts_with_rounds(baseline) < MIN_PROMPTS:
        return None
    # A run's loads are its own: each run draws with a seed of its own.
    own = replace(bootstrap, seed=bootstrap.seed + 1000 * (number + 1))
    if evaluation.trace is not None:
        times = rounds_over_trace(evaluation, own)
    else:
        latency = evaluation.latency
        rounds = timed_rounds(latency, "baseline", ks[0]), timed_rounds(latency, "candidate", ks[1])
        times = time_ratio(*rounds, latency, own)
    if times is None:
        return None
    before, after = draw_lengths(baseline, candidate, *ks, bootstrap)
    return np.asarray(times.draws * (after.length / before.length))
