"""Reports in a terminal: they fit it, break no number, and are coloured where they may be."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantdraft.report.blocks import Figures, Table
from quantdraft.report.views import tables, terminal
from quantdraft.report.views.screen import MIN_WIDTH, PIPE, Screen, here
from tests.example_evaluation import alarmed, evaluation, unmeasured
from tests.pages import document

CONTROL = re.compile(r"\x1b\[[0-9;]*m")
MADE = {"go": evaluation(), "no-go": alarmed(), "inconclusive": unmeasured()}
PAGES = {decision: document(made) for decision, made in MADE.items()}
TONES = {"go": "32", "no-go": "31", "inconclusive": "33"}
SCREENS = [PIPE, *(Screen(columns) for columns in (50, 80, 100, 140))]


class Stream(io.StringIO):
    """A stdout that is a terminal, or is not."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.mark.parametrize("screen", SCREENS, ids=str)
@pytest.mark.parametrize("decision", MADE)
def test_a_verdict_has_its_word_its_reason_and_fifteen_lines_at_most(decision, screen):
    made = MADE[decision]
    lines = terminal.brief(PAGES[decision], screen).splitlines()
    assert lines[0].startswith(decision.upper())
    reason = made.verdict.summary.removeprefix(f"{decision}: ")
    assert reason[1:60] in " ".join(lines)
    assert len(lines) + 1 <= 15  # and the line that names the report
    assert max(map(len, lines)) <= screen.width


@pytest.mark.parametrize("columns", range(MIN_WIDTH, 101, 4))
@pytest.mark.parametrize("decision", MADE)
def test_a_figure_of_a_verdict_ends_at_a_whole_clause(decision, columns):
    made = PAGES[decision]
    lines = terminal.brief(made, Screen(columns)).splitlines()
    for item in next(block for block in made.lead if isinstance(block, Figures)).items:
        (line,) = (line for line in lines if line.startswith(f"{item.label}  "))
        note = line.partition(item.value)[2].strip()
        rest = item.note.removeprefix(note)
        assert item.note.startswith(note)
        assert not note or not rest or rest.startswith(("; ", ", ", " than "))


def test_a_note_is_shortened_by_clauses_and_a_list_is_not():
    note = "0.3 points higher than the baseline; accepted / proposed"
    assert terminal._clauses(note, 55) == "0.3 points higher than the baseline"
    assert terminal._clauses(note, 20) == "0.3 points higher"
    assert terminal._clauses("best k: baseline 4, candidate 5", 24) == ""


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_no_line_of_a_report_is_wider_than_the_terminal(columns):
    shown = terminal.render(PAGES["go"], Screen(columns))
    assert max(map(len, shown.splitlines())) <= columns


NUMBERS = st.one_of(
    st.floats(0.001, 1e4).map(lambda value: f"{value:.3f}× ({value:.2f}× to {2 * value:.2f}×)"),
    st.integers(0, 10**6).map(lambda value: f"{value:,}"),
)


@given(
    rows=st.lists(st.lists(NUMBERS, min_size=7, max_size=7), min_size=1, max_size=4),
    columns=st.integers(MIN_WIDTH, 160),
)
@settings(max_examples=60, deadline=None)
def test_every_number_stands_unbroken_in_a_table_that_fits(rows, columns):
    names = tuple(f"a longer heading {i}" for i in range(7))
    block = Table(names, tuple(tuple(row) for row in rows), frozenset(range(1, 7)))
    shown = tables.table(block, Screen(columns))
    lines = shown.splitlines()
    for row in rows:
        for cell in row:
            assert any(cell in line for line in lines)
    widest = max(len(cell) for row in rows for cell in row)
    first = max(len(row[0]) for row in rows)
    least = max(first, len("heading")) + tables.GAP + max(widest, len("heading"))
    assert max(map(len, lines)) <= max(columns, least)


def test_parts_of_a_wide_table_repeat_what_names_the_row():
    block = Table(
        ("Batch", "Arm", *(f"Number {i}" for i in range(6))),
        (("1", "baseline", *("123.456",) * 6), ("8", "candidate", *("123.456",) * 6)),
        frozenset({0, 2, 3, 4, 5, 6, 7}),
    )
    shown = tables.table(block, Screen(50))
    assert shown.count("candidate") == 2
    assert shown.count("123.456") == 12
    assert tables.table(block, Screen(120)).count("candidate") == 1


def test_a_pipe_gets_aligned_text_of_any_width():
    block = Table(("Arm", "ms"), (("baseline " * 8, "1.5"), ("b", "12.25")), frozenset({1}))
    header, rule, first, second = tables._aligned(block).splitlines()
    assert header.endswith("   ms")
    assert set(rule) == {"─"}
    assert len(first) == len(second) == len(header) == len(rule)


@pytest.mark.parametrize("decision", MADE)
def test_colours_are_the_verdicts_and_only_where_they_may_be(decision):
    shown = terminal.render(PAGES[decision], Screen(80, has_colours=True))
    assert shown.startswith(f"\x1b[1;{TONES[decision]}m")
    plain = terminal.render(PAGES[decision], Screen(80))
    said = [line.rstrip() for line in CONTROL.sub("", shown).splitlines()]
    assert said == plain.splitlines()
    assert "\x1b" not in plain
    assert "\x1b" not in terminal.render(PAGES[decision], PIPE)


@pytest.mark.parametrize(
    ("environment", "has_colours"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_what_stdout_is_decides(monkeypatch, environment, has_colours):
    for name in ("NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "72")
    assert here(Stream(True)) == Screen(72, has_colours)
    assert here(Stream(False)) == PIPE
