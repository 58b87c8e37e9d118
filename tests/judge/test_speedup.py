"""The speed equations against numbers worked by hand."""

import numpy as np
import pytest

from quantdraft.judge import speedup


def test_ms_per_token_by_hand() -> None:
    # 4 x 2 ms of drafting and 12 ms of verifying emit 2.5 tokens: 20 / 2.5
    assert speedup.round_ms(4, 2.0, 12.0) == 20.0
    assert speedup.round_ms(4, 2.0, 12.0) / 2.5 == 8.0


def test_speedups_by_hand() -> None:
    assert speedup.speedup_over_autoregressive(10.0, 20.0, 2.5) == 1.25
    # baseline 20 / 2.5 = 8 ms a token, candidate 15 / 2.0 = 7.5
    assert speedup.speedup_over_baseline(20.0, 15.0, 2.5, 2.0) == pytest.approx(8 / 7.5)


def test_speedup_is_one_at_the_break_even_length() -> None:
    length = speedup.break_even_length(20.0, 15.0, 2.5)
    assert length == 1.875
    assert speedup.speedup_over_baseline(20.0, 15.0, 2.5, length) == 1.0


def test_break_even_rate_is_accepted_over_proposed_and_undefined_where_none_gives_it() -> None:
    assert speedup.break_even_rate(3.0, 4) == 0.5
    assert speedup.break_even_rate(5.01, 4) is None
    assert speedup.break_even_rate(0.99, 4) is None


def test_published_kimi_draft_cannot_pay() -> None:
    """A draft whose length falls from 5.70 to 3.29 needs rounds 1.73 x as fast."""
    assert 1 / speedup.speedup_over_baseline(1.0, 1.0, 5.70, 3.29) == pytest.approx(1.73, abs=0.005)


def test_leviathan_by_hand_and_the_rule_of_thumb_is_never_lower() -> None:
    # alpha 0.5, k = 2: 1.75 tokens a round of 2 x 0.1 + 1
    assert speedup.leviathan(0.5, 2, 0.1) == pytest.approx(1.75 / 1.2)
    assert speedup.rule_of_thumb(0.5, 2, 0.1) == pytest.approx(1.75 / 1.1)
    assert speedup.leviathan(0.7, 1, 0.2) == speedup.rule_of_thumb(0.7, 1, 0.2)


def test_leviathan_is_the_speed_equation_when_verifying_costs_one_step() -> None:
    k, alpha, draft_ms, target_ms = 5, 0.8, 1.0, 20.0
    length = (1 - alpha ** (k + 1)) / (1 - alpha)
    measured = speedup.speedup_over_autoregressive(
        target_ms, speedup.round_ms(k, draft_ms, target_ms), length
    )
    assert measured == pytest.approx(speedup.leviathan(alpha, k, draft_ms / target_ms))


def test_arrays_of_resamples_go_through_the_same_equations() -> None:
    lengths = np.array([2.0, 2.5])
    assert (speedup.round_ms(4, np.full(2, 2.0), np.full(2, 12.0)) / lengths).tolist() == [10, 8]
