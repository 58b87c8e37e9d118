"""Every pair of rates, lengths and losses is at one k, also where the two best k differ."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from quantdraft.record import Evaluation, read_evaluation
from quantdraft.record.wording import length, percent
from quantdraft.report.blocks import Document, Figures, Table
from quantdraft.report.card import model_card
from quantdraft.report.views.html import render as render_html
from quantdraft.report.views.markdown import render
from tests.example_evaluation import evaluation, speed, unmeasured
from tests.pages import comparison, document, render_terminal, render_verdict

OLD_RECORDS = sorted((Path(__file__).parents[2] / "reports" / "example").glob("*/evaluation.json"))


def apart() -> Evaluation:
    """The baseline is fastest at k = 1 and the candidate at k = 4."""
    made = evaluation("int4")
    best = {"baseline": 1, "candidate": 4}
    return replace(made, operating_point=speed(1, 4), best_k=best)


def untimed() -> Evaluation:
    """As FP8 on a CPU: the baseline's best k is 1, the candidate has no kernel and no best k."""
    made = unmeasured()
    point = replace(made.operating_point, baseline_num_speculative_tokens=1)
    return replace(made, operating_point=point, best_k={"baseline": 1, "candidate": None})


CASES = {"timed": apart(), "untimed": untimed()}


def card(made: Evaluation) -> str:
    return model_card(
        "D-int4", None, made, engine="vllm", launch="x", target="T", notes=(), warnings=()
    )


def views(made: Evaluation) -> dict[str, str]:
    both = comparison([made, replace(made, name="other")])
    return {
        "markdown": render(document(made)),
        "html": render_html(document(made)),
        "terminal": render_terminal(made),
        "verdict": render_verdict(made),
        "card": card(made),
        "comparison": render(both),
    }


def lengths_at(made: Evaluation, k: int) -> tuple[str, str]:
    found = made.acceptance_at(k)
    assert found is not None
    return length(found.baseline_length.value), length(found.candidate_length.value)


@pytest.mark.parametrize("name", CASES)
def test_no_view_shows_a_pair_from_two_values_of_k(name: str) -> None:
    made = CASES[name]
    rates = {k: made.acceptance_at(k) for k in made.num_speculative_tokens}
    at_1, at_4 = rates[1], rates[4]
    assert at_1 is not None
    assert at_4 is not None
    across = [
        f"{percent(at_1.baseline_rate.value)} → {percent(at_4.candidate_rate.value)}",
        f"{lengths_at(made, 1)[0]} → {lengths_at(made, 4)[1]}",
        f"{100 * (at_1.baseline_rate.value - at_4.candidate_rate.value):.1f} points",
    ]
    for view, text in views(made).items():
        flat = " ".join(text.replace("\u00a0", " ").split())
        for pair in across:
            assert pair not in flat, view


@pytest.mark.parametrize("name", CASES)
def test_the_headline_is_at_one_k_and_says_which(name: str) -> None:
    made = CASES[name]
    at_4 = made.acceptance_at(4)
    assert at_4 is not None
    (strip,) = (block for block in document(made).lead if isinstance(block, Figures))
    shown = {item.label: (item.value, item.note) for item in strip.items}
    rates = f"{percent(at_4.baseline_rate.value)} → {percent(at_4.candidate_rate.value)}"
    loss = 100 * at_4.acceptance_rate_loss.value
    assert shown["Acceptance rate at k = 4"][0] == rates
    assert shown["Acceptance rate at k = 4"][1].startswith(f"{loss:.1f} points lower")
    assert shown["Tokens a round τ at k = 4"][0] == " → ".join(lengths_at(made, 4))


@pytest.mark.parametrize("best", [1, 2, 3, 5, 6])
def test_evaluate_and_compare_show_the_same_acceptance(best: int) -> None:
    """Whatever k the timing found best."""
    made = replace(evaluation("int4"), operating_point=speed(best, 7 - best), name="int4")
    document_, both = document(made), comparison([made, replace(made, name="other")])
    (strip,) = (block for block in document_.lead if isinstance(block, Figures))
    (row,) = (row for row in table_with(both, "Loss").rows if row[0] == "int4")
    (headline,) = (item for item in strip.items if item.label.startswith("Acceptance rate"))
    assert headline.value.split(" → ")[1] == row[1].split(" (")[0]
    assert f"at k = {made.shown_k} for all" in str(table_with(both, "Loss").caption)
    assert headline.label == f"Acceptance rate at k = {made.shown_k}"


def table_with(built: Document, column: str) -> Table:
    return next(
        block
        for section in built.sections
        for block in section.blocks
        if isinstance(block, Table) and column in block.columns
    )


@pytest.mark.parametrize("record", OLD_RECORDS, ids=lambda path: path.parent.name)
def test_every_pair_with_an_arrow_in_a_published_record_is_at_one_k(record: Path) -> None:
    made = read_evaluation(record)
    pairs = {" → ".join(lengths_at(made, k)) for k in made.num_speculative_tokens}
    (strip,) = (block for block in document(made).lead if isinstance(block, Figures))
    (shown,) = (item.value for item in strip.items if item.label.startswith("Tokens a round"))
    assert shown in pairs


def test_a_speed_at_two_k_says_both() -> None:
    text = " ".join(render_verdict(apart()).split())
    assert "the candidate at k = 4, the baseline at k = 1" in text
    assert re.search(r"k = 1 → 4", text) is None
    assert "at its k = 1: at k = 4 the candidate needs τ" in render(document(apart()))
