"""report: the record of a run, read and shown again."""

from __future__ import annotations

from pathlib import Path

from quantdraft.judge.analysis import analysed
from quantdraft.record import Evaluation, read_evaluation
from quantdraft.workflows.compare import record_file


def read_run(run: str | Path) -> Evaluation:
    """Return the record of a run directory or file; the judge fills in what an older one lacks."""
    return analysed(read_evaluation(record_file(run)))
