"""From measurements to the record, without a model: what a prompt costs, and what one says."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.judge.judge import Measurements, judged
from quantdraft.judge.statistics.bootstrap import Bootstrap
from quantdraft.judge.verdict.policy import Policy
from quantdraft.quantize.ledger import byte_ledger
from quantdraft.record import ArmLatency, Latency, StepSamples
from quantdraft.traffic.responses import Response
from quantdraft.traffic.traffic import Sampling, Traffic
from tests.stored import write_checkpoint

KS = (1, 2, 4, 8)
NUM_TOKENS = 12
ARMS = ("baseline", "candidate")


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory):
    return byte_ledger(open_checkpoint(write_checkpoint(tmp_path_factory.mktemp("draft"))))


def measured(ledger, num_prompts: int) -> Measurements:
    """Random keeps, half of them certain; no latency, no live loop."""
    rng = np.random.default_rng(0)
    ids = tuple(range(NUM_TOKENS))
    responses = [
        Response(f"p{i}", (1, 2), ids, domain=("even", "odd")[i % 2]) for i in range(num_prompts)
    ]
    keeps = {arm: [rng.random(NUM_TOKENS).round(1) for _ in range(num_prompts)] for arm in ARMS}
    unmeasured = dict.fromkeys((*ARMS, "control", "target"), "not asked for")
    return Measurements(
        name="int4",
        created="2026-01-01T00:00:00+00:00",
        rule="greedy",
        ks=KS,
        probabilities=keeps,
        traffic=Traffic(tuple(responses), Sampling()),
        latency=Latency("native", "cpu", 1, 1, 64, {}, unmeasured),
        live=(),
        is_control=False,
        not_quantized=None,
        has_identical_logits=False,
        ledgers=(ledger, ledger),
        provenance={},
        seed=0,
    )


def test_one_prompt_has_no_interval_and_no_verdict_but_what_would_settle_it(ledger):
    given = measured(ledger, 1)
    alike = replace(given, probabilities={arm: [np.full(NUM_TOKENS, 0.8)] for arm in ARMS})
    found = judged(alike, Policy())
    assert all((a.candidate_rate.low, a.candidate_rate.high) == (0, 1) for a in found.acceptance)
    assert all(each.conditional_acceptance_loss is None for each in found.by_position)
    assert found.verdict.decision == "inconclusive"
    assert len(found.prompts) == 1


def test_rows_hold_what_the_sums_hold(ledger):
    found = judged(measured(ledger, 7), Policy())
    for at, k in enumerate(KS):
        counts = found.acceptance[at].candidate
        assert counts.num_speculative_tokens == k
        rows = [
            (row.candidate_num_drafts[at], row.candidate_num_accepted[at]) for row in found.prompts
        ]
        assert np.sum(rows, axis=0) == pytest.approx(
            [counts.num_drafts, counts.num_accepted_tokens]
        )


def test_a_prompt_costs_memory_by_the_number_of_k_and_not_by_its_tokens(ledger, tmp_path: Path):
    def peak(num_prompts: int) -> int:
        given = measured(ledger, num_prompts)
        tracemalloc.start()
        judged(given, Policy())
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    judged(measured(ledger, 50), Policy())  # what is imported and made once is nobody's
    growth = (peak(1200) - peak(200)) / 1000
    # Floats of both arms by k and position; bytes of the resamples of four sets of prompts; and of
    # rows, slices and token sums some 100 Python numbers of 32 bytes and 60 short arrays.
    rounds = 2 * len(KS) * (1 + max(KS)) * 8
    resamples = 4 * Bootstrap().num_resamples
    assert growth < rounds + resamples + 100 * 32 + 60 * 128


def timed(draft_ms: dict[str, float]) -> Latency:
    """Exact times: a verification of m tokens takes 4 + m / 10 ms."""

    def arm(name: str, **steps: float) -> ArmLatency:
        samples = {int(m[1:]): StepSamples((ms,) * 20) for m, ms in steps.items()}
        return ArmLatency(name, "float32", ("kernel",), 0, samples)

    arms = {name: arm(name, m1=ms) for name, ms in draft_ms.items()}
    target = arm("target", m1=4.1, **{f"m{k + 1}": 4 + (k + 1) / 10 for k in KS})
    return Latency("native", "cpu", 1, 1, 64, {**arms, "target": target})


def test_each_arm_is_judged_at_its_own_best_k(ledger):
    """A dear baseline pays at k = 1 alone, a cheap candidate at k = 8."""
    times = {"baseline": 3.0, "control": 3.0, "candidate": 0.01}
    probabilities = {arm: [np.full(NUM_TOKENS, 0.9) for _ in range(7)] for arm in ARMS}
    given = replace(measured(ledger, 7), latency=timed(times), probabilities=probabilities)
    found = judged(given, Policy())
    point = found.operating_point
    ks = point.baseline_num_speculative_tokens, point.candidate_num_speculative_tokens
    assert ks == (1, 8)
    assert found.best_k == {"baseline": 1, "candidate": 8}

    def ms_per_token(arm: str, k: int) -> float:
        at = KS.index(k)
        rounds = sum(getattr(prompt, f"{arm}_num_drafts")[at] for prompt in found.prompts)
        return (k * times[arm] + 4 + (k + 1) / 10) * rounds / (7 * (NUM_TOKENS - 1))

    expected = ms_per_token("baseline", 1) / ms_per_token("candidate", 8)
    assert point.baseline_ms_per_token == pytest.approx(ms_per_token("baseline", 1))
    assert point.speedup_over_baseline.value == pytest.approx(expected)


@pytest.mark.parametrize(
    ("resident", "promised", "is_raised"),
    [(None, None, False), (1100, 1000, False), (2000, 1000, True), (0, 0, False)],
)
def test_resident_bytes_of_the_timed_candidate_are_held_against_its_scheme(
    ledger, resident, promised, is_raised
):
    latency = timed({"baseline": 1.0, "control": 1.0, "candidate": 1.0})
    arm = replace(latency.arms["candidate"], quantized_bytes=resident, promised_bytes=promised)
    given = replace(latency, arms=latency.arms | {"candidate": arm})
    found = judged(replace(measured(ledger, 7), latency=given), Policy())
    codes = {alarm.code for alarm in found.verdict.alarms}
    assert ("not_quantized" in codes) == is_raised
