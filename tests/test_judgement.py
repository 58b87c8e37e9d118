"""From measurements to the record, without a model: what a prompt costs, and what one says."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quantdraft.checkpoint import open_checkpoint
from quantdraft.comparison.resampling import Bootstrap
from quantdraft.judgement import Measurements, judged
from quantdraft.ledger import byte_ledger
from quantdraft.responses import Response
from quantdraft.results import Latency
from quantdraft.traffic import Sampling, Traffic
from quantdraft.verdict import Policy
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
        keeps=keeps,
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
    alike = replace(given, keeps={arm: [np.full(NUM_TOKENS, 0.8)] for arm in ARMS})
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
