"""Bootstrap-t draws: against closed forms, and against truths that are known."""

import numpy as np
import pytest

from quantdraft.judge.acceptance import replay_rounds
from quantdraft.judge.statistics.bootstrap import Bootstrap, interval_of, prompt_weights
from quantdraft.judge.statistics.studentized import draw_alone, draw_length_ratio, studentized


def test_prompts_that_are_all_alike_give_one_number() -> None:
    weights = prompt_weights(8, Bootstrap())
    assert studentized(np.full(8, 30.0), np.full(8, 12.0), weights) == pytest.approx(2.5)
    assert studentized(np.zeros(8), np.arange(1.0, 9.0), weights) == pytest.approx(0.0)


def test_of_many_prompts_the_draws_spread_as_the_linearized_error_says() -> None:
    rng = np.random.default_rng(0)
    over, under = rng.gamma(9.0, 1.0, 3000), rng.gamma(16.0, 0.5, 3000)
    value = over.sum() / under.sum()
    error = np.sqrt(((over - value * under) ** 2).sum()) / under.sum()
    draws = studentized(over, under, prompt_weights(3000, Bootstrap()))
    assert draws.mean() == pytest.approx(value, abs=4 * error / np.sqrt(2000) + error**2 / value)
    assert draws.std() / error == pytest.approx(1.0, abs=4 / np.sqrt(2 * 2000))


def test_intervals_of_eight_skewed_prompts_cover_as_often_as_they_say() -> None:
    """Gamma-distributed rounds, equal tokens: the truth is 1 over their mean."""
    rng = np.random.default_rng(5)
    num_runs, num_prompts, bootstrap = 1000, 8, Bootstrap(num_resamples=1000)
    weights = prompt_weights(num_prompts, bootstrap)
    covered = 0
    for _ in range(num_runs):
        rounds, tokens = rng.gamma(3.0, 1.0, num_prompts), np.ones(num_prompts)
        draws = studentized(tokens, rounds, weights)
        ends = interval_of(float(tokens.sum() / rounds.sum()), draws, None, bootstrap)
        covered += ends.low <= 1 / 3.0 <= ends.high
    error = np.sqrt(0.95 * 0.05 / num_runs)
    assert 0.95 - 4 * error <= covered / num_runs <= 0.95 + 4 * error


def test_draws_stay_inside_what_is_possible() -> None:
    keeps = [np.array([1.0, 1.0, *[float(at > 2)] * 9]) for at in range(8)]
    arm = replay_rounds([str(at) for at in range(8)], keeps, [2])
    drawn = draw_alone(arm, 2, Bootstrap())
    assert drawn.rate.min() >= 0
    assert drawn.rate.max() <= 1
    assert drawn.length.min() >= 1
    assert drawn.length.max() <= 3


def test_under_five_prompts_everything_is_possible() -> None:
    arm = replay_rounds(["a", "b"], [np.array([0.0, 1.0, 0.0])] * 2, [3, 4])
    drawn = draw_alone(arm, 3, Bootstrap())
    assert (set(drawn.rate), set(drawn.length)) == ({0.0, 1.0}, {1.0, 4.0})
    assert set(draw_length_ratio(arm, arm, 3, 4, Bootstrap())) == {1 / 4, 5.0}


def test_equal_arms_have_a_ratio_of_one_whatever_the_prompts() -> None:
    rng = np.random.default_rng(1)
    keeps = [(rng.random(20) < 0.6).astype(float) for _ in range(9)]
    arm = replay_rounds([str(at) for at in range(9)], keeps, [4])
    assert draw_length_ratio(arm, arm, 4, 4, Bootstrap()) == pytest.approx(1.0)


def test_a_resample_that_is_too_high_moves_the_draw_down() -> None:
    """Bootstrap-t is mirrored: where resamples scatter above, the truth may lie below."""
    rng = np.random.default_rng(2)
    over, under = np.ones(12), rng.gamma(2.0, 1.0, 12)
    weights = prompt_weights(12, Bootstrap())
    resampled = (weights @ over) / (weights @ under)
    drawn = studentized(over, under, weights)
    value = over.sum() / under.sum()
    far = np.abs(np.log(resampled / value)) > 0.05
    assert (np.sign(resampled - value)[far] == -np.sign(drawn - value)[far]).all()
