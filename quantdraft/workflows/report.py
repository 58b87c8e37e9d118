"""report: the record of a run or of a bench, read and shown again."""

from __future__ import annotations

from pathlib import Path

from quantdraft.errors import DrawingError, OutputError
from quantdraft.judge.analysis import analysed, analysed_bench
from quantdraft.record import RECORD_FILE, Bench, Evaluation, read_bench, read_evaluation
from quantdraft.report import (
    BENCH_PAGE,
    BENCH_RECORD_FILE,
    HTML_FILE,
    render_bench,
    render_terminal,
    write_bench_pages,
    write_report,
)
from quantdraft.workflows.compare import record_file


def read_run(run: str | Path) -> Evaluation:
    """Return the record of a run directory or file; the judge fills in what an older one lacks."""
    return analysed(read_evaluation(record_file(run)))


def read_shown(path: Path) -> Evaluation | Bench:
    """Return the record of a run or of a bench, by its directory or its file."""
    is_bench = path.name == BENCH_RECORD_FILE
    if path.is_dir() and not (path / RECORD_FILE).exists():
        is_bench = (path / BENCH_RECORD_FILE).exists()
    if not is_bench:
        return read_run(path)
    return analysed_bench(read_bench(path / BENCH_RECORD_FILE if path.is_dir() else path))


def shown(record: Evaluation | Bench) -> str:
    """Return the record as text for a terminal."""
    return render_terminal(record) if isinstance(record, Evaluation) else render_bench(record)


def drawn_anew(record: Evaluation | Bench, output_dir: Path) -> Path | DrawingError | OutputError:
    """Return the HTML page, written again with the others, or why it cannot be drawn."""
    try:
        if isinstance(record, Bench):
            write_bench_pages(record, output_dir)
            return output_dir / BENCH_PAGE
        write_report(record, output_dir)
    except (DrawingError, OutputError) as error:
        return error
    return output_dir / HTML_FILE
