"""report: the record of a run, read and shown again."""

from __future__ import annotations

from pathlib import Path

from quantdraft.judge.analysis import analysed
from quantdraft.record import RECORD_FILE, Evaluation, read_evaluation


def read_run(run: Path) -> Evaluation:
    """Return the record of a run directory or file; the judge fills in what an older one lacks."""
    return analysed(read_evaluation(run / RECORD_FILE if run.is_dir() else run))
