"""What a sceptic asks first: samples, controls, machine, hashes, the command, and the words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quantdraft.judge.advice.acceptance import alpha_of
from quantdraft.judge.advice.all import diagnoses
from quantdraft.judge.analysis import analysed
from quantdraft.record import Evaluation, Interval, LiveCheck
from quantdraft.report.blocks import Table
from quantdraft.report.glossary import WORDS
from quantdraft.report.sections.evidence import evidence_section
from tests.example_evaluation import acceptance, alarmed, evaluation, rounds, unmeasured
from tests.pages import document


def evidence(made: Evaluation) -> dict[str, str]:
    table = evidence_section(analysed(made)).blocks[0]
    assert isinstance(table, Table)
    return dict(row for row in table.rows if len(row) == 2)


def test_evidence_names_samples_hashes_and_controls() -> None:
    rows = evidence(evaluation())
    assert rows["Traffic"] == "32 prompts, 4,032 response tokens, t.jsonl, sha256 aaaaaaaaaaaa…"
    assert rows["Domains"] == "code 16, prose 16"
    assert rows["Target"] == "org/Target-7B, bfloat16, sha256 dddddddddddd…"
    assert rows["Candidate"].endswith("sha256 cccccccccccc…")
    assert "21 shuffled blocks" in rows["Timing"]
    assert "Example CPU, 2 threads. Load average 0.42 before, 1.08 after." in rows["Machine"]
    assert "1.001× (0.993× to 1.009×)" in rows["Control"]
    assert "seed 0" in rows["Intervals"]
    assert rows["Alarms"] == "none was raised"
    assert rows["Live loop"] == (
        "baseline: rounds equal replay's on 2 of 2 prompts; "
        "candidate: rounds equal replay's on 1 of 2 prompts"
    )


def test_evidence_of_what_was_not_measured_is_no_number() -> None:
    made = unmeasured()
    point = replace(made.operating_point, control_speedup=None)
    rows = evidence(replace(made, operating_point=point, live=(), provenance={}))
    assert rows["Control"].startswith("undefined")
    assert rows["Baseline's step"] == "undefined"  # no limit of the machine was measured
    assert rows["Live loop"].startswith("not run")
    assert rows["Target"] == "unknown, sha256 unknown"
    assert evidence(alarmed())["Alarms"] == "acceptance-collapsed"


def test_sampling_and_expected_rounds_are_said() -> None:
    made = evaluation()
    traffic = made.provenance["traffic"] | {"sampling": {"temperature": 0.8, "top_p": 0.9}}
    live = (LiveCheck(4, "baseline", ("a", "b"), (31.0, 40.0), (31.2, 40.4), 0, 0, 0, True),)
    rows = evidence(replace(made, provenance=made.provenance | {"traffic": traffic}, live=live))
    assert "temperature 0.8, top-p 0.9" in rows["Traffic"]
    assert rows["Live loop"] == "baseline: rounds agree in the mean on 2 prompts"


def test_alpha_is_the_probability_that_the_rounds_were_made_with() -> None:
    """Independent acceptance of 0.731: α says so at every k, the acceptance rate falls."""
    ends = [alpha_of(acceptance(k).candidate_length, k).value for k in (1, 4, 6)]
    assert ends == pytest.approx([0.731] * 3)
    rates = [rounds(0.731, k).acceptance_rate for k in (1, 4, 6)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] - rates[-1] > 0.2


def test_no_two_numbers_are_called_acceptance_rate() -> None:
    """At k = 4 the rate is 0.485 and α 0.731: a line that shows α says that it is not the rate."""
    made = evaluation()
    low = tuple(
        replace(row, candidate_length=Interval(1.7, 1.6, 1.8), baseline_length=Interval(2, 1.9, 2))
        for row in made.acceptance
    )
    found = diagnoses(replace(made, acceptance=low))
    said = [line for line in found if line.code in {"diverged", "wrong-draft"}]
    assert said
    for line in said:
        assert line.seen.startswith("α = ")
        assert "accepted / proposed is" in line.seen
        assert line.limit.startswith("α below")
    sums = next(s for s in document(made).sections if s.title == "Acceptance").blocks[0]
    assert isinstance(sums, Table)
    titles = [row[0] for row in sums.rows]
    assert titles[:2] == [
        "Acceptance rate (accepted / proposed)",
        "α (acceptance per token asked for)",
    ]
    assert sums.rows[1][2].startswith("73.1 %")


def test_the_words_are_folded_at_the_end_and_each_is_said_once() -> None:
    section = document(evaluation()).sections[-1]
    assert section.title == "Words"
    assert section.is_detail
    names = [name for name, _ in WORDS]
    assert len(set(names)) == len(names)
