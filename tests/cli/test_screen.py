"""Commands in a terminal of 80 columns and in a pipe: fitted and coloured there, plain here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from quantdraft.record import write_evaluation
from tests.example_evaluation import evaluation
from tests.pty_child import COLOUR, in_terminal

CLI = ("-m", "quantdraft.cli")
PLAN = (*CLI, "plan", "-a", "0.75", "-t", "llama-3.1-8b", "-d", "llama-3.2-1b", "--device", "h200")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    write_evaluation(evaluation(), path / "evaluation.json")
    return path


def piped(*arguments: object) -> tuple[str, str]:
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def test_a_prediction_fits_the_terminal_and_keeps_every_number():
    shown = in_terminal(PLAN, columns=80)
    assert shown.exit_code == 0
    assert max(map(len, shown.lines)) <= 80
    for number in ("1.509×", "18.9 points", "637 MB", "0.133 ms", "3.409×"):
        assert any(number in line for line in shown.lines)
    wide, told = piped(*PLAN)
    assert (told, "\x1b" in wide) == ("", False)
    for number in ("1.509×", "18.9 points"):
        assert number in wide


@pytest.mark.slow
def test_a_report_has_colours_in_a_terminal_alone(run_dir: Path):
    report = (*CLI, "report", str(run_dir))
    shown = in_terminal(report, columns=80)
    assert "\x1b[1;32mG O\x1b[0m" in shown.text
    assert max(map(len, shown.lines)) <= 80
    plain = in_terminal(report, columns=80, NO_COLOR="1")
    assert "G O\r\n" in plain.text
    assert not COLOUR.findall(plain.text.partition("G O")[2])
    text, told = piped(*report)
    assert text.startswith("G O\n")
    assert (told, "\x1b" in text) == ("", False)


def test_errors_have_no_colour_and_no_control():
    shown = in_terminal((*CLI, "apply", "--recpie", "x"))
    assert shown.exit_code == 2
    assert "\x1b" not in shown.text
    assert shown.lines[0].startswith("Error: no option '--recpie'. Did you mean '--recipe'?")


def test_work_in_a_pipe_says_what_it_read_and_its_result_alone(tiny_pair, tmp_path: Path):
    output = tmp_path / "traffic.jsonl"
    asked = ("-t", tiny_pair.target, "-p", tiny_pair.prompts, "-o", output)
    text, told = piped(*CLI, "capture", *asked, "--max-new-tokens", 8)
    assert told == "read as prompts with completions: 12 of 12 lines\n"
    assert [line.split()[0] for line in text.splitlines()] == ["12", "Next:"]


@pytest.mark.slow
def test_work_in_a_terminal_shows_the_time_left(tiny_pair, tmp_path: Path):
    output = tmp_path / "traffic.jsonl"
    asked = ("-t", tiny_pair.target, "-p", tiny_pair.prompts, "-o", output, "--batch-size", 1)
    shown = in_terminal([*CLI, "capture", *map(str, asked), "--max-new-tokens", "128"])
    assert shown.exit_code == 0
    assert "ask the target" in shown.text
    assert "prompts" in shown.text
    assert " left" in shown.text
    said = [line for line in shown.lines if line]
    assert said[0].startswith("12 responses, ")
