"""The pages of a record: rows in JSON, Markdown, one HTML page, terminal text.

A record is written before its pages. Pages that cannot be drawn are a DrawingError, and a command
that measured says so by `try_pages` and ends well.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

from quantdraft.common.files import write_json, write_text
from quantdraft.common.progress import say
from quantdraft.errors import DrawingError, OutputError
from quantdraft.record import Bench, ComparedRuns, Evaluation
from quantdraft.record.wording import whole_sentence
from quantdraft.report.blocks import Document
from quantdraft.report.charts import drawing
from quantdraft.report.comparison import comparison_document
from quantdraft.report.evaluation import document
from quantdraft.report.sections.bench import bench_document
from quantdraft.report.sections.by_k import acceptance_tables
from quantdraft.report.views import html, markdown, tables, terminal
from quantdraft.report.views.plain import plain

ROWS_FILE = "report.json"
HTML_FILE = "report.html"
BENCH_RECORD_FILE = "bench.json"
BENCH_PAGE = "bench.html"
COMPARISON_FILE = "comparison.json"
COMPARE_AGAIN = "quantdraft compare"  # of the same runs, into the same output


def try_pages(write_pages: Callable[[], None], record: Path, again: str) -> None:
    """Write the pages of a record; where they cannot be drawn, say so in one line and go on.

    again: the command that draws them from the record
    """
    whole = f"The record is whole: '{record}'. `{again}` draws its page."
    try:
        write_pages()
    except KeyboardInterrupt:
        say(f"Stopped while the page was drawn. {whole}")
        raise
    except (DrawingError, OutputError) as error:
        say(f"No page was drawn: {whole_sentence(str(error))} {whole}")


def where(output_dir: Path, record: str, again: str, page: str = HTML_FILE) -> str:
    """Return the line that says where the page lies, or that there is none."""
    if (output_dir / page).is_file():
        return f"Report: {output_dir / page}"
    return f"Record: {output_dir / record} (no page could be drawn: `{again}` tries again)"


def report_again(output_dir: Path) -> str:
    """Return the command that draws the pages of a record that lies there."""
    return f"quantdraft report {shlex.quote(str(output_dir))}"


def remove_pages(output_dir: Path, name: str = "report") -> None:
    """Remove the pages of a record that is about to be replaced."""
    for path in (ROWS_FILE, f"{name}.md", f"{name}.html"):
        (output_dir / path).unlink(missing_ok=True)
    shutil.rmtree(output_dir / markdown.FIGURES_DIR, ignore_errors=True)


def write_report(evaluation: Evaluation, run_dir: Path) -> None:
    """Write report.json, report.md with its figures, and report.html beside the record."""
    write_document(document(evaluation), run_dir)


def render_terminal(evaluation: Evaluation) -> str:
    """Return the report as text, verdict first."""
    return terminal.render(document(evaluation))


def render_verdict(evaluation: Evaluation) -> str:
    """Return the verdict, its reason and the numbers under it: what `evaluate` prints."""
    return terminal.brief(document(evaluation))


def render_acceptance(evaluation: Evaluation) -> str:
    """Return acceptance by k and by domain: what `evaluate` prints where nothing was timed."""
    return "\n\n".join(map(tables.table, acceptance_tables(evaluation)))


def write_bench(bench: Bench, output_dir: Path, final_dir: Path | None = None) -> None:
    """Write bench.json, the record, and then its views bench.md and bench.html.

    final_dir: what `output_dir`, a temporary one, will be called
    """
    write_json(output_dir / BENCH_RECORD_FILE, bench)
    named = final_dir or output_dir
    record = named / BENCH_RECORD_FILE
    try_pages(lambda: write_bench_pages(bench, output_dir), record, report_again(named))


def write_bench_pages(bench: Bench, output_dir: Path) -> None:
    """Write the views of a bench beside its record."""
    _write_pages(bench_document(bench), output_dir, "bench")


def render_bench(bench: Bench) -> str:
    """Return the tables of a bench as text."""
    return terminal.render(bench_document(bench))


def write_comparison(compared: ComparedRuns, output_dir: Path) -> None:
    """Write comparison.json, the record, and then the same views as of one evaluation."""
    remove_pages(output_dir)
    record = output_dir / COMPARISON_FILE
    write_json(record, compared.comparison)
    try_pages(
        lambda: write_document(comparison_document(compared), output_dir), record, COMPARE_AGAIN
    )


def render_comparison(compared: ComparedRuns) -> str:
    """Return the comparison as text for a terminal."""
    return terminal.render(comparison_document(compared))


def write_document(built: Document, output_dir: Path) -> None:
    """Write report.json, report.md, its figures and report.html, each whole or not at all."""
    write_json(output_dir / ROWS_FILE, plain(built))
    _write_pages(built, output_dir, "report")


def _write_pages(built: Document, output_dir: Path, name: str) -> None:
    """Write name.md with its figures, and name.html; nothing before all of it is drawn."""
    try:
        figures = {c.name: drawing.svg_file(c.spec, c.title) for c in built.charts}
        pages = {f"{name}.md": markdown.render(built), f"{name}.html": html.render(built)}
    except MemoryError as error:
        raise DrawingError("memory ended while the page was drawn.") from error
    for old in (output_dir / markdown.FIGURES_DIR).glob("*.svg"):
        old.unlink()
    for chart, drawn in figures.items():
        write_text(output_dir / markdown.FIGURES_DIR / f"{chart}.svg", drawn)
    for page, text in pages.items():
        write_text(output_dir / page, text)
