"""Run jobs in this process, one after another, so that no two are timed side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quantdraft.common.progress import step
from quantdraft.workflows.sweep.jobs import Job, OnOutcome, Outcome, perform


def run_local(jobs: Sequence[Job], logs: Path, on_outcome: OnOutcome) -> dict[str, Outcome]:
    """Run every job after the one it needs. on_outcome: called as each ends."""
    outcomes: dict[str, Outcome] = {}
    for job in jobs:
        failed = outcomes.get(job.needs or "")
        if failed is not None and failed.error is not None:
            outcome = Outcome(job.name, failed.error)
        else:
            with step(job.name):
                outcome = perform(job, lambda path: path, logs / f"{job.name}.log")
        outcomes[job.name] = outcome
        on_outcome(outcome)
    return outcomes
