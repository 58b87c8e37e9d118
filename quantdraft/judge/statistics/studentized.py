"""Rates, lengths and their ratio, resampled so that percentiles are a bootstrap-t interval.

Few prompts are skewed, and their error differs from sample to sample: of simulated truths plain
percentiles cover 88 % at 5 prompts and 91 % at 8 where 95 % is said; these cover 93 % and 95 %.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quantdraft.judge.acceptance import Floats, Replayed
from quantdraft.judge.statistics.bootstrap import Bootstrap, Weights, prompt_weights
from quantdraft.record import MIN_PROMPTS

# A resample of prompts that are all alike says nothing of its own error.
LEAST_ERROR = 1e-3


class Draws(NamedTuple):
    """Resamples of one arm, (num_resamples,) each."""

    rate: Floats  # accepted / proposed
    length: Floats  # mean acceptance length


def draw_alone(arm: Replayed, k: int, bootstrap: Bootstrap) -> Draws:
    """Return one arm's resamples, for `interval_of` without a sample size.

    Under MIN_PROMPTS prompts they are everything that is possible.
    """
    has_rounds = arm.has_rounds
    num_prompts = int(has_rounds.sum())
    if num_prompts < MIN_PROMPTS:
        anything = np.resize([0.0, 1.0], bootstrap.num_resamples)
        return Draws(anything, 1 + k * anything)
    weights = prompt_weights(num_prompts, bootstrap)
    num_drafts = arm.num_drafts[arm.row(k)][has_rounds]
    num_tokens = arm.num_tokens[has_rounds].astype(np.float64)
    rate = studentized(arm.num_accepted(k)[has_rounds], k * num_drafts, weights)
    length = studentized(num_tokens, num_drafts, weights)
    return Draws(np.clip(rate, 0.0, 1.0), np.clip(length, 1.0, k + 1.0))


def draw_length_ratio(
    baseline: Replayed,
    candidate: Replayed,
    baseline_k: int,
    candidate_k: int,
    bootstrap: Bootstrap,
) -> Floats:
    """Return resamples of the candidate's length over the baseline's, (num_resamples,).

    Both arms emitted the same tokens: it is the baseline's rounds through the candidate's.
    """
    has_rounds = baseline.has_rounds
    num_prompts = int(has_rounds.sum())
    if num_prompts < MIN_PROMPTS:
        return np.resize([1 / (baseline_k + 1.0), candidate_k + 1.0], bootstrap.num_resamples)
    before = baseline.num_drafts[baseline.row(baseline_k)][has_rounds]
    after = candidate.num_drafts[candidate.row(candidate_k)][has_rounds]
    return studentized(before, after, prompt_weights(num_prompts, bootstrap))


def studentized(over: Floats, under: Floats, weights: Weights) -> Floats:
    """Return draws of the sum of `over` through that of `under`, (num_resamples,).

    Each resample is put at the distance from the estimate that its own error gives it, on the
    logarithm and to the other side (Efron & Tibshirani 1993, chapter 12). The error of a ratio of
    sums is the linearized one.
    """
    ones = np.ones((1, len(over)))
    value, error = (float(each[0]) for each in _ratio_and_error(over, under, ones))
    if value <= 0 or error == 0:
        return np.full(len(weights.counts), value)
    drawn, errors = _ratio_and_error(over, under, weights)
    is_known = (errors > LEAST_ERROR * error) & (drawn > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.where(is_known, np.log(drawn / value) / (errors / drawn), 0.0)
    return np.asarray(value * np.exp(-distance * error / value))


def _ratio_and_error(
    over: Floats, under: Floats, weights: Weights | Floats
) -> tuple[Floats, Floats]:
    columns = np.column_stack([over, under, over * over, over * under, under * under])
    a, b, aa, ab, bb = (weights @ columns).T
    ratio = a / b
    squares = np.maximum(aa - 2 * ratio * ab + ratio**2 * bb, 0.0)
    num_prompts = len(over)
    return ratio, np.sqrt(squares * num_prompts / (num_prompts - 1)) / b
