"""The verdict on cases whose answer is known: every decision, every alarm, every line of advice."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantdraft.errors import OptionError
from quantdraft.judge.verdict.alarms import (
    acceptance_collapsed,
    control_strays,
    dtype_mismatch,
    live_divergent,
    measured_alarms,
    not_quantized,
    other_target,
    replay_disagrees,
)
from quantdraft.judge.verdict.checks import Evidence, result_of
from quantdraft.judge.verdict.decision import decide
from quantdraft.judge.verdict.policy import Policy, load_policy
from quantdraft.record import (
    AcceptanceComparison,
    AcceptanceCounts,
    Alarm,
    Interval,
    LiveCheck,
    SpeedPoint,
)

FASTER = Interval(1.063, 1.049, 1.077)
SLOWER = Interval(0.969, 0.960, 0.978)
A_LITTLE = Interval(1.010, 1.004, 1.016)
OPEN = Interval(1.040, 1.000, 1.080)
PAYS = Interval(1.84, 1.80, 1.88)
SKIP = Interval(0.93, 0.91, 0.95)
PERHAPS = Interval(1.02, 0.98, 1.06)


def around(value: float, half: float) -> Interval:
    return Interval(value, value - half, value + half)


def comparison(
    loss: tuple[float, float, float] = (0.01, 0.005, 0.015), rate: float = 0.70, k: int = 4
) -> AcceptanceComparison:
    """Both arms at one k; the lengths follow from the rates."""
    width = (loss[2] - loss[1]) / 2
    base, cand = rate, rate - loss[0]
    lengths = 1 + k * base, 1 + k * cand

    def counts(each: float) -> AcceptanceCounts:
        per_pos = tuple([1000 * each] * k)
        return AcceptanceCounts(k, round(1000 * (1 + k * each)), 1000, per_pos)

    return AcceptanceComparison(
        num_speculative_tokens=k,
        baseline=counts(base),
        candidate=counts(cand),
        baseline_rate=around(base, width),
        candidate_rate=around(cand, width),
        acceptance_rate_loss=Interval(*loss),
        baseline_length=around(lengths[0], 0.1),
        candidate_length=around(lengths[1], 0.1),
        length_ratio=around(lengths[1] / lengths[0], 0.005),
    )


def point(
    over_baseline: Interval | None = FASTER, over_target: Interval | None = PAYS, k: int = 4
) -> SpeedPoint:
    return SpeedPoint(
        baseline_num_speculative_tokens=k,
        candidate_num_speculative_tokens=k,
        baseline_draft_step_ms=2.0,
        candidate_draft_step_ms=1.0,
        baseline_verify_step_ms=12.0,
        candidate_verify_step_ms=12.0,
        autoregressive_step_ms=10.0,
        baseline_ms_per_token=5.3,
        candidate_ms_per_token=5.0,
        speedup_over_baseline=over_baseline,
        speedup_over_autoregressive=over_target,
        baseline_speedup_over_autoregressive=PAYS,
        control_speedup=Interval(1.001, 0.995, 1.006),
        draft_latency_saving=Interval(0.5, 0.49, 0.51),
        break_even_length=3.0,
        break_even_rate=0.5,
    )


def evidence(
    over_baseline: Interval | None = FASTER,
    over_target: Interval | None = PAYS,
    acceptance: AcceptanceComparison | None = None,
    alarms: tuple[Alarm, ...] = (),
    is_identity: bool = False,
) -> Evidence:
    return Evidence(
        candidate_name="int4",
        baseline_name="bf16 draft",
        is_identity=is_identity,
        acceptance=acceptance or comparison(),
        speed=point(over_baseline, over_target),
        num_prompts=32,
        num_timings=20,
        alarms=alarms,
        speed_undefined=None if over_baseline else "no FP8 kernel on this machine",
    )


def live(
    counted: list[float], replayed: list[float], near_ties: int = 0, divergent: int = 0
) -> LiveCheck:
    names = tuple(f"p{i}" for i in range(len(counted)))
    identical = len(counted) - near_ties - divergent
    return LiveCheck(
        4, "candidate", names, tuple(counted), tuple(replayed), identical, near_ties, divergent
    )


@pytest.mark.parametrize(
    ("over_baseline", "over_target", "decision", "words"),
    [
        (FASTER, PAYS, "go", "int4 is 6.3 % faster than the bf16 draft"),
        (SLOWER, PAYS, "no-go", "int4 is 3.1 % slower than the bf16 draft"),
        (A_LITTLE, PAYS, "no-go", "less than the +2.0 % asked for"),
        (FASTER, SKIP, "no-go", "0.930× (0.910× to 0.950×) as fast as the target alone"),
        (OPEN, PAYS, "inconclusive", "the limit of +2.0 % lies inside"),
        (FASTER, PERHAPS, "inconclusive", "whether it beats the target alone is open"),
        (OPEN, SKIP, "no-go", "as fast as the target alone"),
        (
            None,
            None,
            "inconclusive",
            "speed was not measured (no FP8 kernel on this machine). At k = 4 int4",
        ),
        (FASTER, None, "inconclusive", "speed was not measured"),
    ],
)
def test_decision_follows_the_intervals(over_baseline, over_target, decision, words) -> None:
    verdict = decide(evidence(over_baseline, over_target))
    assert verdict.decision == decision
    assert verdict.summary.startswith(decision)
    assert words in verdict.summary
    assert (verdict.to_settle is not None) == (decision == "inconclusive")


def test_the_summary_of_a_slower_draft_reads_as_a_sentence() -> None:
    assert decide(evidence(SLOWER)).summary == (
        "no-go: int4 is 3.1 % slower than the bf16 draft (95 % interval −4.0 to −2.2 %)"
    )


@pytest.mark.parametrize(
    ("acceptance", "decision", "words"),
    [
        (comparison(), "inconclusive", "speed was not measured"),
        (comparison(loss=(0.11, 0.09, 0.13)), "no-go", "acceptance rate loss"),
        (comparison(loss=(0.05, 0.03, 0.07)), "inconclusive", "speed was not measured"),
        (
            comparison(rate=0.40),
            "no-go",
            "the acceptance rate alone is enough to refuse it. At k = 4",
        ),
    ],
)
def test_acceptance_alone_may_refuse_but_never_allows(acceptance, decision, words) -> None:
    verdict = decide(evidence(None, None, acceptance))
    assert verdict.decision == decision
    assert words in verdict.summary


def test_rates_are_held_to_their_limits_at_the_k_where_they_are_shown() -> None:
    at_2 = replace(comparison(rate=0.40, k=2), num_speculative_tokens=2)
    verdict = decide(replace(evidence(None, None), shown=at_2))
    assert verdict.decision == "no-go"
    assert "At k = 2 int4 has an acceptance rate of" in verdict.summary
    ks = {check.num_speculative_tokens for check in verdict.checks if "rate" in check.name}
    assert ks == {2}


def test_where_speed_was_measured_acceptance_does_not_overrule_it() -> None:
    verdict = decide(evidence(FASTER, PAYS, comparison(loss=(0.11, 0.09, 0.13), rate=0.55)))
    assert verdict.decision == "go"
    advises = {check.name: check.result for check in verdict.checks if check.kind == "advises"}
    assert advises == {"acceptance rate loss": "fail", "acceptance rate": "fail"}


@pytest.mark.parametrize("over_baseline", [FASTER, SLOWER, OPEN, A_LITTLE, None])
@pytest.mark.parametrize("over_target", [PAYS, SKIP, PERHAPS, None])
def test_identity_is_never_a_go(over_baseline, over_target) -> None:
    verdict = decide(evidence(over_baseline, over_target, is_identity=True))
    assert verdict.decision == "no-go"
    assert "control: nothing was quantized" in verdict.summary


@pytest.mark.parametrize("over_baseline", [FASTER, SLOWER, None])
def test_an_alarm_stops_the_verdict(over_baseline) -> None:
    strays = control_strays(Interval(1.05, 1.03, 1.07), Policy())
    assert strays is not None
    verdict = decide(evidence(over_baseline, alarms=(strays,)))
    assert verdict.decision == "inconclusive"
    assert "control strays" in verdict.summary
    assert verdict.to_settle == "clear the alarm first: control_strays"
    assert verdict.alarms == (strays,)


def test_collapsed_acceptance_is_a_no_go_unless_replay_itself_is_in_doubt() -> None:
    useless = comparison(loss=(0.65, 0.64, 0.66))
    collapsed = acceptance_collapsed(useless, Policy())
    strays = control_strays(Interval(1.05, 1.03, 1.07), Policy())
    disagrees = replay_disagrees([live([30, 40], [20, 25])], Policy())
    assert collapsed is not None
    assert strays is not None
    assert disagrees is not None
    assert decide(evidence(FASTER, acceptance=useless, alarms=(collapsed,))).decision == "no-go"
    both = decide(evidence(FASTER, acceptance=useless, alarms=(strays, collapsed)))
    assert both.decision == "no-go"
    assert "acceptance collapsed" in both.summary
    doubted = decide(evidence(FASTER, acceptance=useless, alarms=(collapsed, disagrees)))
    assert doubted.decision == "inconclusive"
    assert "counted live" in doubted.summary


def test_a_collapse_that_may_be_chance_is_inconclusive_and_says_how_many_prompts() -> None:
    once = comparison(loss=(0.65, 0.64, 0.66))
    anything = replace(
        once, candidate_length=Interval(1.2, 1.0, 5.0), length_ratio=Interval(0.316, 0.2, 1.3)
    )
    alarm = acceptance_collapsed(anything, Policy())
    assert alarm is not None
    assert "95 % interval 0.20 to 1.30" in alarm.message
    one = replace(evidence(FASTER, alarms=(alarm,)), acceptance=anything, num_prompts=1)
    verdict = decide(one)
    assert verdict.decision == "inconclusive"
    assert verdict.to_settle == "about 5 prompts (now 1)"
    # The width above 0.316 is 0.984 where 0.484 lies before the limit: (0.984 / 0.484)^2 x 20.
    assert decide(replace(one, num_prompts=20)).to_settle == "about 83 prompts (now 20)"
    # What else was measured may decide alone, while nothing else is in doubt.
    slower = replace(evidence(SLOWER, alarms=(alarm,)), acceptance=anything)
    assert decide(slower).decision == "no-go"
    strays = control_strays(Interval(1.05, 1.03, 1.07), Policy())
    assert strays is not None
    assert decide(replace(slower, alarms=(alarm, strays))).decision == "inconclusive"


@pytest.mark.parametrize(
    ("acceptance", "is_raised"),
    [
        (comparison(), False),
        (comparison(loss=(0.69, 0.68, 0.70)), True),  # length 1.04
        (comparison(loss=(0.20, 0.19, 0.21)), True),  # 3.0 of 3.8 tokens: ratio 0.79
        (comparison(loss=(0.18, 0.17, 0.19)), False),  # 3.08 of 3.8: ratio 0.81
    ],
)
def test_collapse_is_a_length_near_one_or_far_below_the_baseline(acceptance, is_raised) -> None:
    assert (acceptance_collapsed(acceptance, Policy()) is not None) == is_raised


@pytest.mark.parametrize(
    ("found", "is_raised"),
    [
        ({}, False),
        ({"resident_bytes": 1050, "promised_bytes": 1000}, False),
        ({"resident_bytes": 4000, "promised_bytes": 1000}, True),
        ({"has_identical_logits": True}, True),
        ({"has_identical_logits": False}, False),
        ({"complaint": "no packed weight was found"}, True),
    ],
)
def test_a_checkpoint_that_is_not_quantized_raises_an_alarm(found, is_raised) -> None:
    alarm = not_quantized(is_identity=False, **found)
    assert (alarm is not None) == is_raised
    assert alarm is None or alarm.code == "not_quantized"
    assert not_quantized(is_identity=True, **found) is None


@pytest.mark.parametrize(
    ("control", "is_raised"),
    [
        (None, False),
        (Interval(1.03, 0.99, 1.07), False),  # wide, and 1 lies inside
        (Interval(1.01, 1.005, 1.015), False),  # 1 is outside, but it is small
        (Interval(1.03, 1.01, 1.05), True),
        (Interval(0.97, 0.95, 0.99), True),
    ],
)
def test_the_control_strays_only_when_far_and_certain(control, is_raised) -> None:
    assert (control_strays(control, Policy()) is not None) == is_raised


def test_dtype_mismatch_needs_an_engine_that_forces_it() -> None:
    assert dtype_mismatch("bfloat16", "float16", is_forced=True) is not None
    assert dtype_mismatch("bfloat16", "float16", is_forced=False) is None
    assert dtype_mismatch("bfloat16", "bfloat16", is_forced=True) is None


def test_live_text_that_leaves_the_target_raises_an_alarm_but_a_near_tie_does_not() -> None:
    assert live_divergent([live([9], [9], near_ties=1)]) is None
    alarm = live_divergent([live([9], [9]), live([9], [9], divergent=1)])
    assert alarm is not None
    assert "1 of 1 prompts" in alarm.message


@pytest.mark.parametrize(
    ("check", "is_exact", "is_raised"),
    [
        (live([30, 40], [30, 40]), True, False),
        (live([30, 41], [30, 40]), True, True),
        (live([30, 41], [30, 40], near_ties=1), True, True),  # replay reads the loop's own text
        (live([100, 101], [100, 100]), False, False),  # 0.5 %
        (live([100, 105], [100, 100]), False, True),  # 2.5 %
        (live([20, 22], [20, 20]), False, False),  # 5 %, but two rounds: a near-tie or two
    ],
)
def test_greedy_rounds_must_agree_prompt_by_prompt(check, is_exact, is_raised) -> None:
    assert (
        replay_disagrees([replace(check, is_exact=is_exact)], Policy()) is not None
    ) == is_raised


@pytest.mark.parametrize(
    ("counted", "is_raised"),
    [
        ([31, 29, 30, 32, 28, 31], False),  # mean 0.17 above, error 0.6
        ([35, 36, 34, 35, 36, 34], True),  # mean 5 above, error 0.37
        ([60, 60, 60], False),  # too few prompts to know the spread
    ],
)
def test_sampled_rounds_must_agree_in_the_mean(counted, is_raised) -> None:
    check = replace(live(counted, [30.0] * len(counted)), is_expectation=True)
    assert (replay_disagrees([check], Policy()) is not None) == is_raised


def test_measured_alarms_gathers_those_that_follow_from_the_numbers() -> None:
    alarms = measured_alarms(
        comparison(loss=(0.69, 0.68, 0.70)),
        Interval(1.05, 1.03, 1.07),
        [live([9, 9], [9, 8], divergent=1), live([9, 9], [8, 8])],
        Policy(),
    )
    codes = [alarm.code for alarm in alarms]
    assert codes == ["acceptance_collapsed", "control_strays", "live_divergent", "replay_disagrees"]
    quiet = measured_alarms(comparison(), None, [live([9], [9])], Policy())
    assert quiet == ()


def test_the_loop_counts_the_texts_that_it_left_among_all() -> None:
    """Rounds of a text that is not the target's are not counted: its prompt is in no list."""
    check = replace(live([], []), num_divergent=4)
    alarm = live_divergent([check])
    assert alarm is not None
    assert "on 4 of 4 prompts" in alarm.message


def provenance(is_of_target: bool | None) -> dict[str, Any]:
    made_by = {"name": "T", "weights_sha256": "ab" * 32}
    return {
        "traffic": {"target": made_by, "is_of_target": is_of_target},
        "target": {"name": "T4"},
    }


def test_traffic_of_other_weights_is_an_alarm_where_no_text_was_compared() -> None:
    alarm = other_target(provenance(False), (), None)
    assert alarm is not None
    assert "T4" in alarm.message
    assert "abababababab…" in alarm.message
    assert other_target(provenance(False), [live([9], [9])], None) is None
    assert other_target(provenance(True), (), None) is None
    assert other_target(provenance(None), (), None) is None


@pytest.mark.parametrize(
    ("observed", "sign", "expected"),
    [
        (Interval(1.03, 1.02, 1.04), ">=", "pass"),
        (Interval(1.03, 1.02, 1.04), ">", "unsure"),
        (Interval(1.0, 0.9, 1.01), ">=", "fail"),
        (Interval(1.0, 1.0, 1.02), "<=", "pass"),
        (None, ">=", "undefined"),
    ],
)
def test_a_check_is_unsure_when_the_interval_straddles_its_limit(observed, sign, expected) -> None:
    assert result_of(observed, sign, 1.02) == expected


def test_an_open_verdict_says_how_much_data_would_close_it() -> None:
    # limit 1.02: distance 0.02, half-width 0.04: 4 x whatever the width comes from
    exact = replace(comparison(), length_ratio=Interval(1.0, 1.0, 1.0))
    from_timing = decide(evidence(OPEN, acceptance=exact))
    assert from_timing.to_settle == "about 80 timing samples (now 20)"
    wide = replace(comparison(), length_ratio=Interval(1.0, 1 - 0.04 / 1.04, 1 + 0.04 / 1.04))
    assert decide(evidence(OPEN, acceptance=wide)).to_settle == "about 130 prompts (now 32)"
    few = replace(evidence(Interval(1.05, 0.2, 5.0)), num_prompts=2)
    assert decide(few).to_settle == "about 5 prompts (now 2)"
    at_limit = decide(evidence(Interval(1.02, 1.0, 1.04)))
    assert "at the limit" in (at_limit.to_settle or "")
    assert decide(evidence(None, None)).to_settle == (
        "a measured speed, which is missing here: no FP8 kernel on this machine"
    )


def test_a_collapse_of_the_baseline_too_is_not_the_quantizations() -> None:
    both = replace(comparison(), baseline_length=around(1.02, 0.01))
    both = replace(both, candidate_length=around(1.01, 0.01), length_ratio=around(0.99, 0.01))
    alarm = acceptance_collapsed(both, Policy())
    assert alarm is not None
    assert "It is the pair or the traffic, not the quantization" in alarm.message
    assert "1.01 at k = 4, baseline 1.02" in alarm.message
    alone = acceptance_collapsed(replace(both, baseline_length=around(3.0, 0.1)), Policy())
    assert alone is not None
    assert "quantized weights or scales are probably wrong" in alone.message
    assert "the pair or the traffic" not in alone.message


def test_a_draft_that_still_proposes_well_is_not_called_damaged() -> None:
    """INT4 in groups of 64 takes a sound 135M model from 4.87 to 2.99 tokens a round."""
    found = replace(comparison(), baseline_length=around(4.87, 0.02))
    found = replace(found, candidate_length=around(2.99, 0.1), length_ratio=around(0.61, 0.02))
    alarm = acceptance_collapsed(found, Policy())
    assert alarm is not None
    assert "too coarse for this model, or its weights or scales are wrong" in alarm.message
    assert "probably wrong" not in alarm.message


def test_a_policy_file_and_the_command_line_change_the_verdict(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("min_speedup_over_baseline: 1.10\n")
    assert decide(evidence(), load_policy(path)).decision == "no-go"
    overrides = {"min_speedup_over_baseline": 1.0, "warn_acceptance_rate": None}
    assert decide(evidence(A_LITTLE), load_policy(path, overrides)).decision == "go"
    path.write_text("")
    assert load_policy(path) == Policy() == load_policy()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("min_speedup: 1.1", "min_speedup: Extra inputs"),
        ("min_acceptance_rate: 50", "min_acceptance_rate: Input should be less"),
        ("- 1", "mapping"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_a_wrong_policy_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(OptionError, match=words) as caught:
        load_policy(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(OptionError, match="no policy file"):
        load_policy(tmp_path / "absent.yaml")
