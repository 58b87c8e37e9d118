"""Laws that hold for any data: of rounds, of comparisons, of the speed equation, of the verdict."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantdraft.judge import speedup
from quantdraft.judge.acceptance import (
    Replayed,
    alpha_from_length,
    closed_form_length,
    replay_rounds,
)
from quantdraft.judge.comparison.lengths import compare_acceptance
from quantdraft.judge.comparison.speeds import speed_point
from quantdraft.judge.statistics.bootstrap import Bootstrap
from quantdraft.judge.verdict.alarms import CONTROL_STRAYS, Alarm
from quantdraft.judge.verdict.checks import Evidence
from quantdraft.judge.verdict.decision import decide
from quantdraft.record import Interval
from tests.judge.test_comparison import latency_of
from tests.judge.test_verdict import comparison, evidence

KS = (1, 2, 5)
QUICK = Bootstrap(num_resamples=200)
CLOSE = 1e-9
laws = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)

probabilities = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))
responses = st.lists(probabilities, min_size=2, max_size=12)
texts = st.lists(responses, min_size=1, max_size=8)


def replayed(keeps: list[list[float]], names: list[str] | None = None) -> Replayed:
    arrays = [np.array(each) for each in keeps]
    return replay_rounds(names or [str(i) for i in range(len(keeps))], arrays, KS)


def candidate_of(keeps: list[list[float]], drawn: st.DataObject) -> list[list[float]]:
    """Another draft's acceptance probabilities on the same tokens."""
    return [drawn.draw(st.lists(probabilities, min_size=len(k), max_size=len(k))) for k in keeps]


@laws
@given(texts, st.data())
def test_a_token_that_is_kept_more_often_never_costs_a_round(keeps, drawn):
    before = replayed(keeps)
    row = drawn.draw(st.integers(0, len(keeps) - 1))
    at = drawn.draw(st.integers(0, len(keeps[row]) - 1))
    better = [list(each) for each in keeps]
    better[row][at] = drawn.draw(st.floats(better[row][at], 1))
    assert (replayed(better).num_drafts <= before.num_drafts + CLOSE).all()


@laws
@given(texts)
def test_rounds_fall_with_k_and_every_round_emits_one_to_k_plus_one_tokens(keeps):
    found = replayed(keeps)
    assert (np.diff(found.num_drafts, axis=0) <= CLOSE).all()
    for row, k in enumerate(KS):
        assert (found.num_drafts[row] <= found.num_tokens + CLOSE).all()
        assert (found.num_drafts[row] * (k + 1) >= found.num_tokens - CLOSE).all()
        # Every round ends with a token of the target's own, but the last one may be cut before it.
        emitted = found.num_accepted(k) + found.num_drafts[row]
        assert (emitted >= found.num_tokens - CLOSE).all()
        assert (emitted <= found.num_tokens + 1 + CLOSE).all()


@laws
@given(texts, st.randoms())
def test_neither_counts_nor_estimates_know_the_order_of_the_prompts(keeps, random):
    order = list(range(len(keeps)))
    random.shuffle(order)
    given_order, other = replayed(keeps), replayed([keeps[i] for i in order])
    assert np.allclose(given_order.num_drafts[:, order], other.num_drafts, rtol=0, atol=CLOSE)
    for k in KS:
        one, two = given_order.counts(k), other.counts(k)
        assert one.num_tokens == two.num_tokens
        assert one.num_drafts == pytest.approx(two.num_drafts)
        assert one.num_accepted_tokens == pytest.approx(two.num_accepted_tokens)


@laws
@given(texts, texts)
def test_counts_of_two_sets_of_prompts_add(some, others):
    names = [str(i) for i in range(len(some) + len(others))]
    together = replayed(some + others, names)
    for k in KS:
        parts = replayed(some).counts(k), replayed(others).counts(k)
        whole = together.counts(k)
        assert whole.num_tokens == sum(part.num_tokens for part in parts)
        assert whole.num_drafts == pytest.approx(sum(part.num_drafts for part in parts))
        per_pos = np.sum([part.num_accepted_tokens_per_pos for part in parts], axis=0)
        assert whole.num_accepted_tokens_per_pos == pytest.approx(tuple(per_pos))


@laws
@given(st.floats(0, 1), st.integers(1, 16))
def test_length_and_acceptance_are_each_others_inverse(alpha, k):
    length = closed_form_length(alpha, k)
    assert 1 <= length <= k + 1
    # Near 0 a length of doubles is flat: 1 + alpha is 1.
    assert closed_form_length(alpha_from_length(length, k), k) == pytest.approx(length)


@laws
@given(texts, st.data())
def test_swapping_the_arms_mirrors_the_loss_and_its_interval(keeps, drawn):
    base, cand = replayed(keeps), replayed(candidate_of(keeps, drawn))
    for k in KS:
        loss = compare_acceptance(base, cand, k, QUICK).acceptance_rate_loss
        swapped = compare_acceptance(cand, base, k, QUICK).acceptance_rate_loss
        assert loss.low <= loss.value <= loss.high
        assert swapped.value == pytest.approx(-loss.value)
        assert (swapped.low, swapped.high) == pytest.approx((-loss.high, -loss.low), abs=CLOSE)


@laws
@given(st.lists(responses, min_size=5, max_size=8))
def test_a_draft_against_itself_loses_nothing(keeps):
    arm = replayed(keeps)
    found = compare_acceptance(arm, arm, 2, QUICK)
    assert found.acceptance_rate_loss == Interval(0, 0, 0)
    assert found.length_ratio == Interval(1, 1, 1)


@laws
@given(st.lists(responses, min_size=5, max_size=8), st.randoms())
def test_the_estimates_of_a_comparison_do_not_know_the_order(keeps, random):
    order = list(range(len(keeps)))
    random.shuffle(order)
    worse = [[0.5 * p for p in each] for each in keeps]
    one = compare_acceptance(replayed(keeps), replayed(worse), 2, QUICK)
    other = compare_acceptance(
        replayed([keeps[i] for i in order]), replayed([worse[i] for i in order]), 2, QUICK
    )
    assert one.acceptance_rate_loss.value == pytest.approx(other.acceptance_rate_loss.value)
    assert one.length_ratio.value == pytest.approx(other.length_ratio.value)


step_times = st.lists(st.floats(0.1, 100), min_size=5, max_size=20)


@laws
@given(step_times, st.floats(0.1, 10), st.floats(1, 3))
def test_speed_is_free_of_the_unit_and_grows_as_the_draft_step_shrinks(base_ms, scale, faster):
    arm = replayed([[1, 1, 0, 1, 1, 1]] * 6)

    def over_baseline(unit: float, gain: float) -> float:
        base = np.array(base_ms) * unit
        latency = latency_of(
            baseline={1: base}, candidate={1: base / gain}, target={1: base, 3: 2 * base}
        )
        point = speed_point(arm, arm, latency, baseline_k=2, candidate_k=2, bootstrap=QUICK)
        assert point.speedup_over_baseline is not None
        return point.speedup_over_baseline.value

    assert over_baseline(scale, faster) == pytest.approx(over_baseline(1, faster))
    assert over_baseline(1, 1) == pytest.approx(1)
    assert over_baseline(1, faster) >= 1 - CLOSE
    assert over_baseline(1, 2 * faster) >= over_baseline(1, faster) - CLOSE


@laws
@given(
    st.integers(1, 16), st.floats(0.01, 10), st.floats(0.1, 10), st.floats(1, 5), st.floats(1, 5)
)
def test_at_the_break_even_length_the_speedup_is_one(k, draft_ms, verify_ms, gain, length):
    base = speedup.round_ms(k, draft_ms, verify_ms)
    cand = speedup.round_ms(k, draft_ms / gain, verify_ms)
    even = speedup.break_even_length(base, cand, length)
    assert speedup.speedup_over_baseline(base, cand, length, even) == pytest.approx(1)
    assert speedup.speedup_over_baseline(base, cand, length, 2 * even) == pytest.approx(2)


RANK = {"no-go": 0, "inconclusive": 1, "go": 2}
speeds = st.tuples(st.floats(0.5, 2), st.floats(0, 0.2), st.floats(0, 0.2)).map(
    lambda three: Interval(three[0], three[0] - three[1], three[0] + three[2])
)
shifts = st.floats(0, 0.5)


def rank(shown: Evidence) -> int:
    return RANK[decide(shown).decision]


def lowered(interval: Interval, by: float) -> Interval:
    return Interval(interval.value - by, interval.low - by, interval.high - by)


@laws
@given(speeds, speeds, shifts)
def test_a_slower_candidate_never_has_the_better_verdict(over_draft, over_target, by):
    now = rank(evidence(over_draft, over_target))
    assert rank(evidence(lowered(over_draft, by), over_target)) <= now
    assert rank(evidence(over_draft, lowered(over_target, by))) <= now


@laws
@given(st.floats(0, 0.3), st.floats(0.31, 1), shifts, st.booleans())
def test_worse_acceptance_never_has_the_better_verdict(loss, rate, by, is_timed):
    over = Interval(1.1, 1.05, 1.15) if is_timed else None

    def of(loss: float, rate: float) -> Evidence:
        found = comparison((loss, loss - 0.01, loss + 0.01), rate)
        return evidence(over, over, found)

    now = of(loss, rate)
    more_lost = replace(
        now.acceptance, acceptance_rate_loss=lowered(now.acceptance.acceptance_rate_loss, -by)
    )
    less_kept = replace(
        now.acceptance, candidate_rate=lowered(now.acceptance.candidate_rate, min(by, rate - loss))
    )
    for worse in (more_lost, less_kept):
        assert rank(replace(now, acceptance=worse)) <= rank(now)


@laws
@given(speeds, speeds)
def test_an_alarm_or_a_control_never_ends_in_a_go_nor_missing_speed(over_draft, over_target):
    # An alarm may turn a no-go into doubt: the numbers beside it are not what they seem.
    alarm = Alarm(CONTROL_STRAYS, "the control strays")
    assert rank(evidence(over_draft, over_target, alarms=(alarm,))) < RANK["go"]
    assert rank(evidence(over_draft, over_target, is_identity=True)) < RANK["go"]
    assert rank(evidence(None, over_target)) < RANK["go"]
    assert rank(evidence(over_draft, None)) < RANK["go"]
