"""The pages of a record: rows in JSON, Markdown, one HTML page, terminal text."""

from __future__ import annotations

from pathlib import Path

from quantdraft.common.files import write_json, write_text
from quantdraft.record import Bench, ComparedRuns, Evaluation
from quantdraft.report.blocks import Document
from quantdraft.report.charts import drawing
from quantdraft.report.comparison import comparison_document
from quantdraft.report.evaluation import document
from quantdraft.report.sections.bench import bench_document
from quantdraft.report.views import html, markdown, terminal
from quantdraft.report.views.plain import plain

ROWS_FILE = "report.json"
HTML_FILE = "report.html"
BENCH_RECORD_FILE = "bench.json"
COMPARISON_FILE = "comparison.json"


def write_report(evaluation: Evaluation, run_dir: Path) -> None:
    """Write report.json, report.md with its figures, and report.html beside the record."""
    write_document(document(evaluation), run_dir)


def render_terminal(evaluation: Evaluation) -> str:
    """Return the report as text, verdict first."""
    return terminal.render(document(evaluation))


def render_verdict(evaluation: Evaluation) -> str:
    """Return the verdict, its reason and the numbers under it: what `evaluate` prints."""
    return terminal.brief(document(evaluation))


def write_bench(bench: Bench, output_dir: Path) -> None:
    """Write bench.json, the record, and its views bench.md and bench.html."""
    write_json(output_dir / BENCH_RECORD_FILE, bench)
    _write_pages(bench_document(bench), output_dir, "bench")


def render_bench(bench: Bench) -> str:
    """Return the tables of a bench as text."""
    return terminal.render(bench_document(bench))


def write_comparison(compared: ComparedRuns, output_dir: Path) -> None:
    """Write comparison.json, the record, and the same views as of one evaluation."""
    write_json(output_dir / COMPARISON_FILE, compared.comparison)
    write_document(comparison_document(compared), output_dir)


def render_comparison(compared: ComparedRuns) -> str:
    """Return the comparison as text for a terminal."""
    return terminal.render(comparison_document(compared))


def write_document(built: Document, output_dir: Path) -> None:
    """Write report.json, report.md, its figures and report.html, each whole or not at all."""
    write_json(output_dir / ROWS_FILE, plain(built))
    _write_pages(built, output_dir, "report")


def _write_pages(built: Document, output_dir: Path, name: str) -> None:
    """Write name.md with its figures, and name.html."""
    for old in (output_dir / markdown.FIGURES_DIR).glob("*.svg"):
        old.unlink()
    for chart in built.charts:
        path = output_dir / markdown.FIGURES_DIR / f"{chart.name}.svg"
        write_text(path, drawing.svg_file(chart.spec, chart.title))
    write_text(output_dir / f"{name}.md", markdown.render(built))
    write_text(output_dir / f"{name}.html", html.render(built))
