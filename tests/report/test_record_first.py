"""The record comes first: whatever befalls the chart library, text and record are there."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantdraft import report
from quantdraft.common.progress import show_progress
from quantdraft.errors import DrawingError
from quantdraft.judge.compare import compare_runs
from quantdraft.report.charts import drawing, renderer, style
from tests.example_evaluation import evaluation, gridded
from tests.pages import render_terminal, write_bench, write_report
from tests.report.test_bench import bench, point

SPEC = {"mark": "point", "data": {"values": [{"a": 1}]}, "encoding": {"x": {"field": "a"}}}


@pytest.fixture(autouse=True)
def _own_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test starts a drawing process of its own, and no picture drawn before is taken."""
    drawing._drawn.cache_clear()
    monkeypatch.setattr(renderer, "_started", [])
    yield
    renderer.end()


@pytest.fixture
def abort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chart library that ends its process, as its engine does where memory ends."""
    program = tmp_path / "abort.py"
    program.write_text(
        "import os, sys\nprint('# Fatal process out of memory: heap', file=sys.stderr)\n"
        "input()\nos.abort()\n"
    )
    monkeypatch.setattr(renderer, "PROGRAM", program)


@pytest.fixture
def no_altair(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "altair", None)
    style.altair.cache_clear()
    yield
    style.altair.cache_clear()


@pytest.mark.usefixtures("abort")
def test_an_abort_of_the_chart_library_is_one_line_and_the_record_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.html").write_text("of an older record")
    with show_progress("compare"):
        report.write_comparison(compare_runs([evaluation("a"), evaluation("b")]), tmp_path)
    assert (tmp_path / "comparison.json").is_file()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("report.h")]
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "SIGABRT" in said
    assert "Fatal process out of memory: heap" in said
    assert "`quantdraft compare` draws its page" in said
    last = report.where(tmp_path, "comparison.json", "quantdraft compare")
    assert last.startswith(f"Record: {tmp_path / 'comparison.json'}")


@pytest.mark.usefixtures("abort")
def test_a_bench_without_a_page_is_named_by_the_directory_that_it_will_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, output = bench(point()), tmp_path / "D bench"
    with show_progress("bench"):
        write_bench(made, tmp_path, output)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"The record is whole: '{output / 'bench.json'}'." in said
    assert f"`quantdraft report '{output}'` draws its page" in said


def test_a_process_without_room_to_reserve_is_an_error_and_the_next_one_draws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`ulimit -v 40000000`, as clusters set it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (40_000_000 << 10, hard))
    try:
        with pytest.raises(DrawingError, match=r"ended its process \(SIG.*ulimit -v"):
            drawing.svg(SPEC)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert drawing.svg(SPEC).startswith("<svg")


def test_an_error_of_the_library_keeps_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DrawingError, match="the chart library says"):
        drawing.svg({"mark": "no such mark"})
    before = renderer._started[0]
    assert drawing.svg(SPEC).startswith("<svg")
    assert renderer._started == [before]


def test_a_drawing_that_does_not_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "waits.py"
    program.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(renderer, "PROGRAM", program)
    monkeypatch.setattr(renderer, "MAX_SECONDS", 0.1)
    with pytest.raises(DrawingError, match="SIGKILL"):
        drawing.svg(SPEC)


@pytest.mark.usefixtures("no_altair")
def test_without_altair_the_text_is_whole_and_the_page_says_what_is_missing(
    tmp_path: Path,
) -> None:
    text = render_terminal(gridded())
    style.altair.cache_clear()
    sys.modules.pop("altair")
    assert text == render_terminal(gridded())
    sys.modules["altair"] = None  # type: ignore[assignment]
    style.altair.cache_clear()
    with pytest.raises(DrawingError, match="pip install altair"):
        write_report(gridded(), tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_without_vl_convert_the_page_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(DrawingError, match="pip install vl-convert-python"):
        write_report(evaluation(), tmp_path)
