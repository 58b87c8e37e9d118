"""Intervals resample conversations: turns of one are not independent."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.judge.acceptance import Replayed, replay_rounds
from quantdraft.judge.advice.limits import more_prompts
from quantdraft.judge.comparison.lengths import compare_acceptance
from quantdraft.judge.comparison.points import num_units, replayed_of
from quantdraft.judge.comparison.slices import Term, by_domain, contrast, slice_tokens
from quantdraft.judge.conversations import sum_units, units_of
from quantdraft.judge.judge import Measurements, judged
from quantdraft.judge.statistics.bootstrap import Bootstrap
from quantdraft.judge.verdict.policy import Policy
from quantdraft.quantize.ledger import byte_ledger
from quantdraft.record import Evaluation, Interval
from quantdraft.report.sections.acceptance import acceptance_section
from quantdraft.report.sections.evidence import evidence_section
from tests.judge.test_judge import measured
from tests.stored import write_checkpoint


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory):
    return byte_ledger(open_checkpoint(write_checkpoint(tmp_path_factory.mktemp("draft"))))


def with_conversations(given: Measurements, names: list[str | None]) -> Measurements:
    pairs = zip(given.traffic.responses, names, strict=True)
    responses = tuple(replace(each, conversation=name) for each, name in pairs)
    return replace(given, traffic=replace(given.traffic, responses=responses))


def judge(given: Measurements) -> Evaluation:
    return judged(given, Policy())


def test_units_are_numbered_as_they_appear() -> None:
    assert units_of(["b", None, "a", "b", None, ""]) == (0, 1, 2, 0, 3, 4)
    assert units_of(["a", None, "b"]) is None
    assert units_of([]) is None
    assert sum_units(np.array([1.0, 2.0, 4.0]), (7, 3, 7)).tolist() == [2.0, 5.0]


def test_prompts_that_stand_alone_give_what_they_gave(ledger) -> None:
    """Conversations of one response each change no number, to the last bit."""
    given = measured(ledger, 12)

    def figures(made: Evaluation) -> str:
        return json.dumps(asdict(made) | {"prompts": None}, sort_keys=True)

    alone = judge(given)
    assert figures(judge(with_conversations(given, [f"c{i}" for i in range(12)]))) == figures(alone)
    assert alone.by_trait == {}


def test_every_response_twice_widens_no_interval_and_narrows_none(ledger) -> None:
    """Two equal turns say as much as one: the intervals of n conversations, not of 2 n."""
    given = measured(ledger, 12)
    responses = given.traffic.responses
    again = tuple(replace(r, prompt_id=f"{r.prompt_id}-again") for r in responses)
    keeps = {arm: [*each, *each] for arm, each in given.probabilities.items()}
    traffic = replace(given.traffic, responses=(*responses, *again))
    twice = with_conversations(
        replace(given, traffic=traffic, probabilities=keeps), [f"c{i}" for i in range(12)] * 2
    )
    once, doubled, narrow = (
        judge(given),
        judge(twice),
        judge(with_conversations(twice, [None] * 24)),
    )
    assert num_units(doubled) == 12
    for one, two, blind in zip(once.acceptance, doubled.acceptance, narrow.acceptance, strict=True):
        ends, same = one.acceptance_rate_loss, two.acceptance_rate_loss
        assert (same.value, same.low, same.high) == pytest.approx((ends.value, ends.low, ends.high))
        assert two.length_ratio.low == pytest.approx(one.length_ratio.low)
        width = blind.acceptance_rate_loss.high - blind.acceptance_rate_loss.low
        assert width < 0.85 * (ends.high - ends.low)
    for one, two in zip(once.by_domain, doubled.by_domain, strict=True):
        ends, same = one.conditional_acceptance_loss, two.conditional_acceptance_loss
        assert ends is not None
        assert same is not None
        assert (same.low, same.high) == pytest.approx((ends.low, ends.high))


def test_a_record_resamples_as_its_measurement_did(ledger) -> None:
    made = judge(with_conversations(measured(ledger, 12), [f"c{i // 3}" for i in range(12)]))
    assert [prompt.conversation for prompt in made.prompts[:4]] == ["c0", "c0", "c0", "c1"]
    assert len(replayed_of(made, "baseline").prompt_ids) == num_units(made) == 4
    assert made.acceptance[0].acceptance_rate_loss.low == -1  # four are too few for an interval
    assert "resamples of conversations" in str(evidence_section(made))
    assert "5 conversations (now 4)" in more_prompts(Interval(0.1, 0.0, 0.2), 0.15, made)


def of_conversations(rng: np.random.Generator, num: int, turns: int) -> tuple[Replayed, Replayed]:
    """Two arms whose turns of one conversation are equally easy: keeps around its own level."""
    ids = [f"{c}-{t}" for c in range(num) for t in range(turns)]
    levels = np.repeat(rng.uniform(0.2, 0.9, num), turns)
    lost = np.repeat(rng.uniform(0.0, 0.3, num), turns)

    def arm(level: np.ndarray) -> Replayed:
        keeps = [np.full(16, value) for value in level]
        return replay_rounds(ids, keeps, [4])

    return arm(levels), arm(levels * (1 - lost))


def test_intervals_of_correlated_turns_cover_as_often_as_they_say() -> None:
    """Six turns of each conversation: resampled one by one, the interval is far too narrow."""
    rng = np.random.default_rng(3)
    many = of_conversations(np.random.default_rng(4), 4000, 1)
    truth = many[0].counts(4).acceptance_rate - many[1].counts(4).acceptance_rate
    num_runs, num, turns, bootstrap = 150, 16, 6, Bootstrap(num_resamples=400)
    units = tuple(np.repeat(np.arange(num), turns).tolist())
    covered = blind = 0
    for _ in range(num_runs):
        pair = of_conversations(rng, num, turns)
        whole = (each.of_conversations(units) for each in pair)
        ends = compare_acceptance(*whole, 4, bootstrap).acceptance_rate_loss
        covered += ends.low <= truth <= ends.high
        ends = compare_acceptance(*pair, 4, bootstrap).acceptance_rate_loss
        blind += ends.low <= truth <= ends.high
    error = np.sqrt(0.95 * 0.05 / num_runs)
    assert 0.95 - 4 * error <= covered / num_runs
    assert (
        blind / num_runs < 0.75
    )  # six equal turns: a normal interval 1 / sqrt(6) as wide has 58 %


def test_contrasts_of_parts_resample_conversations() -> None:
    """Equal turns of ten conversations: the interval is that of ten prompts."""
    rng = np.random.default_rng(0)
    keeps = [rng.random(20) for _ in range(10)]
    twice = [keep for keep in keeps for _ in range(2)]
    whole = Bootstrap(units=tuple(at // 2 for at in range(20)))

    def ends(arms: list[np.ndarray], domains: list[str], bootstrap: Bootstrap):
        ((one, other),) = slice_tokens(arms, arms, 4, [by_domain(domains)], bootstrap)
        return contrast([Term(1, one, "baseline"), Term(-1, other, "baseline")], bootstrap)

    alone = ends(keeps, ["a", "b"] * 5, Bootstrap())
    doubled = ends(twice, ["a", "a", "b", "b"] * 5, whole)
    assert alone is not None
    assert doubled is not None
    assert (doubled.low, doubled.high) == pytest.approx((alone.low, alone.high))


def test_slices_by_what_the_log_tells_apart(ledger) -> None:
    given = measured(ledger, 12)
    traits = [
        (("model", "a" if at % 2 else "b"), ("finish reason", "stop"), ("tools", "with tools"))
        if at < 8
        else (("model", "b"),)
        for at in range(12)
    ]
    pairs = zip(given.traffic.responses, traits, strict=True)
    responses = tuple(replace(each, traits=own) for each, own in pairs)
    made = judge(replace(given, traffic=replace(given.traffic, responses=responses)))
    names = {name: [part.name for part in parts] for name, parts in made.by_trait.items()}
    assert names == {"model": ["a", "b"], "tools": ["with tools", "without tools"]}
    assert [part.num_prompts for part in made.by_trait["model"]] == [4, 8]
    page = str(acceptance_section(made))
    assert "Lost by model" in page
    assert "without tools" in page
