"""A record that was changed after it was written is refused by the name of a field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantdraft.errors import CheckpointError
from quantdraft.record import read_bench, read_evaluation
from tests.campaigns.hostile import is_one_line
from tests.campaigns.record_values import campaign, seeds

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "reports" / "example" / "int4" / "evaluation.json"
BENCH = ROOT / "tests" / "records" / "bench-0.1.0.json"


def put(*place: Any) -> Callable[[Any], None]:
    """Return what puts the last of these at the place that the others name."""
    *keys, last, value = place

    def change(record: Any) -> None:
        for key in keys:
            record = record[key]
        record[last] = value

    return change


def swap_ends(record: Any) -> None:
    ends = record["acceptance"][0]["acceptance_rate_loss"]
    ends["low"], ends["high"] = ends["high"], ends["low"]


def drop_last(*place: Any) -> Callable[[Any], None]:
    def change(record: Any) -> None:
        for key in place:
            record = record[key]
        record.pop()

    return change


CHANGES = {
    "acceptance.0.acceptance_rate_loss.low": swap_ends,
    "acceptance.0.baseline.num_drafts": put("acceptance", 0, "baseline", "num_drafts", -1),
    "acceptance.1.candidate.num_accepted_tokens_per_pos": drop_last(
        "acceptance", 1, "candidate", "num_accepted_tokens_per_pos"
    ),
    "acceptance.0.candidate_rate.value": put("acceptance", 0, "candidate_rate", "value", 0.999),
    "acceptance": drop_last("acceptance"),
    "equal_k": drop_last("equal_k"),
    "prompts.3.baseline_num_drafts": drop_last("prompts", 3, "baseline_num_drafts"),
    "prompts": put("prompts", []),
    "num_speculative_tokens": put("num_speculative_tokens", []),
    "best_k.candidate": put("best_k", "candidate", 99),
    "operating_point.candidate_num_speculative_tokens": put(
        "operating_point", "candidate_num_speculative_tokens", 99
    ),
    "operating_point.baseline_draft_step_ms": put("latency", "arms", "baseline", "steps", {}),
    "latency.arms.candidate.steps.1.samples_ms.0": put(
        "latency", "arms", "candidate", "steps", "1", "samples_ms", 0, 0
    ),
    "latency.arms.target.name": put("latency", "arms", "target", "name", "zebra"),
    "disagreements.0.candidate_keep": drop_last("disagreements", 0, "candidate_keep"),
    "analysis.fates": drop_last("analysis", "fates"),
    "by_domain.0.prompts": put("by_domain", 0, "prompts", 0, 10**6),
    "verdict.decision": put("verdict", "decision", "no-go"),
    "ledger.baseline.attention_bytes": put("ledger", "baseline", "attention_bytes", "many"),
    "ledger.head_options": put("ledger", "head_options", 7),
    "provenance.traffic.num_tokens": put("provenance", "traffic", "num_tokens", "many"),
    "provenance.target": put("provenance", "target", ["T"]),
}


@pytest.mark.parametrize("where", CHANGES)
def test_a_changed_record_is_refused_by_the_field(where: str, tmp_path: Path) -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    CHANGES[where](record)
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(record))
    with pytest.raises(CheckpointError) as caught:
        read_evaluation(path)
    assert f"evaluation.json': {where}" in str(caught.value)
    assert is_one_line(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"context_length":', '"context_length": NaN, "x":', "context_length: it holds nan"),
        ('"batch_size":', '"batch_size": 2, "batch_size":', "the key 'batch_size' twice"),
        ('"weight_bytes": ', f'"weight_bytes": {10**30}', "weight_bytes: it holds an integer of"),
        ('"batch_size": ', '"batch_size": -', "points.0.batch_size"),
    ],
)
def test_a_bench_is_refused_by_the_field(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = json.dumps(json.loads(BENCH.read_text(encoding="utf-8")))
    assert old in text
    path = tmp_path / "bench.json"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(CheckpointError, match=said):
        read_bench(path)


@pytest.mark.parametrize("path", sorted(ROOT.glob("reports/example/*/evaluation.json")))
def test_measured_records_contradict_themselves_nowhere(path: Path) -> None:
    assert read_evaluation(path).prompts


def test_changed_values_are_refused_or_drawn_in_every_view() -> None:
    """A slice of the campaign in reports/campaigns/records.md, of other changes."""
    tallies = list(campaign(seeds(few=True), 60, seed=11, one_in=6))
    assert {tally.name: tally.findings for tally in tallies if tally.crashes} == {}
    total = {key: sum(getattr(t, key) for t in tallies) for key in ("changes", "refused", "read")}
    assert total["changes"] == total["refused"] + total["read"] >= 50
    assert sum(tally.drawn for tally in tallies) >= 1
