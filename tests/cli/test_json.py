"""--json prints one document on stdout and nothing else; without it, a verdict takes 15 lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from quantdraft.cli import main
from quantdraft.engines.vllm import environment
from quantdraft.engines.vllm.environment import Environment
from quantdraft.report.charts import drawing, renderer
from tests.cli.test_help import COMMANDS
from tests.conftest import Pair

PRINTS_A_SCRIPT = {("completion",)}
QUICK = ("--no-latency", "--live-prompts", "0", "-k", "1-2")


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


def document(*arguments: object) -> Any:
    """What --json prints: the whole of stdout is one JSON value."""
    return json.loads(run(*arguments, "--json").stdout)


@pytest.fixture(scope="module")
def traffic(tiny_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("json") / "traffic.jsonl"
    asked = ("-t", tiny_pair.target, "-p", tiny_pair.prompts, "-o", path, "--max-new-tokens", 16)
    printed = document("capture", *asked)
    assert printed["output"] == str(path)
    assert printed["num_responses"] == 12
    assert printed["num_tokens"] <= 12 * 16
    return path


@pytest.fixture(scope="module")
def candidate(tiny_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("json") / "draft-int8"
    printed = document("apply", "-r", "int8", "-d", tiny_pair.draft, "-o", path)
    assert printed == json.loads((path / "quantdraft.json").read_text())
    return path


@pytest.fixture(scope="module")
def run_dir(tiny_pair: Pair, traffic: Path, candidate: Path) -> Path:
    path = candidate.with_name("run")
    given = (candidate, "-t", tiny_pair.target, "--traffic", traffic, "-o", path, *QUICK)
    assert document("evaluate", *given) == json.loads((path / "evaluation.json").read_text())
    return path


def test_every_command_that_prints_results_has_the_option():
    for names, command in COMMANDS.items():
        if names and names not in PRINTS_A_SCRIPT:
            assert "--json" in {name for each in command.params for name in each.opts}, names


def test_without_models(tiny_pair: Pair):
    assert {each["kind"] for each in document("recipes")} == {"recipe", "sweep"}
    assert document("recipes", "show", "int4")["name"] == "int4"
    assert document("plan", "-a", "0.7", "-c", "0.1")["kind"] == "prediction"
    printed = document("check", "-t", tiny_pair.target, "-d", tiny_pair.draft)
    assert printed["is_compatible"] is True
    assert set(document("engines")) == set(document("engines", "list")) == {"vllm"}


def test_an_installed_engine(monkeypatch, tmp_path: Path):
    def install(directory: Path, *, force: bool, say: Any) -> Environment:
        say("making it")
        return Environment(str(directory / "bin" / "python"), "0.32", "cpu", ())

    monkeypatch.setattr(environment, "install_vllm", install)
    printed = document("engines", "install", "vllm", "--dir", tmp_path)
    assert printed["vllm"]["version"] == "0.32"


def test_views_of_a_run(run_dir: Path, tmp_path: Path):
    record = json.loads((run_dir / "evaluation.json").read_text())
    assert document("report", run_dir)["verdict"] == record["verdict"]
    shown = document("compare", run_dir, "-o", tmp_path / "comparison")
    assert shown == json.loads((tmp_path / "comparison" / "comparison.json").read_text())


def test_an_export(tiny_pair: Pair, candidate: Path, run_dir: Path, tmp_path: Path):
    given = ("-e", "vllm", "-t", tiny_pair.target, "--run", run_dir, "-o", tmp_path / "served")
    printed = document("export", candidate, *given)
    assert (printed["output"], printed["engine"]) == (str(tmp_path / "served"), "vllm")
    assert any("vllm serve" in line for line in printed["said"])


@pytest.mark.slow
def test_grids(tiny_pair: Pair, traffic: Path, tmp_path: Path):
    given = ("-d", tiny_pair.draft, "-t", tiny_pair.target, "--traffic", traffic, *QUICK)
    swept = document("sweep", *given, "-r", "int8", "-o", tmp_path / "sweep")
    assert swept == json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    chosen = document("select", *given, "-r", "int8", "-o", tmp_path / "selection")
    assert chosen == json.loads((tmp_path / "selection" / "selection.json").read_text())


@pytest.mark.usefixtures("short_timing")
def test_timings(candidate: Path, tmp_path: Path):
    points = ("--batch-sizes", 1, "--context-lengths", 16, "-m", 1, "--seconds", 0.05)
    printed = document("bench", candidate, *points, "--mode", "eager", "-o", tmp_path / "bench")
    assert printed == json.loads((tmp_path / "bench" / "bench.json").read_text())


@pytest.mark.usefixtures("short_timing")
def test_the_verdict_and_its_reason_take_fifteen_lines(
    tiny_pair: Pair, traffic: Path, candidate: Path, tmp_path: Path
):
    given = ("-t", tiny_pair.target, "--traffic", traffic, "-o", tmp_path / "run", "-k", "2")
    timed = ("--latency-seconds", "0.2", "--live-prompts", "1", "--mode", "eager")
    printed = run("evaluate", candidate, *given, *timed).stdout.splitlines()
    record = json.loads((tmp_path / "run" / "evaluation.json").read_text())["verdict"]
    assert len(printed) <= 15
    assert printed[0].startswith(record["decision"].upper())
    reason = record["summary"].removeprefix(f"{record['decision']}: ")
    assert reason[1:80] in " ".join(printed)  # a sentence there: its first letter may be large
    assert printed[-2].startswith("Next: quantdraft ")
    assert printed[-1] == f"Report: {tmp_path / 'run' / 'report.html'}"


def test_a_page_that_cannot_be_drawn_costs_neither_record_nor_verdict(
    tiny_pair: Pair,
    traffic: Path,
    candidate: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    path = tmp_path / "run"
    given = (candidate, "-t", tiny_pair.target, "--traffic", traffic, "-o", path, *QUICK)
    (tmp_path / "aborts.py").write_text("import os\ninput()\nos.abort()\n")
    with monkeypatch.context() as patch:
        patch.setattr(renderer, "PROGRAM", tmp_path / "aborts.py")
        patch.setattr(renderer, "_started", [])
        drawing._drawn.cache_clear()
        done = run("evaluate", *given)
    assert not (path / "report.html").exists()
    assert "SIGABRT" in done.stderr
    last = f"Record: {path / 'evaluation.json'} (no page could be drawn: `quantdraft report {path}`"
    assert done.stdout.splitlines()[-1].startswith(last)
    again = CliRunner().invoke(main, ["evaluate", *map(str, given)])
    assert (again.exit_code, "holds a finished run" in again.output) == (1, True)
    assert run("report", path).stdout.endswith(f"Report: {path / 'report.html'}\n")


@pytest.mark.slow
def test_the_demo(tmp_path: Path):
    printed = document("demo", "-r", "int8", "--num-prompts", "2", "-o", tmp_path / "demo")
    assert [each["recipe"] for each in printed["verdicts"]] == ["int8"]
