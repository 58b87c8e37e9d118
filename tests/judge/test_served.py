"""Speed, intervals and alarms from the requests that servers answered."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from quantdraft.judge.comparison.served import (
    load_spread,
    served_point,
    served_speed_undefined,
)
from quantdraft.judge.statistics.bootstrap import Bootstrap
from quantdraft.judge.verdict.alarms import engine_disagrees, forced_dtype, served_alarms
from quantdraft.judge.verdict.policy import Policy
from quantdraft.record import Served, ServedArm, ServedRequest
from tests.fake_vllm import K


def answered(prompt: int, ms_per_token: float, rounds: int = 4, **changes: object) -> ServedRequest:
    plain = ServedRequest(
        prompt_id=f"p{prompt}",
        num_tokens=11 + prompt,
        num_first_tokens=1,
        seconds=0.5 + (10 + prompt) * ms_per_token / 1e3,
        first_token_seconds=0.5,
        num_drafts=rounds,
        num_draft_tokens=K * rounds,
        num_accepted_tokens_per_pos=(3, 2, 1, 0),
        num_drafts_replayed=float(rounds),
        text="identical",
    )
    return replace(plain, **changes)


def served(num_prompts: int = 6, is_exact: bool = True, **arms: list[ServedRequest]) -> Served:
    paces = {"autoregressive": 8.0, "baseline": 6.0, "candidate": 4.0, "control": 6.0}
    requests = {arm: [answered(p, ms) for p in range(num_prompts)] * 2 for arm, ms in paces.items()}
    requests |= arms
    return Served(
        engine="vllm",
        version="0.32.0",
        device="cpu",
        dtype="float32",
        num_speculative_tokens=K,
        speculative={},
        is_interleaved=True,
        arms={arm: ServedArm(arm, tuple(found), is_exact) for arm, found in requests.items()},
    )


def test_a_speedup_is_the_ratio_of_times_per_token():
    point = served_point(served())
    speedup = point.speedup_over_baseline
    assert speedup is not None
    # Every prompt has the same ratio, so resampling the prompts changes nothing.
    assert (speedup.value, speedup.low, speedup.high) == pytest.approx((1.5, 1.5, 1.5))
    assert point.speedup_over_autoregressive.value == pytest.approx(2.0)
    assert point.control_speedup.value == pytest.approx(1.0)
    assert point.candidate_ms_per_token == pytest.approx(4.0)
    assert point.candidate_draft_step_ms is None


def test_the_break_even_length_is_the_candidates_over_its_speedup():
    point = served_point(served())
    tau = served().arms["candidate"].mean_acceptance_length
    assert tau == pytest.approx(sum(10 + p for p in range(6)) / (6 * 4))
    assert point.break_even_length == pytest.approx(tau / 1.5)


def test_prompts_that_differ_widen_the_interval_and_keep_it_around_the_ratio():
    mixed = [answered(p, 3.0 if p % 2 else 5.0) for p in range(12)]
    point = served_point(served(12, candidate=mixed))
    speedup = point.speedup_over_baseline
    assert speedup.low < speedup.value < speedup.high
    # Alone, the even prompts give 6/5 and the odd ones 6/3.
    assert speedup.low > 1.2
    assert speedup.high < 2.0


def test_a_prompt_that_one_arm_lacks_counts_in_none():
    some = [answered(p, 4.0) for p in range(5)]
    assert served(6, candidate=some).common_prompts == tuple(f"p{p}" for p in range(5))


def test_few_prompts_or_a_missing_arm_leave_the_speed_undefined():
    few = served(4)
    assert served_point(few).speedup_over_baseline is None
    assert served_speed_undefined(few).startswith("4 served prompts")
    gone = replace(few, arms={}, undefined={"candidate": "no kernel"})
    assert served_point(gone).candidate_ms_per_token is None
    assert served_speed_undefined(gone) == "candidate: no kernel"
    assert served_speed_undefined(served()) is None


def test_equal_counters_raise_no_alarm_and_one_round_more_does_where_arithmetic_is_exact():
    assert served_alarms(served(), Policy()) == ()
    off = [answered(p, 4.0) for p in range(6)]
    off[2] = replace(off[2], num_drafts=5)
    alarm = engine_disagrees(served(candidate=off), Policy())
    assert alarm.code == "engine_disagrees"
    assert "the engine does not do what the checkpoint says: candidate" in alarm.message
    assert "counted 25 rounds for text that takes 24.0" in alarm.message


def test_near_ties_are_allowed_where_arithmetic_is_not_exact():
    def off_by(num: int) -> list[ServedRequest]:
        asked = [answered(p, 4.0) for p in range(6)]
        asked[0] = replace(asked[0], num_drafts=4 + num)
        return asked * 2  # the second visit is no further evidence

    # 24 rounds: 2 % is under the two rounds that are always allowed.
    assert engine_disagrees(served(is_exact=False, candidate=off_by(2)), Policy()) is None
    assert engine_disagrees(served(is_exact=False, candidate=off_by(3)), Policy()) is not None


@pytest.mark.parametrize(
    ("counted", "is_raised"),
    [(20, False), (24, False), (36, False), (37, True), (19, True), (60, True)],
)
def test_in_16_bits_rounds_may_be_what_near_ties_of_the_draft_allow(counted, is_raised):
    """24 rounds replayed, 20 to 36 with the near-ties; 2 % beyond them is no whole round."""
    asked = [
        answered(p, 4.0, num_drafts_low=4.0 if p else 0.0, num_drafts_high=4.0 if p else 16.0)
        for p in range(6)
    ]
    asked[0] = replace(asked[0], num_drafts=counted - 20)
    alarm = engine_disagrees(served(is_exact=False, candidate=asked * 2), Policy())
    assert (alarm is not None) == is_raised
    assert alarm is None or "48.0 by this draft, 40 to 72 with its near-ties" in alarm.message
    exact = engine_disagrees(served(candidate=asked), Policy())
    assert (exact is not None) == (counted != 24)


def test_one_prompts_near_ties_excuse_no_other_prompt():
    asked = [answered(p, 4.0, num_drafts_low=4.0, num_drafts_high=4.0) for p in range(6)]
    asked[0] = replace(asked[0], num_drafts_low=0.0, num_drafts_high=40.0)
    asked[1] = replace(asked[1], num_drafts=7)
    assert engine_disagrees(served(is_exact=False, candidate=asked), Policy()) is not None


@pytest.mark.parametrize(
    ("measured", "dtype", "is_raised"),
    [
        ("float32", "bfloat16", True),
        ("bfloat16", "float32", True),
        ("float32", "float32", False),
        ("bfloat16", "the servers' own", False),
        (None, "bfloat16", False),
    ],
)
def test_a_draft_served_in_another_float_type_than_measured_is_an_alarm(measured, dtype, is_raised):
    found = forced_dtype(measured, replace(served(), dtype=dtype))
    assert (found is not None) == is_raised
    assert found is None or found.code == "dtype_mismatch"
    assert forced_dtype(measured, replace(served(), dtype=dtype, arms={})) is None


# Loads: several starts of one arm's server


def loaded(paces: dict[str, tuple[float, ...]], num_prompts: int = 6) -> Served:
    """Arms whose ms per token differ from load to load."""
    requests = {
        arm: [answered(p, ms, load=at) for at, ms in enumerate(own) for p in range(num_prompts)]
        for arm, own in paces.items()
    }
    return served(num_prompts, **requests)


EVEN = {"autoregressive": (8.0, 8.0), "baseline": (6.0, 6.0), "control": (6.0, 6.0)}


def test_loads_that_are_alike_widen_no_interval_and_neither_does_a_machine_that_slows_down():
    for candidate, factor in (((4.0, 4.0), 1.0), ((4.0, 4.0), 1.25)):
        slowed = {arm: (ms[0], factor * ms[1]) for arm, ms in EVEN.items()}
        point = served_point(loaded(slowed | {"candidate": (candidate[0], factor * candidate[1])}))
        found = point.speedup_over_baseline
        assert (found.value, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))


def test_the_spread_of_loads_is_what_arm_and_load_leave_pooled_over_the_arms():
    given = loaded(EVEN | {"candidate": (4.0, 4.0 * math.exp(0.04))})
    spread = load_spread(given)
    assert spread is not None
    # Half of 0.04 is the arm's, a quarter of that the loads': 2 x (0.015^2 + 3 x 0.005^2) is left.
    assert (spread.freedom, spread.num_loads) == (3, 2)
    assert spread.error == pytest.approx(math.sqrt(2 * (0.015**2 + 3 * 0.005**2) / 3))
    speedup = served_point(given).speedup_over_baseline
    # Student's t with 3 degrees of freedom reaches 3.18 at 2.5 % a side; 6 prompts ask for more.
    assert math.log(speedup.high / speedup.value) > 3.18 * spread.error * 0.9
    assert math.log(speedup.value / speedup.low) > 3.18 * spread.error * 0.9


def test_one_load_shows_no_spread():
    assert load_spread(served()) is None
    once = loaded({arm: ms[:1] for arm, ms in EVEN.items()} | {"candidate": (4.0,)})
    assert load_spread(once) is None
    uneven = loaded(EVEN | {"candidate": (4.0,)})
    assert load_spread(uneven) is None


def test_intervals_over_two_loads_cover_as_often_as_they_say():
    """Four arms of one speed; loads differ by 3 %, prompts not at all: the truth is 1."""
    rng = np.random.default_rng(0)
    num_runs, covered = 300, 0
    for run in range(num_runs):
        paces = {
            arm: tuple(5.0 * np.exp(0.03 * rng.normal(size=2))) for arm in (*EVEN, "candidate")
        }
        found = served_point(loaded(paces), Bootstrap(num_resamples=500, seed=run))
        covered += found.speedup_over_baseline.low <= 1 <= found.speedup_over_baseline.high
    # 6 prompts widen the tails: no less than what is said, whatever more.
    assert covered / num_runs >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / num_runs)


def test_an_engine_that_accepts_nothing_is_said_to():
    silent = [
        answered(p, 4.0, num_drafts=10 + p, num_accepted_tokens_per_pos=(0, 0, 0, 0))
        for p in range(6)
    ]
    alarm = engine_disagrees(served(is_exact=False, candidate=silent), Policy())
    assert "accepted no proposed token at all" in alarm.message


def test_an_arm_without_replay_raises_nothing():
    alone = [answered(p, 4.0, num_drafts=0, num_drafts_replayed=None) for p in range(6)]
    assert engine_disagrees(served(candidate=alone), Policy()) is None


def test_text_that_left_the_targets_is_an_alarm():
    wrong = [answered(p, 4.0, text="divergent" if p == 1 else "near-tie") for p in range(6)]
    (alarm,) = served_alarms(served(candidate=wrong), Policy())
    assert alarm.code == "live_divergent"
    assert "vllm (candidate) left the target's text on 1 of 6 prompts" in alarm.message
