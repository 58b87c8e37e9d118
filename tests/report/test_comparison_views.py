"""The break-even plane, the grid of points and pairs of runs, against answers known beforehand."""

import math
from dataclasses import replace

import numpy as np
import pytest

from quantdraft.judge.acceptance import replay_rounds
from quantdraft.judge.comparison.disagreements import find_disagreements
from quantdraft.judge.comparison.lengths import compare_acceptance
from quantdraft.judge.comparison.pairwise import all_pairs
from quantdraft.judge.comparison.points import grid_points, replayed_of, stops_paying_at
from quantdraft.judge.comparison.slices import by_domain, slice_tokens
from quantdraft.judge.speedup import round_ms, speedup_over_baseline
from quantdraft.record import Evaluation, Interval, StepSamples
from quantdraft.record.plane import JOINT, Plane, ellipse
from quantdraft.traffic.traffic import Response, Traffic
from tests.example_evaluation import evaluation, gridded, unmeasured, verify_ms


@pytest.mark.parametrize("draft_speedup_by", [1.0, 1.3, 2.0, 8.0])
@pytest.mark.parametrize("speedup", [1.0, 1.02])
def test_on_the_frontier_the_speed_equation_gives_the_speedup(
    draft_speedup_by: float, speedup: float
) -> None:
    plane = Plane(4, 0.8, 6.0, 3.0)
    lost = plane.allowed_loss(draft_speedup_by, speedup)
    rounds = round_ms(4, 0.8, 6.0), round_ms(4, 0.8 / draft_speedup_by, 6.0)
    found = speedup_over_baseline(*rounds, 3.0, 3.0 - 4 * lost)
    assert found == pytest.approx(speedup, abs=1e-12)
    assert plane.needed_draft_speedup(lost, speedup) == pytest.approx(draft_speedup_by)


def test_a_verification_that_takes_too_long_leaves_nothing_to_gain() -> None:
    assert Plane(1, 0.1, 10.0, 1.5).needed_draft_speedup(0.0, speedup=1.2) is None


def test_the_plane_stands_on_the_measured_steps_at_the_candidates_k() -> None:
    plane = evaluation().plane
    assert plane is not None
    assert (plane.num_speculative_tokens, plane.draft_step_ms) == (4, 0.8125)
    assert plane.verify_step_ms == verify_ms(4)
    saving = evaluation().operating_point.draft_latency_saving
    faster = evaluation().operating_point.draft_speedup
    assert saving is not None
    assert faster is not None
    assert faster.low < faster.value == 1 / (1 - saving.value) < faster.high
    assert unmeasured().operating_point.draft_speedup is None


def test_the_ellipse_holds_both_numbers_together() -> None:
    # Each axis is a 95 % interval: 1.96 standard deviations; both together need sqrt(5.991).
    assert pytest.approx(math.sqrt(5.991464547) / 1.959963985) == JOINT
    points = ellipse(Interval(0.0, -1.0, 2.0), Interval(5.0, 4.0, 6.0))
    xs, ys = zip(*points, strict=True)
    assert (min(xs), max(xs)) == (pytest.approx(-JOINT), pytest.approx(2 * JOINT))
    assert (min(ys), max(ys)) == (pytest.approx(5 - JOINT), pytest.approx(5 + JOINT))


def test_the_records_rounds_give_the_acceptance_they_came_from() -> None:
    rng = np.random.default_rng(1)
    keeps = [(rng.random(40) < 0.7).astype(float) for _ in range(6)]
    whole = replay_rounds([f"p{at}" for at in range(6)], keeps, [1, 3])
    made = evaluation()
    prompts = tuple(
        replace(
            made.prompts[at],
            prompt_id=f"p{at}",
            num_tokens=int(whole.num_tokens[at]),
            candidate_num_drafts=tuple(whole.num_drafts[:, at]),
            candidate_num_accepted=tuple(whole.num_accepted(k)[at] for k in (1, 3)),
        )
        for at in range(6)
    )
    again = replayed_of(replace(made, prompts=prompts, num_speculative_tokens=(1, 3)), "candidate")
    for k in (1, 3):
        assert again.counts(k).acceptance_rate == pytest.approx(whole.counts(k).acceptance_rate)
        assert again.counts(k).num_drafts == whole.counts(k).num_drafts


def test_a_point_without_a_speed_keeps_its_reason() -> None:
    points = {point.batch_size: point for point in grid_points(gridded())}
    assert points[256].speed is None
    assert points[256].reason == "out of memory"
    assert stops_paying_at(tuple(points.values())) == {512: 64}
    assert stops_paying_at(tuple(p for b, p in points.items() if b < 64)) == {512: None}
    assert grid_points(replace(evaluation(), latency=replace(evaluation().latency, arms={}))) == ()


def with_steps(name: str, factor: float, noise: float, seed: int) -> Evaluation:
    """A run whose draft steps take `factor` of the baseline's, with noise of its own."""
    made = evaluation(name)
    rng = np.random.default_rng(seed)

    def samples(ms: float) -> StepSamples:
        return StepSamples(tuple(ms * (1 + noise * rng.standard_normal(40))))

    arms = {
        "baseline": replace(made.latency.arms["baseline"], steps={1: samples(1.0)}),
        "candidate": replace(made.latency.arms["candidate"], steps={1: samples(factor)}),
        "target": replace(
            made.latency.arms["target"],
            steps={m: StepSamples((verify_ms(m - 1),) * 40) for m in range(1, 8)},
        ),
    }
    point = made.operating_point
    ends = Interval(8.0 / (4 + 4 * factor), 0.9, 1.9)
    return replace(
        made,
        latency=replace(made.latency, arms=arms),
        operating_point=replace(point, speedup_over_baseline=ends),
    )


def test_recipes_that_are_equal_are_not_told_apart_and_others_are() -> None:
    runs = [with_steps("a", 0.5, 0.02, 1), with_steps("b", 0.5, 0.02, 2), unmeasured()]
    runs.append(with_steps("c", 0.1, 0.02, 3))
    pairs = {(pair.one, pair.other): pair for pair in all_pairs(runs, 4)}
    assert len(pairs) == 6
    assert pairs["a", "b"].is_different is False
    assert pairs["a", "c"].is_different is True
    unknown = pairs["a", "fp8"]
    assert unknown.speed_ratio is None
    assert unknown.acceptance_rate_gap is not None  # acceptance decides where speed cannot
    assert all_pairs(runs[:1], 4) == ()


def test_more_pairs_make_wider_intervals() -> None:
    runs = [with_steps(name, 0.5, 0.05, at) for at, name in enumerate("abcd")]
    two, four = all_pairs(runs[:2], 4)[0].speed_ratio, all_pairs(runs, 4)[0].speed_ratio
    assert two is not None
    assert four is not None
    assert four.high - four.low > two.high - two.low


def test_acceptance_of_other_prompts_is_not_compared() -> None:
    other = evaluation("other")
    renamed = tuple(replace(each, prompt_id=f"x{each.prompt_id}") for each in other.prompts)
    (pair,) = all_pairs([evaluation("one"), replace(other, prompts=renamed)], 4)
    assert pair.acceptance_rate_gap is None


KEEPS = {
    "baseline": [np.ones(9), np.ones(9), np.ones(9)],
    "candidate": [np.ones(9), np.array([0.0] * 9), np.array([1, 1, 0, 1, 1, 1, 1, 1, 1.0])],
}


def test_the_prompts_that_lose_most_rounds_come_first_and_equal_ones_not_at_all() -> None:
    responses = tuple(
        Response(f"p{at}", tuple(range(100)), tuple(range(9)), domain="code") for at in range(3)
    )
    replayed = {arm: replay_rounds(["p0", "p1", "p2"], KEEPS[arm], [4]) for arm in KEEPS}
    found = find_disagreements(
        Traffic(responses, None), KEEPS, replayed, 4, lambda ids: [f"<{each}>" for each in ids]
    )
    assert [each.prompt_id for each in found] == ["p1", "p2"]
    assert found[1].tokens[:3] == ("<0>", "<1>", "<2>")
    assert found[1].candidate_keep[2] == 0.0
    assert found[0].prompt_end.startswith("<36>")
    assert found[0].num_tokens_left_out == 0


def test_a_loss_that_every_prompt_shares_has_no_width() -> None:
    baseline, candidate = [np.ones(21)] * 8, [np.tile([1.0, 0.0, 1.0], 7)] * 8
    arms = [
        replay_rounds([str(at) for at in range(8)], keeps, [1]) for keeps in (baseline, candidate)
    ]
    (loss,) = compare_acceptance(arms[0], arms[1], 1).acceptance_loss_per_pos
    assert loss.low == pytest.approx(loss.value) == pytest.approx(loss.high)
    assert loss.value > 0


def test_a_slice_of_few_prompts_has_no_interval() -> None:
    base, cand = [np.ones(20)] * 8, [np.tile([1.0, 0.0], 10)] * 8
    ((few, many),) = slice_tokens(base, cand, 4, [by_domain(["few"] * 2 + ["many"] * 6)])
    assert few.conditional_acceptance_loss is None
    assert many.conditional_acceptance_loss is not None
    assert many.conditional_acceptance_loss.value == pytest.approx(
        1.0 - (many.candidate_conditional_acceptance or 0.0)
    )
