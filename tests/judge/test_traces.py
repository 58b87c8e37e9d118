"""A trace on timed points: shares, the ratio of sums, and the verdict, from exact times."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.errors import PairingError
from quantdraft.judge.advice.commands import next_command
from quantdraft.judge.compare import compare_runs
from quantdraft.judge.comparison.traces import nearest_pace
from quantdraft.judge.judge import Measurements, judged
from quantdraft.judge.verdict.policy import Policy
from quantdraft.quantize.ledger import byte_ledger
from quantdraft.record import ArmLatency, Evaluation, Latency, StepSamples
from quantdraft.record.consistency.whole import check_evaluation
from quantdraft.traffic.ledger import Reading
from quantdraft.traffic.trace import ServedTrace, Trace
from tests.judge.test_judge import ARMS, KS, NUM_TOKENS, measured
from tests.stored import write_checkpoint

MS = 10.0  # of a token, given: what is in flight does not depend on the times below


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory):
    return byte_ledger(open_checkpoint(write_checkpoint(tmp_path_factory.mktemp("draft"))))


def point(batch: int, context: int, draft_ms: dict[str, float], target_ms: float) -> Latency:
    """Exact times: a target pass takes as long for any number of tokens."""

    def arm(name: str, *widths: int, ms: float) -> ArmLatency:
        steps = {width: StepSamples((ms,) * 20) for width in widths}
        return ArmLatency(name, "float32", ("kernel",), 0, steps)

    arms = {name: arm(name, 1, ms=ms) for name, ms in draft_ms.items()}
    target = arm("target", 1, *(k + 1 for k in KS), ms=target_ms)
    return Latency("native", "cpu", 1, batch, context, {**arms, "target": target})


def served(requests: list[tuple[float, int, int]], ms: float | None = MS) -> ServedTrace:
    """Requests by ms of arrival, tokens and context."""
    times, tokens, contexts = zip(*requests, strict=True)
    made = Trace(
        Path("day.csv"), "f" * 64, Reading({"a trace of lengths": 1}, 1, 1),
        np.array(times, float), np.array(tokens), np.array(contexts),
    )  # fmt: skip
    return ServedTrace(made, 1, ms)


# 30 tokens alone, and 4 requests at once of 15 tokens each, long after: 60 tokens at batch 4.
MIXED = [(0.0, 30, 64), *[(1e6, 15, 64)] * 4]
FAST, SLOW = {"baseline": 2.0, "candidate": 1.0}, {"baseline": 2.0, "candidate": 4.0}


def given(ledger, requests, first: Latency, *grid: Latency, ms: float | None = MS) -> Measurements:
    """Both arms keep nine tokens of ten."""
    keeps = {arm: [np.full(NUM_TOKENS, 0.9) for _ in range(8)] for arm in ARMS}
    return replace(
        measured(ledger, 8),
        probabilities=keeps, latency=first, grid=grid, trace=served(requests, ms),
    )  # fmt: skip


def test_the_speedup_is_the_ratio_of_the_sums_over_tokens(ledger) -> None:
    """Of 90 tokens 30 are decoded alone and 60 at batch 4, where the candidate is slower."""
    made = given(ledger, MIXED, point(1, 64, FAST, 8.0), point(4, 64, SLOW, 16.0))
    found = judged(made, Policy())
    trace = found.trace
    assert trace is not None
    assert [(c.batch_size, c.context_length, round(c.num_tokens, 9)) for c in trace.cells] == [
        (1, 64, 30),
        (4, 64, 60),
    ]
    assert (trace.max_in_flight, trace.mean_in_flight) == (4, pytest.approx(3.0))

    def mean_ms(arm: str, k: int) -> float:
        """(30 tokens at batch 1 + 60 at batch 4) / 90, by the k that is served."""
        rounds = [k * FAST[arm] + 8.0, k * SLOW[arm] + 16.0]
        row = found.acceptance_at(k)
        return (rounds[0] / 3 + rounds[1] * 2 / 3) / row.of(arm).length.value

    best = {arm: min(KS, key=lambda k: mean_ms(arm, k)) for arm in ARMS}
    speed = trace.speed
    assert speed is not None
    assert speed.baseline_num_speculative_tokens == best["baseline"]
    assert speed.candidate_num_speculative_tokens == best["candidate"]
    times = {arm: mean_ms(arm, best[arm]) for arm in ARMS}
    alone = 8.0 / 3 + 16.0 * 2 / 3
    assert speed.baseline_ms_per_token == pytest.approx(times["baseline"])
    assert speed.candidate_ms_per_token == pytest.approx(times["candidate"])
    assert speed.autoregressive_ms_per_token == pytest.approx(alone)
    expected = times["baseline"] / times["candidate"]
    assert speed.speedup_over_baseline.value == pytest.approx(expected)
    assert speed.speedup_over_autoregressive.value == pytest.approx(alone / times["candidate"])
    assert list(check_evaluation(found)) == []


def test_the_verdict_is_the_traces_and_not_the_operating_points(ledger) -> None:
    """Alone the candidate is faster: a go. Over the trace it is slower: a no-go."""
    made = given(ledger, MIXED, point(1, 64, FAST, 8.0), point(4, 64, SLOW, 16.0))
    alone, over = judged(replace(made, trace=None), Policy()), judged(made, Policy())
    assert alone.verdict.decision == "go"
    assert over.verdict.decision == "no-go"
    assert "over the trace 'day.csv'" in over.verdict.summary
    assert over.operating_point == alone.operating_point
    decisions = {p.batch_size: p.decision for p in over.known_analysis.grid}
    assert decisions == {1: "go", 4: "no-go"}


def test_a_trace_of_one_point_has_that_points_interval(ledger) -> None:
    """Times vary by block, and acceptance by prompt: both are in the same interval."""
    rng = np.random.default_rng(3)
    first = point(1, 64, FAST, 8.0)
    shaken = {
        name: replace(arm, steps={
            m: StepSamples(tuple(s.samples_ms[0] * rng.lognormal(0, 0.05, 20)))
            for m, s in arm.steps.items()
        })
        for name, arm in first.arms.items()
    }  # fmt: skip
    made = given(ledger, [(0.0, 30, 64)], replace(first, arms=shaken))
    keeps = {arm: [rng.random(NUM_TOKENS) for _ in range(8)] for arm in ARMS}
    found = judged(replace(made, probabilities=keeps), Policy())
    assert found.trace is not None
    assert found.trace.speed is not None
    own, over = found.operating_point, found.trace.speed
    assert own.speedup_over_baseline is not None
    for name in ("speedup_over_baseline", "speedup_over_autoregressive"):
        there, here = getattr(over, name), getattr(own, name)
        ends = (there.value, there.low, there.high)
        assert ends == pytest.approx((here.value, here.low, here.high), rel=1e-9)


def test_tokens_far_from_every_timed_point_leave_the_speed_undefined(ledger) -> None:
    """Twice a batch is near to it, five times is not."""
    near = given(ledger, [(0.0, 10, 100)] * 2, point(1, 64, FAST, 8.0))
    assert judged(near, Policy()).trace.speed is not None
    far = judged(given(ledger, [(0.0, 10, 64)] * 5, point(1, 64, FAST, 8.0)), Policy())
    assert far.trace.speed is None
    assert far.trace.num_uncovered_tokens == pytest.approx(50)
    assert "near batch 4 and context 64: add such to --batch-sizes" in far.trace.reason
    assert far.verdict.decision == "inconclusive"
    assert far.speedup_over_baseline is None
    assert far.trace.reason in far.verdict.summary
    assert "were not timed" not in far.trace.reason
    none = Latency("native", "cpu", 1, 4, 64, {}, {"baseline": "it takes too long"})
    asked = judged(given(ledger, [(0.0, 10, 64)] * 5, point(1, 64, FAST, 8.0), none), Policy())
    assert asked.trace.reason.endswith("4 × 64 were not timed: it takes too long")
    assert "--trace day.csv --trace-ms-per-token 10" in next_command(asked, "run")
    long = judged(given(ledger, [(0.0, 10, 4096)], point(1, 64, FAST, 8.0)), Policy())
    assert "near batch 1 and context 4096" in long.trace.reason


def test_what_is_in_flight_follows_from_the_baselines_own_times(ledger) -> None:
    """Requests of 100 tokens 1 s apart: a baseline of 40 ms a token has four in flight at once."""
    keeps = {arm: [np.zeros(NUM_TOKENS) for _ in range(8)] for arm in ARMS}  # one token a round
    slow = {"baseline": 20.0, "candidate": 1.0}
    requests = [(1e3 * at, 100, 64) for at in range(200)]
    made = given(ledger, requests, point(1, 64, slow, 20.0), point(4, 64, slow, 20.0), ms=None)
    found = judged(replace(made, probabilities=keeps), Policy()).trace
    assert found.ms_per_token == {1: 40.0, 4: 40.0}  # k = 1: a draft step and a verification
    assert found.max_in_flight == 4
    (few, many) = found.cells
    assert many.num_tokens / found.num_tokens > 0.97
    assert few.num_tokens + many.num_tokens == pytest.approx(20_000)


def test_the_pace_is_that_of_the_nearest_batch() -> None:
    pace = nearest_pace({1: 10.0, 8: 20.0})
    assert [pace(number) for number in (1, 2, 3, 8, 100)] == [10, 10, 20, 20, 20]


def test_runs_over_different_traces_are_no_comparison(ledger) -> None:
    made = given(ledger, MIXED, point(1, 64, FAST, 8.0), point(4, 64, SLOW, 16.0))
    runs: list[Evaluation] = [judged(m, Policy()) for m in (made, replace(made, trace=None))]
    with pytest.raises(PairingError, match="differ in trace"):
        compare_runs(runs)
    both = compare_runs([runs[0], runs[0]])
    assert [run.speedup_over_baseline for run in both.comparison.runs] == [
        runs[0].trace.speed.speedup_over_baseline
    ] * 2
    ratio = both.comparison.pairs[0].speed_ratio
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((1, 1, 1))  # times without noise
