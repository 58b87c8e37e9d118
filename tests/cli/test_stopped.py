"""Ctrl-C: one line that says what is kept and how to go on, and exit code 130."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from quantdraft.cli import interrupts, main
from quantdraft.errors import OutputError
from quantdraft.measure import capture as capturing
from quantdraft.quantize import apply as quantization
from quantdraft.traffic.traffic import read_traffic
from quantdraft.workflows import bench as benching
from quantdraft.workflows import compare as comparison
from quantdraft.workflows import demo
from quantdraft.workflows import evaluate as evaluation
from quantdraft.workflows.export import export
from quantdraft.workflows.select import select as selection
from quantdraft.workflows.sweep import sweep
from tests.conftest import Pair

GOES_ON, NOTHING = "the same command goes on", "Nothing was written"
COMMANDS = [
    (capturing, "capture", ("capture", "-t", "T", "-p", "P", "-o", "O"), GOES_ON),
    (quantization, "apply", ("apply", "-r", "int4", "-d", "D"), NOTHING),
    (evaluation, "evaluate", ("evaluate", "D", "--traffic", "F"), GOES_ON),
    (benching, "bench", ("bench", "--shape", "llama-3.2-1b"), GOES_ON),
    (sweep, "sweep", ("sweep", "-d", "D", "-r", "int4", "--traffic", "F"), GOES_ON),
    (selection, "select", ("select", "-t", "T", "-d", "D", "--traffic", "F"), GOES_ON),
    (export, "export", ("export", "D", "-e", "vllm", "-t", "T", "-o", "O"), NOTHING),
    (demo, "demo", ("demo",), GOES_ON),
    (comparison, "compare", ("compare", "R"), NOTHING),
]


@pytest.mark.parametrize(
    ("module", "name", "arguments", "said"), COMMANDS, ids=[each[1] for each in COMMANDS]
)
def test_every_long_command_says_what_is_left(monkeypatch, module, name, arguments, said):
    def stopped(*_given: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, name, stopped)
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == 130
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("Stopped. ")
    assert said in line
    assert result.stdout == ""


@pytest.mark.slow
def test_a_capture_that_was_stopped_goes_on(tiny_pair: Pair, tmp_path: Path):
    output = tmp_path / "traffic.jsonl"
    partial = output.with_name("traffic.jsonl.partial")
    asked = ("-t", tiny_pair.target, "-p", tiny_pair.prompts, "-o", output)
    slow = ("--batch-size", "1", "--max-new-tokens", "200")
    command = [sys.executable, "-m", "quantdraft.cli", "capture", *map(str, (*asked, *slow))]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    while not partial.exists() or len(partial.read_text().splitlines()) < 3:
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, told = running.communicate(timeout=60)
    assert running.returncode == 130
    assert told.strip().startswith("Stopped. Finished batches are kept beside the output")
    num_kept = len(partial.read_text().splitlines()) - 1
    assert 2 <= num_kept < 12
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("12 responses, ")
    assert len(read_traffic(output).responses) == 12


# Starts the program as its script does, and presses Ctrl-C when a module is looked for.
AT_IMPORT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
wanted, sys.argv = sys.argv[1], ["/usr/bin/quantdraft", *sys.argv[2:]]
class Presses:
    def find_spec(self, name, *_):
        if name == wanted:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Presses())
from quantdraft.cli import interrupts, main
main()
"""


@pytest.mark.parametrize(
    "module", ["click", "quantdraft.cli.sweep", "quantdraft.workflows.list_recipes"]
)
def test_ctrl_c_while_modules_are_imported_is_one_line(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AT_IMPORT, module, "recipes"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr == "\nStopped. Nothing was written.\n"
    assert done.stdout == ""


def test_ctrl_c_is_left_to_a_program_that_uses_the_library() -> None:
    assert signal.getsignal(signal.SIGINT) is not interrupts._stop
    assert not interrupts.is_program()


@pytest.mark.parametrize(
    ("module", "name", "arguments", "said"), COMMANDS, ids=[each[1] for each in COMMANDS]
)
@pytest.mark.parametrize("is_wrapped", [True, False])
def test_a_full_disk_says_what_is_kept_and_how_to_go_on(
    monkeypatch, module, name, arguments, said, is_wrapped
):
    def full(*_given: object, **_options: object) -> None:
        if is_wrapped:
            raise OutputError("cannot write 'x': No space left on device. Nothing was left behind.")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x")

    monkeypatch.setattr(module, name, full)
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == 1
    (line,) = result.stderr.strip().splitlines()
    assert "no space left on device" in line.lower()
    assert said in line
    assert "Make room first" in line
    assert ("left behind" in line) is False


def test_what_a_file_says_of_itself_is_kept_and_not_said_twice(monkeypatch):
    def full(*_given: object, **_options: object) -> None:
        raise OutputError("cannot write 'x': No space left on device. What is finished is kept.")

    monkeypatch.setattr(capturing, "capture", full)
    result = CliRunner().invoke(main, list(COMMANDS[0][2]))
    assert result.stderr.strip().endswith("What is finished is kept.")
