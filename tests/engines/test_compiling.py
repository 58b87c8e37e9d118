"""Kernels are compiled before they are timed, within a limit, in a process of their own."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from quantdraft.engines.kernels import book, compiling
from quantdraft.engines.kernels.book import NUM_VOTES, Book, Timing
from quantdraft.engines.kernels.compiling import compile_fault


@pytest.fixture(autouse=True)
def nothing_late(monkeypatch):
    monkeypatch.setattr(compiling, "_late", set())
    monkeypatch.setenv("QUANTDRAFT_CHOICES", "")


def compiled(program: str, argument: str = "", seconds: float = 60) -> str | None:
    return compile_fault("a library", "its kernel", program, (argument,), seconds)


def test_what_is_compiled_has_no_fault_and_a_line_of_progress(monkeypatch):
    lines = []

    @contextmanager
    def step(name):
        lines.append(name)
        yield

    monkeypatch.setattr(compiling, "step", step)
    program = "import sys; print('banner'); sys.exit(0 if sys.argv[1] == 'bfloat16' else 1)"
    assert compiled(program, "bfloat16") is None
    assert lines == ["compiling a library, its kernel: once on this machine, 1:00 at most"]
    assert not compiling.was_late()


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import sys; sys.exit('first\\n no nvcc for 13.0\\n\\n')", "here: no nvcc for 13.0"),
        ("import sys; sys.exit(3)", "here: no reason given"),
        ("import nothing_of_this_name", "here: ModuleNotFoundError: No module named"),
        ("import os; os.abort()", "cannot be compiled here: "),
    ],
)
def test_what_cannot_be_compiled_says_so_in_one_line(program, reason):
    fault = compiled(program)
    assert fault is not None
    assert reason in fault
    assert "\n" not in fault
    assert not compiling.was_late()


def test_what_takes_longer_is_ended_with_all_that_it_started(tmp_path):
    (tmp_path / "program").mkdir()
    pid = tmp_path / "pid"
    program = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "open(sys.argv[1], 'w').write(str(child.pid))\n"
        "child.wait()\n"
    )
    assert compiled(program, str(pid), 2) == "a library, its kernel, was not compiled within 0:02"
    assert compiling.was_late()
    again = compiled("raise SystemExit('asked again')")
    assert again == "a library takes no part in this run: it did not compile in time"
    if pid.is_file():  # on a machine under load it may not have come so far
        deadline = time.monotonic() + 20
        while is_running(int(pid.read_text())) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not is_running(int(pid.read_text()))


def test_what_was_compiled_is_not_asked_for_again(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTDRAFT_CHOICES", str(tmp_path))
    program = "import sys; open(sys.argv[1], 'a').write('compiled ')"
    out = tmp_path / "out"
    for _ in range(2):
        assert compiled(program, str(out)) is None
    assert out.read_text() == "compiled "
    assert compiled(program, str(tmp_path / "other")) is None
    assert (tmp_path / "other").is_file()
    assert "asked" in str(compiled("raise SystemExit('asked')"))
    assert "asked" in str(compiled("raise SystemExit('asked')"))  # what failed is


def is_running(pid: int) -> bool:
    """True for a process that is neither gone nor a zombie."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except (OSError, IndexError):
        return False


def test_answers_without_a_kernel_that_came_late_are_not_kept(tmp_path, monkeypatch):
    path = tmp_path / "choices.json"
    votes = Book(path)
    for _ in range(NUM_VOTES):
        votes.add("a", {"k": Timing(1.0, 1), "l": Timing(2.0, 1)})
    monkeypatch.setattr(book, "was_late", lambda: True)
    votes.write()
    assert not path.exists()
    assert votes.is_settled("a")  # for this process
    monkeypatch.setattr(book, "was_late", lambda: False)
    votes.write()
    assert Book(path).is_settled("a")
