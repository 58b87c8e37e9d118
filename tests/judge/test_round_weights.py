"""What a token's acceptance is worth: against differences of the rounds that replay counts."""

from __future__ import annotations

import numpy as np
import pytest

from quantdraft.judge.acceptance import replay_rounds
from quantdraft.judge.round_weights import rounds_saved


def rounds(keep: np.ndarray, k: int) -> float:
    return float(replay_rounds(["a"], [keep], [k]).num_drafts[0, 0])


@pytest.mark.parametrize("k", [1, 2, 4, 7])
@pytest.mark.parametrize("length", [2, 3, 9, 30])
def test_what_a_token_saves_is_the_difference_of_the_rounds_without_and_with_it(k, length):
    """Rounds are linear in each single probability, so the difference from 0 to 1 is exact."""
    keep = np.random.default_rng(k * 100 + length).random(length)
    saved = rounds_saved(keep, k)
    for token in range(length):
        without, kept = keep.copy(), keep.copy()
        without[token], kept[token] = 0.0, 1.0
        assert saved[token] == pytest.approx(rounds(without, k) - rounds(kept, k), abs=1e-9)


def test_the_first_token_saves_nothing_and_none_costs_a_round():
    saved = rounds_saved(np.random.default_rng(0).random(50), 4)
    assert saved[0] == 0.0
    assert (saved >= 0).all()


def test_a_token_that_is_never_asked_for_saves_nothing():
    """With every proposal kept, k + 1 tokens a round: each (k + 1)-th is the bonus token."""
    saved = rounds_saved(np.ones(11), 4)
    assert saved[5] == 0.0
    assert saved[10] == 0.0
    assert saved[1] > 0
