"""An evaluation as rows in JSON, Markdown, one HTML page and terminal text: views of one record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quantdraft.common.files import write_json, write_text
from quantdraft.errors import OutputExistsError
from quantdraft.record import RECORD_FILE, Bench, Evaluation, read_evaluation
from quantdraft.report.blocks import Document
from quantdraft.report.charts import drawing
from quantdraft.report.comparison import comparison
from quantdraft.report.evaluation import document
from quantdraft.report.sections.bench import bench_document
from quantdraft.report.views import html, markdown, terminal
from quantdraft.report.views.plain import plain

ROWS_FILE = "report.json"
HTML_FILE = "report.html"
BENCH_RECORD_FILE = "bench.json"


def write_report(evaluation: Evaluation, run_dir: Path) -> None:
    """Write report.json, report.md with its figures, and report.html beside the record."""
    write_document(document(evaluation), run_dir)


def render_terminal(evaluation: Evaluation) -> str:
    """The report as text, verdict first."""
    return terminal.render(document(evaluation))


def render_verdict(evaluation: Evaluation) -> str:
    """The verdict, its reason and the numbers under it: what `evaluate` prints."""
    return terminal.brief(document(evaluation))


def write_bench(bench: Bench, output_dir: Path) -> None:
    """Write bench.json, the record, and its views bench.md and bench.html."""
    write_json(output_dir / BENCH_RECORD_FILE, bench)
    _write_pages(bench_document(bench), output_dir, "bench")


def render_bench(bench: Bench) -> str:
    """The tables as plain text."""
    return terminal.render(bench_document(bench))


def write_comparison(evaluations: Sequence[Evaluation], output_dir: Path) -> None:
    """Write the same files for several recipes side by side.

    Raises PairingError when the runs differ in traffic, acceptance rule, target or baseline.
    """
    write_document(comparison(evaluations), output_dir)


def compare(runs: Sequence[Path], output: Path, *, force: bool = False) -> str:
    """Read the records of run directories, write their comparison, return it for a terminal."""
    if not force and (output / HTML_FILE).exists():
        raise OutputExistsError(
            f"output '{output}' holds a report. Give another --output, or --force to replace it."
        )
    records = [run / RECORD_FILE if run.is_dir() else run for run in runs]
    built = comparison([read_evaluation(record) for record in records])
    write_document(built, output)
    return terminal.render(built)


def write_document(built: Document, output_dir: Path) -> None:
    """Write report.json, report.md, its figures and report.html, each whole or not at all."""
    write_json(output_dir / ROWS_FILE, plain(built))
    _write_pages(built, output_dir, "report")


def _write_pages(built: Document, output_dir: Path, name: str) -> None:
    """name.md with its figures, and name.html."""
    for old in (output_dir / markdown.FIGURES_DIR).glob("*.svg"):
        old.unlink()
    for chart in built.charts:
        path = output_dir / markdown.FIGURES_DIR / f"{chart.name}.svg"
        write_text(path, drawing.svg_file(chart.spec, chart.title))
    write_text(output_dir / f"{name}.md", markdown.render(built))
    write_text(output_dir / f"{name}.html", html.render(built))
