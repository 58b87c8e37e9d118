"""An evaluation as Markdown, self-contained HTML and terminal text: views of one JSON record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quantdraft.errors import OutputExistsError
from quantdraft.files import write_json, write_text
from quantdraft.report import html, markdown, terminal
from quantdraft.report.bench_rows import bench_document
from quantdraft.report.blocks import Document
from quantdraft.report.comparison import comparison
from quantdraft.report.rows import document
from quantdraft.results import Bench, Evaluation, read_evaluation

RECORD_FILE = "evaluation.json"
MARKDOWN_FILE = "report.md"
HTML_FILE = "report.html"
BENCH_RECORD_FILE = "bench.json"
BENCH_MARKDOWN_FILE = "bench.md"


def write_report(evaluation: Evaluation, run_dir: Path) -> None:
    """Write report.md and report.html beside the record, each whole or not at all."""
    _write_pages(document(evaluation), run_dir)


def render_terminal(evaluation: Evaluation, is_whole: bool = True) -> str:
    """The report as plain text, verdict first; not `is_whole`: it and the advice alone."""
    return terminal.render(document(evaluation), is_whole)


def write_bench(bench: Bench, output_dir: Path) -> None:
    """Write bench.json, the record, and bench.md, a view of it."""
    write_json(output_dir / BENCH_RECORD_FILE, bench)
    write_text(output_dir / BENCH_MARKDOWN_FILE, markdown.render(bench_document(bench)))


def render_bench(bench: Bench) -> str:
    """The tables as plain text."""
    return terminal.render(bench_document(bench))


def write_comparison(evaluations: Sequence[Evaluation], output_dir: Path) -> None:
    """Write report.md and report.html of several recipes side by side.

    Raises PairingError when the runs differ in traffic, acceptance rule, target or baseline.
    """
    _write_pages(comparison(evaluations), output_dir)


def compare(runs: Sequence[Path], output: Path, *, force: bool = False) -> str:
    """Read the records of run directories, write their comparison, return it for a terminal."""
    if not force and (output / HTML_FILE).exists():
        raise OutputExistsError(
            f"output '{output}' holds a report. Give another --output, or --force to replace it."
        )
    records = [run / RECORD_FILE if run.is_dir() else run for run in runs]
    built = comparison([read_evaluation(record) for record in records])
    _write_pages(built, output)
    return terminal.render(built)


def _write_pages(built: Document, output_dir: Path) -> None:
    write_text(output_dir / MARKDOWN_FILE, markdown.render(built))
    write_text(output_dir / HTML_FILE, html.render(built))
