"""What the driver tells of a card, by an nvidia-smi whose answers are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantdraft.record import GpuState
from quantdraft.record.gpu import count_programs, read_gpu_state


@pytest.fixture
def answers(tmp_path: Path, monkeypatch) -> Path:
    """A program called nvidia-smi that prints a file."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\ncat "{tmp_path}/answer"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path / "answer"


def test_clocks_power_and_utilisation_are_numbers_and_what_is_not_told_is_none(answers):
    answers.write_text("37, 1980, 2619, 412.50, 700.00, [N/A], 81000\n")
    assert read_gpu_state("cuda") == GpuState(37, 1980, 2619, 412.5, 700, None, 81000)


def test_the_programs_that_compute_on_the_card_are_counted(answers):
    program = answers.parent / "nvidia-smi"
    program.write_text(
        '#!/bin/sh\ncase "$1" in\n'
        "--query-compute-apps=*) echo 12; echo 3456;;\n"
        "*) echo 37, 1980, 2619, 412.50, 700.00, 61, 81000;;\nesac\n"
    )
    assert read_gpu_state("cuda") == GpuState(37, 1980, 2619, 412.5, 700, 61, 81000, 2)
    assert count_programs("cuda") == 2
    program.write_text("#!/bin/sh\necho [Not Supported]\n")
    assert count_programs("cuda") is None


@pytest.mark.parametrize("answer", ["", "No devices were found\n", "a, b, c, d, e, f, g\n"])
def test_an_answer_that_is_none_is_no_state(answers, answer):
    answers.write_text(answer)
    found = read_gpu_state("cuda")
    assert found is None or found == GpuState()


def test_a_cpu_and_a_machine_without_the_program_have_no_state(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert read_gpu_state("cuda") is None
    assert read_gpu_state("cpu") is None
