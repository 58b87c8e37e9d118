"""Ratios of times whose truth is known: loads differ, and intervals know it."""

from __future__ import annotations

import numpy as np
import pytest

from quantdraft.errors import PairingError
from quantdraft.judge.comparison.times import (
    Timed,
    time_ratio,
    timed_steps,
    timed_throughout,
    widths_near_best,
)
from quantdraft.judge.statistics.bootstrap import Bootstrap
from quantdraft.record import ArmLatency, Latency, StepSamples

QUICK = Bootstrap(num_resamples=500)


def latency_of(
    steps: dict[str, dict[int, StepSamples]], loads: tuple[int, ...] = (), **facts
) -> Latency:
    arms = {name: ArmLatency(name, "float32", (), 0, found) for name, found in steps.items()}
    return Latency("native", "cpu", 2, 1, 128, arms, loads=loads, **facts)


def drawn(
    rng: np.random.Generator, num_loads: int, num_blocks: int, load_sd: float, block_sd: float
) -> Latency:
    """Two steps of one length, whose ratio differs by load and by block."""
    of_load = np.repeat(rng.normal(0, load_sd, num_loads), num_blocks)
    one = np.exp(of_load + rng.normal(0, block_sd, len(of_load)))
    steps = {"baseline": {1: samples(one)}, "candidate": {1: samples(np.ones(len(one)))}}
    return latency_of(steps, tuple(np.repeat(np.arange(num_loads), num_blocks).tolist()))


def samples(values: np.ndarray, blocks: tuple[int, ...] = ()) -> StepSamples:
    return StepSamples(tuple(np.asarray(values, float).tolist()), blocks)


def interval(latency: Latency, bootstrap: Bootstrap = QUICK) -> tuple[float, float]:
    ratio = time_ratio(
        timed_steps(latency, "baseline", 1),
        timed_steps(latency, "candidate", 1),
        latency,
        bootstrap,
    )
    assert ratio is not None
    low, high = np.quantile(ratio.draws, [0.025, 0.975])
    return float(low), float(high)


@pytest.mark.parametrize("load_sd", [0.0, 0.03])
@pytest.mark.parametrize("num_loads", [4, 10])
def test_the_interval_covers_one_whatever_loads_differ_by(load_sd, num_loads):
    rng, num_trials = np.random.default_rng(0), 600
    ends = [interval(drawn(rng, num_loads, 8, load_sd, 0.02)) for _ in range(num_trials)]
    covered = sum(low <= 1 <= high for low, high in ends)
    # nominally 95 %; four standard errors of the number of trials, and 4 loads are few
    allowed = 4 * np.sqrt(num_trials * 0.95 * 0.05)
    assert covered >= 0.95 * num_trials - allowed - (0.02 * num_trials if num_loads < 8 else 0)
    assert covered <= 0.95 * num_trials + allowed + 0.02 * num_trials
    # an interval of blocks alone would be too narrow by the spread of loads
    width = np.mean([high - low for low, high in ends])
    truth = np.sqrt((load_sd**2 + 1.57 * 0.02**2 / 8) / num_loads)  # 1.57: of a median
    t = {4: 3.18, 10: 2.26}[num_loads]
    assert width == pytest.approx(2 * t * truth, rel=0.25)


def test_one_load_alone_has_the_interval_of_its_blocks():
    rng = np.random.default_rng(1)
    alone = drawn(rng, 1, 40, 0.0, 0.02)
    low, high = interval(alone)
    assert low < 1 < high
    assert high - low == pytest.approx(2 * 1.96 * 0.02 * 1.25 / np.sqrt(40), rel=0.5)


def test_the_value_is_the_geometric_mean_of_the_loads_medians():
    steps = {
        "baseline": {1: samples([2, 2, 200, 8, 8, 8, 4, 4, 4])},
        "candidate": {1: samples([1] * 9)},
    }
    latency = latency_of(steps, (0, 0, 0, 1, 1, 1, 2, 2, 2))
    ratio = time_ratio(
        timed_steps(latency, "baseline", 1), timed_steps(latency, "candidate", 1), latency, QUICK
    )
    assert ratio is not None
    assert ratio.value == pytest.approx(4.0)
    assert ratio.num_loads == 3


def test_steps_are_paired_in_the_blocks_that_both_have():
    blocks = tuple(range(6))
    steps = {
        "baseline": {1: samples([10, 20, 30, 40, 50, 60])},
        "candidate": {1: samples([2, 3, 4, 5, 6], blocks[1:])},
    }
    latency = latency_of(steps, (0,) * 6)
    ratio = time_ratio(
        timed_steps(latency, "baseline", 1), timed_steps(latency, "candidate", 1), latency, QUICK
    )
    assert ratio is not None
    assert ratio.value == pytest.approx(10.0)


def test_steps_of_one_load_with_different_numbers_of_samples_are_no_pair():
    one, other = Timed(np.ones(6), np.arange(6)), Timed(np.ones(7), np.arange(7))
    with pytest.raises(PairingError, match="6 timing samples and another 7"):
        time_ratio(one, other, latency_of({}), QUICK)


def test_too_few_common_blocks_give_no_ratio():
    one, other = Timed(np.ones(6), np.arange(6)), Timed(np.ones(6), np.arange(4, 10))
    assert time_ratio(one, other, latency_of({}, (0,) * 10), QUICK) is None


def speeds(target: dict[int, float]) -> Latency:
    steps = {
        "baseline": {1: samples([1.0] * 6)},
        "candidate": {1: samples([0.5] * 6)},
        "target": {width: samples([ms] * 6) for width, ms in target.items()},
    }
    return latency_of(steps)


def test_more_time_goes_to_the_k_near_the_best_of_either_arm():
    lengths = {"baseline": {1: 1.8, 2: 2.4, 3: 2.7}, "candidate": {1: 1.8, 2: 2.4, 3: 2.75}}
    # per token: baseline 3.39, 3.08, 3.30; candidate 3.11, 2.67, 2.71
    found = widths_near_best(lengths, speeds({1: 5.0, 2: 5.1, 3: 5.4, 4: 5.95}))
    assert found == (1, 3, 4)
    assert widths_near_best(lengths, latency_of({})) == ()


def test_the_best_k_is_one_that_was_timed_in_every_load():
    steps = {
        "target": {1: samples([1] * 4), 2: samples([1] * 4), 3: samples([1] * 2, (0, 1))},
    }
    assert timed_throughout(latency_of(steps, (0, 0, 1, 1)), (1, 2)) == (1,)
    assert timed_throughout(latency_of(steps), (1, 2)) == (1, 2)
    assert timed_throughout(latency_of({}), (1, 2)) == (1, 2)
