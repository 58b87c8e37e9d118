"""Jobs in this process, one after another: what a timing needs, and what one machine can do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from quantdraft.common.progress import step
from quantdraft.workflows.sweep.jobs import Job, Outcome, perform

Told = Callable[[Outcome], None]


def run_local(jobs: Sequence[Job], logs: Path, told: Told) -> dict[str, Outcome]:
    """Every job after the one it needs; `told` hears of each as it ends."""
    outcomes: dict[str, Outcome] = {}
    for job in jobs:
        failed = outcomes.get(job.needs or "")
        if failed is not None and failed.error is not None:
            outcome = Outcome(job.name, failed.error)
        else:
            with step(job.name):
                outcome = perform(job, lambda path: path, logs / f"{job.name}.log")
        outcomes[job.name] = outcome
        told(outcome)
    return outcomes
