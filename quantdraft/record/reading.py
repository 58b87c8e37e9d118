"""Read the records on the disk: types, ranges, and what must hold between fields."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from quantdraft.common.files import read_record
from quantdraft.errors import CheckpointError
from quantdraft.record.consistency.problems import first_problem
from quantdraft.record.evaluation import (
    BENCH_SCHEMA_VERSION,
    EVALUATION_SCHEMA_VERSION,
    Bench,
    Evaluation,
)

Read = TypeVar("Read", Evaluation, Bench)


def read_evaluation(path: Path) -> Evaluation:
    """Read a record; another schema version, a foreign or a changed file is a clear error."""
    return _consistent(read_record(path, Evaluation, EVALUATION_SCHEMA_VERSION), path)


def read_bench(path: Path) -> Bench:
    """Read a bench.json; another schema version, a foreign or a changed file is a clear error."""
    return _consistent(read_record(path, Bench, BENCH_SCHEMA_VERSION), path)


def _consistent(record: Read, path: Path) -> Read:
    problem = first_problem(record)
    if problem is None:
        return record
    where, wrong = problem
    raise CheckpointError(
        f"'{path}': {where}: {wrong}. The record was changed after it was written: restore it, or "
        "run the command that made it again."
    )
