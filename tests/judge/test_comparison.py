"""Intervals against simulations whose truth is known; pairing; slices; degenerate data."""

import numpy as np
import pytest

from quantdraft.errors import OptionError, PairingError, UndefinedMetricError
from quantdraft.judge.acceptance import Replayed, replay_rounds
from quantdraft.judge.comparison.lengths import compare_acceptance
from quantdraft.judge.comparison.slices import by_context, by_domain, by_position, slice_tokens
from quantdraft.judge.comparison.speeds import best_k, speed_point
from quantdraft.judge.statistics.bootstrap import (
    MAX_UNITS,
    MIN_TIMINGS,
    Bootstrap,
    interval_of,
    prompt_weights,
)
from quantdraft.judge.statistics.settling import Needed, num_prompts_to_settle, what_would_settle
from quantdraft.record import MIN_PROMPTS, ArmLatency, Interval, Latency, StepSamples

QUICK = Bootstrap(num_resamples=400)


def coverage_bounds(num_trials: int, at_least: float = 0.95) -> float:
    """Fewest covering trials that four standard errors allow."""
    return num_trials * at_least - 4 * np.sqrt(num_trials * at_least * (1 - at_least))


def replayed(keeps: list[np.ndarray], ks: tuple[int, ...] = (4,)) -> Replayed:
    return replay_rounds([f"p{i}" for i in range(len(keeps))], keeps, ks)


def draw_arms(num_prompts: int, rng: np.random.Generator, loss: float = 0.05):
    """Two arms whose acceptance is the prompt's own difficulty, the candidate's a little lower."""
    difficulty = rng.beta(6, 3, size=num_prompts)
    lengths = rng.integers(20, 80, size=num_prompts)
    base = [(rng.random(n) < d).astype(float) for n, d in zip(lengths, difficulty, strict=True)]
    cand = [keep * (rng.random(len(keep)) >= loss) for keep in base]
    return replayed(base), replayed(cand)


def latency_of(**arms: dict[int, np.ndarray]) -> Latency:
    timed = {
        name: ArmLatency(
            name, "float32", (), 0, {m: StepSamples(tuple(s.tolist())) for m, s in steps.items()}
        )
        for name, steps in arms.items()
    }
    return Latency("native", "cpu", 2, 1, 128, timed)


def noisy(base_ms: float, drift: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Step times with drift of the machine and, in 15 % of blocks, a heavy-tailed delay."""
    delay = np.where(rng.random(len(drift)) < 0.15, 1 + rng.pareto(1.5, len(drift)), 1)
    return base_ms * drift * (1 + 0.02 * rng.normal(size=len(drift))) * delay


def noisy_latency(num_blocks: int, rng: np.random.Generator, candidate_ms: float = 1.0) -> Latency:
    walk = np.cumsum(0.03 * rng.normal(size=num_blocks))
    drift = np.exp(walk)
    return latency_of(
        baseline={1: noisy(1.0, drift, rng)},
        candidate={1: noisy(candidate_ms, drift, rng)},
        control={1: noisy(1.0, drift, rng)},
        target={1: noisy(5.0, drift, rng), 5: noisy(6.0, drift, rng)},
    )


def test_estimates_by_hand() -> None:
    # k = 2, five equal prompts. Baseline rounds: [2 accepted, bonus], [0]; candidate: [0], [1], [0]
    base = replayed([np.array([0, 1, 1, 0, 0])] * 5, (2,))
    cand = replayed([np.array([0, 0, 1, 0, 0])] * 5, (2,))
    result = compare_acceptance(base, cand, 2)
    assert result.baseline_length == Interval(2.0, 2.0, 2.0)
    assert result.candidate_length.value == pytest.approx(4 / 3)
    assert result.baseline_rate.value == 0.5
    assert result.candidate_rate.value == pytest.approx(1 / 6)
    assert result.acceptance_rate_loss.value == pytest.approx(1 / 3)
    assert result.length_ratio.value == pytest.approx(2 / 3)


@pytest.mark.parametrize("num_prompts", [8, 40])
def test_the_interval_of_the_loss_covers_the_truth(num_prompts: int) -> None:
    rng = np.random.default_rng(0)
    truth = compare_acceptance(*draw_arms(6000, rng), 4, Bootstrap(num_resamples=2))
    true_loss = truth.acceptance_rate_loss.value
    trials = [compare_acceptance(*draw_arms(num_prompts, rng), 4, QUICK) for _ in range(250)]
    covered = sum(
        t.acceptance_rate_loss.low <= true_loss <= t.acceptance_rate_loss.high for t in trials
    )
    assert covered >= coverage_bounds(len(trials))
    assert covered < len(trials)  # intervals that always cover say nothing


def test_pairing_makes_the_interval_narrower_than_independent_arms_would() -> None:
    result = compare_acceptance(*draw_arms(60, np.random.default_rng(1)), 4)

    def half(interval: Interval) -> float:
        return (interval.high - interval.low) / 2

    independent = np.hypot(half(result.baseline_rate), half(result.candidate_rate))
    assert half(result.acceptance_rate_loss) < 0.5 * independent


def test_the_same_seed_gives_the_same_interval_and_another_seed_a_close_one() -> None:
    arms = draw_arms(30, np.random.default_rng(2))
    first, again = compare_acceptance(*arms, 4), compare_acceptance(*arms, 4)
    other = compare_acceptance(*arms, 4, Bootstrap(seed=1))
    assert first == again
    assert first.length_ratio != other.length_ratio
    assert first.length_ratio.low == pytest.approx(other.length_ratio.low, abs=0.01)


def test_a_draft_against_itself_has_no_loss_at_all() -> None:
    base, _ = draw_arms(30, np.random.default_rng(3))
    result = compare_acceptance(base, base, 4)
    assert result.acceptance_rate_loss == Interval(0.0, 0.0, 0.0)
    assert result.length_ratio == Interval(1.0, 1.0, 1.0)


def test_too_few_prompts_give_everything_that_is_possible() -> None:
    few = replayed([np.ones(30)] * (MIN_PROMPTS - 1))
    result = compare_acceptance(few, few, 4)
    assert (result.baseline_rate.low, result.baseline_rate.high) == (0, 1)
    assert (result.candidate_length.low, result.candidate_length.high) == (1, 5)
    assert (result.acceptance_rate_loss.low, result.acceptance_rate_loss.high) == (-1, 1)
    assert (result.length_ratio.low, result.length_ratio.high) == (0.2, 5)


def test_prompts_without_a_round_do_not_count_as_prompts() -> None:
    result = compare_acceptance(*[replayed([np.ones(30)] + [np.ones(1)] * 20)] * 2, 4)
    assert result.baseline_rate.low == 0
    with pytest.raises(UndefinedMetricError):
        compare_acceptance(*[replayed([np.ones(1)] * 20)] * 2, 4)


def test_unpaired_arms_are_refused() -> None:
    base = replayed([np.ones(9)] * 6)
    other_ids = replay_rounds([f"q{i}" for i in range(6)], [np.ones(9)] * 6, (4,))
    longer = replayed([np.ones(9)] * 5 + [np.ones(10)])
    with pytest.raises(PairingError, match="different prompts"):
        compare_acceptance(base, other_ids, 4)
    with pytest.raises(PairingError, match="'p5'"):
        compare_acceptance(base, longer, 4)
    with pytest.raises(OptionError, match="k = 3"):
        compare_acceptance(base, base, 3)


def test_speed_point_by_hand() -> None:
    """Constant times: 4 x 2 + 12 and 4 x 1 + 12 ms a round; lengths 5 (always kept) and 1."""
    latency = latency_of(
        baseline={1: np.full(6, 2.0)},
        candidate={1: np.full(6, 1.0)},
        control={1: np.full(6, 2.0)},
        target={1: np.full(6, 10.0), 5: np.full(6, 12.0)},
    )
    always, never = replayed([np.ones(51)] * 6), replayed([np.zeros(51)] * 6)
    point = speed_point(always, never, latency, baseline_k=4, candidate_k=4)
    assert point.baseline_ms_per_token == 4.0
    assert point.candidate_ms_per_token == 16.0
    assert point.speedup_over_baseline == Interval(0.25, 0.25, 0.25)
    assert point.speedup_over_autoregressive == Interval(0.625, 0.625, 0.625)
    assert point.baseline_speedup_over_autoregressive == Interval(2.5, 2.5, 2.5)
    assert point.control_speedup == Interval(1.0, 1.0, 1.0)
    assert point.draft_latency_saving == Interval(0.5, 0.5, 0.5)
    assert point.break_even_length == 4.0
    assert point.break_even_rate == 0.75


def test_arms_may_use_different_k_and_best_k_is_the_fastest() -> None:
    latency = latency_of(
        baseline={1: np.full(6, 2.0)},
        candidate={1: np.full(6, 1.0)},
        target={1: np.full(6, 10.0), 3: np.full(6, 11.0), 5: np.full(6, 12.0)},
    )
    always, never = replayed([np.ones(61)] * 6, (2, 4)), replayed([np.zeros(61)] * 6, (2, 4))
    mixed = speed_point(always, never, latency, baseline_k=4, candidate_k=2)
    assert mixed.baseline_ms_per_token == 4.0
    assert mixed.candidate_ms_per_token == 13.0
    assert mixed.control_speedup is None
    equal = [
        speed_point(always, never, latency, baseline_k=k, candidate_k=k, bootstrap=QUICK)
        for k in (2, 4)
    ]
    assert best_k(equal) == {"baseline": 4, "candidate": 2}


def test_what_was_not_timed_is_undefined_and_the_rest_is_not() -> None:
    arms = draw_arms(20, np.random.default_rng(4))
    latency = latency_of(
        baseline={1: np.full(6, 2.0)}, target={1: np.full(6, 10.0), 5: np.full(6, 12.0)}
    )
    point = speed_point(*arms, latency, baseline_k=4, candidate_k=4)
    assert point.candidate_ms_per_token is None
    assert point.speedup_over_baseline is None
    assert point.break_even_rate is None
    assert point.baseline_speedup_over_autoregressive is not None
    assert best_k([point])["candidate"] is None


def test_too_few_timings_are_undefined_not_certain() -> None:
    arms = draw_arms(20, np.random.default_rng(4))
    few = MIN_TIMINGS - 1
    latency = latency_of(
        baseline={1: np.full(few, 2.0)},
        candidate={1: np.full(few, 1.0)},
        target={1: np.full(few, 10.0), 5: np.full(few, 12.0)},
    )
    point = speed_point(*arms, latency, baseline_k=4, candidate_k=4)
    assert point.speedup_over_baseline is None


def test_steps_from_different_blocks_are_refused() -> None:
    arms = draw_arms(20, np.random.default_rng(4))
    latency = latency_of(
        baseline={1: np.full(6, 2.0)}, candidate={1: np.full(7, 1.0)}, target={5: np.full(6, 1.0)}
    )
    with pytest.raises(PairingError, match="blocks"):
        speed_point(*arms, latency, baseline_k=4, candidate_k=4)


@pytest.mark.parametrize("num_blocks", [8, 30])
def test_the_control_excludes_one_no_more_often_than_its_level_says(num_blocks: int) -> None:
    """A/A on a machine that drifts and is disturbed: at most 5 % of runs, and four errors."""
    rng = np.random.default_rng(5)
    base, _ = draw_arms(12, rng)
    trials = 300
    covered = 0
    for _ in range(trials):
        latency = noisy_latency(num_blocks, rng)
        point = speed_point(base, base, latency, baseline_k=4, candidate_k=4, bootstrap=QUICK)
        assert point.control_speedup is not None
        assert point.speedup_over_baseline is not None
        covered += point.control_speedup.low <= 1 <= point.control_speedup.high
    assert covered >= coverage_bounds(trials)


def test_the_speedup_interval_covers_the_truth_with_both_sources_of_doubt() -> None:
    rng = np.random.default_rng(6)
    base, cand = draw_arms(6000, rng)
    ratio = compare_acceptance(base, cand, 4, Bootstrap(num_resamples=2)).length_ratio.value
    truth = (4 * 1.0 + 6.0) / (4 * 0.5 + 6.0) * ratio
    trials, covered = 250, 0
    for _ in range(trials):
        latency = noisy_latency(16, rng, candidate_ms=0.5)
        point = speed_point(
            *draw_arms(16, rng), latency, baseline_k=4, candidate_k=4, bootstrap=QUICK
        )
        assert point.speedup_over_baseline is not None
        covered += point.speedup_over_baseline.low <= truth <= point.speedup_over_baseline.high
    assert covered >= coverage_bounds(trials)


def test_few_prompts_leave_the_speedup_open_however_well_it_was_timed() -> None:
    latency = latency_of(
        baseline={1: np.full(30, 2.0)},
        candidate={1: np.full(30, 1.0)},
        target={1: np.full(30, 10.0), 5: np.full(30, 12.0)},
    )
    one = replayed([np.ones(40)])
    point = speed_point(one, one, latency, baseline_k=4, candidate_k=4)
    assert point.speedup_over_baseline is not None
    assert point.speedup_over_baseline.low == pytest.approx(1.25 / 5)
    assert point.speedup_over_baseline.high == pytest.approx(1.25 * 5)


def test_prompts_to_settle_by_hand_and_by_drawing_them() -> None:
    # half-width 0.04 on the limit's side, distance 0.02: 2 x the width needs 4 x the prompts
    assert num_prompts_to_settle(Interval(1.04, 1.0, 1.1), 1.02, 30) == 120
    assert num_prompts_to_settle(Interval(1.02, 1.0, 1.1), 1.02, 30) is None
    assert num_prompts_to_settle(Interval(1.02, 0.2, 5.0), 1.02, 2) == MIN_PROMPTS


def test_what_would_settle_names_the_source_of_the_doubt() -> None:
    speed = Interval(1.04, 1.0, 1.08)  # limit 1.02: distance 0.02, half-width 0.04
    exact = Interval(0.98, 0.98, 0.98)
    as_wide = Interval(1.0, 1 - 0.04 / 1.04, 1 + 0.04 / 1.04)
    assert what_would_settle(speed, exact, 1.02, 30, 20) == Needed(None, 80)
    assert what_would_settle(speed, None, 1.02, 30, 20) == Needed(None, 80)
    needed = what_would_settle(speed, as_wide, 1.02, 30, 20)
    assert needed is not None
    assert needed.num_timings is None
    assert needed.num_prompts in (120, 121)  # a ceiling of a rounded product
    half_each = Interval(1.0, 1 - 0.04 / 1.04 / 2**0.5, 1 + 0.04 / 1.04 / 2**0.5)
    assert what_would_settle(speed, half_each, 1.02, 30, 20) == Needed(120, 80)
    assert what_would_settle(speed, exact, 1.04, 30, 20) is None
    assert what_would_settle(speed, exact, 1.02, 2, 20) == Needed(MIN_PROMPTS, None)


def test_slices_by_hand() -> None:
    def arm(kept: list[float]) -> list[np.ndarray]:
        return [np.array(kept, float), np.ones(6)]

    base, cand = arm([0, 1, 1, 1, 0, 0]), arm([0, 1, 0, 0, 0, 0])
    cuts = by_position(), by_domain(["prose", "code"]), by_context([2, 4])
    thirds, domains, contexts = slice_tokens(base, cand, 5, cuts)  # every token but the first asked

    first, middle, last = thirds
    assert (first.name, first.num_prompts, first.num_tokens) == ("first third", 2, 4)
    assert (first.baseline_conditional_acceptance, middle.baseline_conditional_acceptance) == (1, 1)
    assert middle.candidate_conditional_acceptance == 0.5
    assert last.baseline_conditional_acceptance == 0.5

    code, prose = domains
    assert (code.name, code.candidate_conditional_acceptance) == ("code", 1)
    assert prose.candidate_conditional_acceptance == pytest.approx(1 / 5)
    assert (prose.prompts, prose.candidate_asked, prose.candidate_kept) == ((0,), (5,), (1,))

    near, far, farther = contexts
    assert (near.name, near.num_tokens) == ("2-3 tokens", 2)
    assert (far.name, far.num_tokens, far.num_prompts) == ("4-7 tokens", 8, 2)
    assert (farther.name, farther.num_tokens, farther.num_prompts) == ("8-15 tokens", 2, 1)


def test_slices_name_their_prompts_in_the_order_of_the_traffic() -> None:
    rng = np.random.default_rng(4)
    keeps = [rng.random(length) for length in (3, 30, 7, 30, 12)]
    ((only,),) = slice_tokens(keeps, keeps, 3, [by_domain(["a"] * 5)])
    assert only.prompts == (0, 1, 2, 3, 4)
    accepted = replay_rounds(list("abcde"), keeps, [3]).num_accepted(3)
    assert only.baseline_kept == pytest.approx(tuple(accepted))


def test_a_slice_in_which_nothing_was_asked_is_undefined() -> None:
    one = [np.array([1.0])]
    ((only,),) = slice_tokens(one, one, 4, [by_domain(["a"])])
    assert only.baseline_conditional_acceptance is None


@pytest.mark.parametrize("num_prompts", [MAX_UNITS + 1000, 6 * MAX_UNITS])
def test_groups_of_prompts_spread_as_prompts_do(num_prompts: int) -> None:
    # Sorted, as traffic of several domains is: groups of neighbours would spread too far.
    rng = np.random.default_rng(2)
    accepted, proposed = np.sort(rng.random(num_prompts)), np.ones(num_prompts)
    bootstrap = Bootstrap()
    weights = prompt_weights(num_prompts, bootstrap)
    assert weights.counts.shape == (bootstrap.num_resamples, MAX_UNITS)
    rates = (weights @ accepted) / (weights @ proposed)
    exact = accepted.std() / np.sqrt(num_prompts)  # of a mean, resampled
    error = np.sqrt(1 / (2 * bootstrap.num_resamples) + 1 / (2 * MAX_UNITS))
    assert rates.std() / exact == pytest.approx(1.0, abs=4 * error)
    assert rates.mean() == pytest.approx(accepted.mean(), abs=4 * exact / np.sqrt(len(rates)))


def test_groups_sum_what_their_prompts_have() -> None:
    num_prompts = MAX_UNITS + 7
    weights = prompt_weights(num_prompts, Bootstrap(num_resamples=3))
    assert weights.group is not None
    sizes = np.bincount(weights.group, minlength=MAX_UNITS)
    assert set(sizes) == {1, 2}
    values = np.arange(2.0 * num_prompts).reshape(num_prompts, 2)
    by_hand = weights.counts[:, weights.group].astype(float) @ values
    assert weights @ values == pytest.approx(by_hand)


# Widths: an interval that is too wide covers too, and decides nothing


@pytest.mark.parametrize("sample_size", [None, 5, 20, 200])
def test_an_interval_of_normal_draws_is_as_wide_as_students_t_says(sample_size) -> None:
    draws = np.random.default_rng(0).normal(1.0, 0.1, 200_000)
    found = interval_of(1.0, draws, sample_size, Bootstrap())
    # Student's t at 2.5 % a side, and sqrt(n / (n - 1)) for resamples that spread too little.
    t = {None: 1.960, 5: 2.776 * np.sqrt(5 / 4), 20: 2.093 * np.sqrt(20 / 19), 200: 1.977}
    # A quantile's error: sqrt(p (1 - p) / draws) over the density there, p = 0.1 % at n = 5.
    assert (found.high - found.low) / 0.2 == pytest.approx(t[sample_size], rel=0.04)


def test_intervals_of_many_prompts_are_as_wide_as_the_linearized_error_says() -> None:
    baseline, candidate = draw_arms(400, np.random.default_rng(3))
    found = compare_acceptance(baseline, candidate, 4)

    def error(over: np.ndarray, under: np.ndarray) -> float:
        """Of a ratio of sums."""
        rest = over - over.sum() / under.sum() * under
        return float(np.sqrt((rest**2).sum()) / under.sum())

    base, cand, tokens = baseline.num_drafts[0], candidate.num_drafts[0], baseline.num_tokens
    rates = [
        arm.num_accepted(4) / (4 * drafts.sum())
        - arm.num_accepted(4).sum() / (4 * drafts.sum()) * drafts / drafts.sum()
        for arm, drafts in ((baseline, base), (candidate, cand))
    ]
    expected = {
        "candidate_length": error(tokens.astype(float), cand),
        "length_ratio": error(base, cand),
        "candidate_rate": float(np.sqrt((rates[1] ** 2).sum())),
        "acceptance_rate_loss": float(np.sqrt(((rates[0] - rates[1]) ** 2).sum())),
    }
    for name, each in expected.items():
        interval = getattr(found, name)
        # Two quantiles of 2,000 resamples are off by 6 % at four standard errors; skew adds to it.
        assert (interval.high - interval.low) / (2 * 1.96 * each) == pytest.approx(1, abs=0.12), (
            name
        )


def test_the_interval_of_a_speedup_is_as_wide_as_a_median_of_blocks_spreads() -> None:
    rng, num_blocks, noise = np.random.default_rng(4), 400, 0.02
    drift = np.exp(0.1 * rng.normal(size=num_blocks))
    draft = {1: 2.0}
    arms = {"baseline": draft, "candidate": draft, "control": draft, "target": {1: 5.0, 5: 6.0}}
    latency = latency_of(
        **{
            arm: {
                m: ms * drift * np.exp(noise * rng.normal(size=num_blocks)) for m, ms in own.items()
            }
            for arm, own in arms.items()
        }
    )
    keeps = [np.full(20, 0.8)] * 40
    found = speed_point(replayed(keeps), replayed(keeps), latency, baseline_k=4, candidate_k=4)
    # A round is 4 draft steps of 2 ms and 6 ms: 8 of 14 ms carry a draft's own noise, in both arms.
    # A median's error is 1.2533 of a mean's.
    error = 1.2533 * noise * np.sqrt(2) * 8 / 14 / np.sqrt(num_blocks)
    for interval in (found.control_speedup, found.speedup_over_baseline):
        # A bootstrapped median's width is known to some 10 %, and no more than 35 % off.
        assert 0.65 < (interval.high - interval.low) / (2 * 1.96 * error) < 1.35
