"""Temperature, top-k and top-p against distributions worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from quantdraft.measure.sampling import draw, processed_logprobs
from quantdraft.traffic.traffic import Sampling

PROBS = [0.4, 0.3, 0.2, 0.1]
LOGITS = torch.tensor(PROBS).log() + 3.0  # a constant added to logits changes nothing


def processed(**settings: float) -> list[float]:
    return processed_logprobs(LOGITS, Sampling(**settings)).exp().tolist()  # type: ignore[arg-type]


def test_greedy_is_the_plain_softmax() -> None:
    assert processed() == pytest.approx(PROBS)
    assert processed(top_k=1, top_p=0.1) == pytest.approx(PROBS)


def test_temperature_raises_probabilities_to_its_inverse() -> None:
    squares = [p * p for p in PROBS]
    expected = [s / sum(squares) for s in squares]
    assert processed(temperature=0.5) == pytest.approx(expected)


def test_top_k_keeps_the_largest_and_renormalizes() -> None:
    assert processed(temperature=1.0, top_k=2) == pytest.approx([4 / 7, 3 / 7, 0, 0])


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    assert processed(temperature=1.0, top_p=0.65) == pytest.approx([4 / 7, 3 / 7, 0, 0])
    assert processed(temperature=1.0, top_p=0.75) == pytest.approx([4 / 9, 3 / 9, 2 / 9, 0])


def test_top_k_comes_before_top_p() -> None:
    # Of what top-k 3 leaves, two tokens hold 7/9 and suffice for 0.75; of all they hold 0.7.
    assert processed(temperature=1.0, top_k=3, top_p=0.75) == pytest.approx([4 / 7, 3 / 7, 0, 0])


def test_temperature_comes_before_top_p() -> None:
    # At temperature 1/2 the first token holds 16/30 and suffices for 0.5; before, it holds 0.4.
    assert processed(temperature=0.5, top_p=0.5) == pytest.approx([1, 0, 0, 0])


def test_shape_is_kept_and_the_result_is_float32() -> None:
    logits = torch.randn(2, 3, 17, generator=torch.Generator().manual_seed(0)).bfloat16()
    settings = Sampling(temperature=0.7, top_p=0.9, top_k=5)
    found = processed_logprobs(logits, settings)
    assert found.shape == logits.shape
    assert found.dtype == torch.float32
    assert found[1, 2].tolist() == processed_logprobs(logits[1, 2], settings).tolist()


def test_draw_inverts_the_distribution_and_never_takes_an_excluded_token() -> None:
    logprobs = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0]).log().repeat(5, 1)
    uniform = torch.tensor(
        [0.0, 0.2499, 0.2501, 0.5, math.nextafter(1.0, 0.0)], dtype=torch.float64
    )
    assert draw(logprobs, uniform).tolist() == [1, 1, 3, 3, 3]


def test_draws_have_the_processed_frequencies() -> None:
    trials = 20_000
    logprobs = processed_logprobs(LOGITS, Sampling(temperature=1.0, top_k=3))
    uniform = torch.rand(trials, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    counts = draw(logprobs.repeat(trials, 1), uniform).bincount(minlength=4)
    for count, p in zip(counts.tolist(), logprobs.exp().tolist(), strict=True):
        assert abs(count / trials - p) <= 4 * math.sqrt(p * (1 - p) / trials)
