"""compare: the records of several runs, read and held against each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quantdraft.errors import OutputExistsError
from quantdraft.judge.compare import compare_runs
from quantdraft.record import RECORD_FILE, ComparedRuns, read_evaluation
from quantdraft.report import HTML_FILE, write_comparison


def record_file(run: str | Path) -> Path:
    """Return the record of a run directory, or the file itself."""
    run = Path(run)
    return run / RECORD_FILE if run.is_dir() else run


def compare(runs: Sequence[str | Path], output: str | Path, *, force: bool = False) -> ComparedRuns:
    """Read the records of run directories, write their comparison and its pages, and return it.

    Raises OutputExistsError where a report is there already, and PairingError where two runs
    differ in traffic, acceptance rule, target or baseline.
    """
    output = Path(output)
    if not force and (output / HTML_FILE).exists():
        raise OutputExistsError(
            f"output '{output}' holds a report. Give another --output, or --force to replace it."
        )
    compared = compare_runs([read_evaluation(record_file(run)) for run in runs])
    write_comparison(compared, output)
    return compared
