"""The pages of hand-made records: the judge fills in what they lack, as the commands have it do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from quantdraft import report
from quantdraft.judge.analysis import analysed, analysed_bench
from quantdraft.judge.compare import compare_runs
from quantdraft.record import Bench, Evaluation
from quantdraft.report import evaluation as evaluation_page
from quantdraft.report.blocks import Document
from quantdraft.report.comparison import comparison_document
from quantdraft.report.sections import bench as bench_page


def document(made: Evaluation) -> Document:
    """Return the page of one evaluation."""
    return evaluation_page.document(analysed(made))


def comparison(made: Sequence[Evaluation]) -> Document:
    """Return the page of several."""
    return comparison_document(compare_runs(made))


def bench_document(made: Bench) -> Document:
    """Return the page of a bench."""
    return bench_page.bench_document(analysed_bench(made))


def render_terminal(made: Evaluation) -> str:
    """Return the page of one evaluation as text."""
    return report.render_terminal(analysed(made))


def render_verdict(made: Evaluation) -> str:
    """Return what `evaluate` prints."""
    return report.render_verdict(analysed(made))


def render_bench(made: Bench) -> str:
    """Return the page of a bench as text."""
    return report.render_bench(analysed_bench(made))


def write_report(made: Evaluation, run_dir: Path) -> None:
    """Write the pages of one evaluation."""
    report.write_report(analysed(made), run_dir)


def write_comparison(made: Sequence[Evaluation], output_dir: Path) -> None:
    """Write the pages of several."""
    report.write_comparison(compare_runs(made), output_dir)


def write_bench(made: Bench, output_dir: Path, final_dir: Path | None = None) -> None:
    """Write the record of a bench and its pages."""
    report.write_bench(analysed_bench(made), output_dir, final_dir)


def require_valid_charts(build: Callable[..., Document], record: Any) -> int:
    """Build a page with every chart checked against Vega-Lite's schema; return their number."""
    checked = build.__wrapped__(record)  # type: ignore[attr-defined]
    assert checked.charts == build(record).charts
    return len(checked.charts)
