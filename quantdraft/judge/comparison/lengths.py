"""Acceptance of both arms at one k, with intervals from resampled prompts."""

from __future__ import annotations

import numpy as np

from quantdraft.errors import PairingError
from quantdraft.judge.acceptance import Floats, Replayed
from quantdraft.judge.statistics.bootstrap import (
    DEFAULT,
    Bootstrap,
    interval_of,
    prompt_weights,
)
from quantdraft.judge.statistics.studentized import Draws, draw_alone, draw_length_ratio
from quantdraft.record import MIN_PROMPTS, AcceptanceComparison, Interval


def compare_acceptance(
    baseline: Replayed, candidate: Replayed, k: int, bootstrap: Bootstrap = DEFAULT
) -> AcceptanceComparison:
    """Return both arms' acceptance at one k, each number with its interval.

    With fewer than MIN_PROMPTS prompts an interval is everything that is possible: [0, 1] for a
    rate, [1, k + 1] for a length. Raises PairingError when the arms saw different text, and
    UndefinedMetricError when no prompt has a round.
    """
    base, cand = baseline.counts(k), candidate.counts(k)
    base_rate, cand_rate = base.acceptance_rate, cand.acceptance_rate
    base_length, cand_length = base.mean_acceptance_length, cand.mean_acceptance_length
    base_drawn, cand_drawn = draw_lengths(baseline, candidate, k, k, bootstrap)
    base_alone, cand_alone = (draw_alone(arm, k, bootstrap) for arm in (baseline, candidate))
    num_prompts = num_prompts_with_rounds(baseline)

    def interval(value: float, draws: Floats) -> Interval:
        return interval_of(value, draws, num_prompts, bootstrap)

    def alone(value: float, draws: Floats) -> Interval:
        return interval_of(value, draws, None, bootstrap)

    return AcceptanceComparison(
        num_speculative_tokens=k,
        baseline=base,
        candidate=cand,
        baseline_rate=alone(base_rate, base_alone.rate),
        candidate_rate=alone(cand_rate, cand_alone.rate),
        acceptance_rate_loss=interval(base_rate - cand_rate, base_drawn.rate - cand_drawn.rate),
        baseline_length=alone(base_length, base_alone.length),
        candidate_length=alone(cand_length, cand_alone.length),
        length_ratio=alone(
            cand_length / base_length, draw_length_ratio(baseline, candidate, k, k, bootstrap)
        ),
        acceptance_loss_per_pos=_loss_per_pos(baseline, candidate, k, bootstrap),
    )


def _loss_per_pos(
    baseline: Replayed, candidate: Replayed, k: int, bootstrap: Bootstrap
) -> tuple[Interval, ...]:
    """Return the baseline's minus the candidate's share of rounds that kept each position, (k,)."""
    pairs = zip(
        baseline.counts(k).acceptance_rate_per_pos,
        candidate.counts(k).acceptance_rate_per_pos,
        strict=True,
    )
    losses = [before - after for before, after in pairs]
    num_prompts = num_prompts_with_rounds(baseline)
    if num_prompts < MIN_PROMPTS:
        return tuple(Interval(loss, -1.0, 1.0) for loss in losses)
    drawn = _draw_positions(baseline, k, bootstrap) - _draw_positions(candidate, k, bootstrap)
    return tuple(
        interval_of(loss, draws, num_prompts, bootstrap)
        for loss, draws in zip(losses, drawn.T, strict=True)
    )


def _draw_positions(arm: Replayed, k: int, bootstrap: Bootstrap) -> Floats:
    """Return the share of rounds that kept each position, (num_resamples, k)."""
    has_rounds = arm.has_rounds
    weights = prompt_weights(int(has_rounds.sum()), bootstrap)
    row = arm.row(k)
    num_drafts = weights @ arm.num_drafts[row][has_rounds]
    kept = weights @ arm.num_accepted_per_pos[row][has_rounds]
    return np.asarray(kept / num_drafts[:, None])


def draw_lengths(
    baseline: Replayed,
    candidate: Replayed,
    baseline_k: int,
    candidate_k: int,
    bootstrap: Bootstrap,
) -> tuple[Draws, Draws]:
    """Return both arms' acceptance in the same resamples of the prompts."""
    check_paired(baseline, candidate)
    if num_prompts_with_rounds(baseline) < MIN_PROMPTS:
        return _everything_possible(baseline_k, candidate_k, bootstrap.num_resamples)
    return _draw(baseline, baseline_k, bootstrap), _draw(candidate, candidate_k, bootstrap)


def check_paired(baseline: Replayed, candidate: Replayed) -> None:
    """Raise PairingError unless both arms were replayed on the same prompts and tokens."""
    if baseline.prompt_ids != candidate.prompt_ids:
        raise PairingError(
            "baseline and candidate were replayed on different prompts. "
            "Replay both on the same traffic."
        )
    differ = np.flatnonzero(baseline.num_tokens != candidate.num_tokens)
    if len(differ):
        raise PairingError(
            f"prompt {baseline.prompt_ids[differ[0]]!r}: baseline and candidate were replayed on "
            "responses of different lengths. Replay both on the same traffic."
        )


def num_prompts_with_rounds(replayed: Replayed) -> int:
    """Return the number of prompts whose response is long enough to have a round."""
    return int(replayed.has_rounds.sum())


def _draw(arm: Replayed, k: int, bootstrap: Bootstrap) -> Draws:
    has_rounds = arm.has_rounds
    weights = prompt_weights(int(has_rounds.sum()), bootstrap)
    num_drafts = weights @ arm.num_drafts[arm.row(k)][has_rounds]
    accepted = weights @ arm.num_accepted(k)[has_rounds]
    return Draws(accepted / (k * num_drafts), weights @ arm.num_tokens[has_rounds] / num_drafts)


def _everything_possible(
    baseline_k: int, candidate_k: int, num_resamples: int
) -> tuple[Draws, Draws]:
    """Return draws between one arm that is always right and another that is never."""
    rate = np.resize([0.0, 1.0], num_resamples)
    return (
        Draws(1 - rate, 1 + baseline_k * (1 - rate)),
        Draws(rate, 1 + candidate_k * rate),
    )
