"""Quantize and evaluate drafts x recipes x domains as jobs, and compare the results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quantdraft.checkpoints.tensors.loading import resolve_model
from quantdraft.common.files import write_json
from quantdraft.common.locks import sole_writer
from quantdraft.common.progress import bar
from quantdraft.errors import OptionError, TrafficError
from quantdraft.quantize.recipe_changes import load_all_changed, tell_unchanged
from quantdraft.record import RECORD_FILE, Evaluation, read_evaluation
from quantdraft.record.wording import counted
from quantdraft.report import COMPARE_AGAIN, COMPARISON_FILE, render_comparison, where
from quantdraft.workflows.compare import compare
from quantdraft.workflows.sweep.grid import (
    Cell,
    SweepSettings,
    calibrates_on_traffic,
    claim_output,
    expand_sweeps,
    grid,
    with_absolute_paths,
)
from quantdraft.workflows.sweep.jobs import ApplyJob, Job, Outcome
from quantdraft.workflows.sweep.local import run_local
from quantdraft.workflows.sweep.ray_cluster import Resources, run_on_ray

SWEEP_FILE = "sweep.json"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class SweepResult:
    """The cells of a sweep; one that failed has its reason in `failed`, by the job's name."""

    cells: tuple[Cell, ...]
    failed: dict[str, str] = field(default_factory=dict)


def sweep(settings: SweepSettings, say: Say = lambda line: None) -> SweepResult:
    """Quantize and evaluate every cell of the grid, and compare the results.

    Cells that an earlier sweep into the same output finished, from the same inputs and versions,
    are not computed again. Writes `sweep.json` and one comparison (with `by_domain` one a domain).
    Raises OptionError, OutputExistsError, OutputBusyError, OutputError where the disk refuses, and
    what reading the inputs raises.
    """
    _check(settings)
    with sole_writer(settings.output, is_inside=True):
        names = ("drafts", "recipes", "traffic_path", "calibration", "by_domain")
        # Who computes the grid is no part of it.
        wanted = {name: str(getattr(settings, name)) for name in names}
        if settings.changes:
            wanted["changes"] = str(dict(settings.changes))
        if how := settings.evaluations.read.as_record():
            wanted["read"] = str(how)
        claim_output(settings.output, wanted, "this sweep", settings.force)
        return _run_grid(settings, say)


def _run_grid(settings: SweepSettings, say: Say) -> SweepResult:
    cells, jobs = grid(settings if settings.executor == "local" else with_absolute_paths(settings))
    to_make = counted(len(jobs) - len(cells), "candidate")
    say(f"{counted(len(cells), 'evaluation')}, {to_make} to make: {settings.output}")
    if settings.changes:
        tell_unchanged(expand_sweeps(settings.recipes), settings.changes, say)
    outcomes = _run(settings, jobs)
    failed = {o.name: o.error for o in outcomes.values() if o.error is not None}
    result = SweepResult(tuple(cells), failed)
    write_json(settings.output / SWEEP_FILE, record(result))
    for line in _summarize(outcomes, jobs):
        say(line)
    for directory, runs in _comparisons(settings, result):
        say(render_comparison(compare(runs, directory, force=True)))
        say(where(directory, COMPARISON_FILE, COMPARE_AGAIN))
    return result


def record(result: SweepResult) -> dict[str, Any]:
    """Return the results without times of day and places: equal sweeps have equal records."""
    rows = []
    for cell in result.cells:
        row: dict[str, Any] = {"draft": cell.draft, "recipe": cell.recipe, "domain": cell.domain}
        error = result.failed.get(cell.job)
        found = None if error is not None else read_evaluation(cell.run_dir / RECORD_FILE)
        rows.append(row | {"error": error} | ({} if found is None else _figures(found)))
    return {"schema_version": 1, "cells": rows}


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    speedup = evaluation.speedup_over_baseline
    return {
        "decision": evaluation.verdict.decision,
        "acceptance": [asdict(point) for point in evaluation.acceptance],
        "speedup_over_baseline": None if speedup is None else asdict(speedup),
    }


def _check(settings: SweepSettings) -> None:
    if not settings.drafts or not settings.recipes:
        raise OptionError("a sweep needs at least one --draft and one of --recipes.")
    if settings.by_domain and calibrates_on_traffic(settings):
        raise OptionError(
            "--by-domain evaluates on all of the traffic: calibrate on another file, or recipes "
            "are judged on what they were calibrated with."
        )
    only_ray = {"--ray-address": settings.ray_address, "--shared": settings.is_shared}
    given = [name for name, value in only_ray.items() if value]
    if settings.executor == "local" and given:
        raise OptionError(f"{given[0]} needs --executor ray.")
    _check_inputs(settings)


def _check_inputs(settings: SweepSettings) -> None:
    """Raise one error for a wrong name, before any cell is computed."""
    load_all_changed(expand_sweeps(settings.recipes), settings.changes)
    for draft in settings.drafts:
        resolve_model(draft)
    if not settings.traffic_path.is_file():
        raise TrafficError(f"no such file: '{settings.traffic_path}'. Give traffic from `capture`.")


def _run(settings: SweepSettings, jobs: Sequence[Job]) -> dict[str, Outcome]:
    logs = settings.output / "logs"
    with bar(len(jobs), "sweep", "job") as advance:
        if settings.executor == "local":
            return run_local(jobs, logs, lambda outcome: advance(1))
        return run_on_ray(
            jobs,
            logs,
            lambda outcome: advance(1),
            address=settings.ray_address,
            resources=_resources(settings),
            is_shared=settings.is_shared,
        )


def _resources(settings: SweepSettings) -> Resources:
    memory = None if settings.memory_gb is None else int(settings.memory_gb * 1e9)
    shared = settings.evaluations
    timed = not shared.timing.no_latency and settings.target is not None
    alone = None if timed else 1.0
    cpus = settings.cpus or shared.threads or alone
    return Resources(cpus, settings.gpus, memory)


def _summarize(outcomes: dict[str, Outcome], jobs: Sequence[Job]) -> Iterator[str]:
    """Yield a line for each job that was not computed, with the reason."""
    num_kept = sum(outcome.was_done for outcome in outcomes.values())
    if num_kept:
        yield f"{num_kept} of {len(jobs)} jobs were done before."
    for job in jobs:
        error = outcomes[job.name].error
        if error is not None and isinstance(job, ApplyJob):
            yield f"{job.name.removeprefix('apply-')}: {error}"
        elif error is not None and outcomes[job.needs or job.name].error is None:
            yield f"{job.name}: {error}"


def _comparisons(settings: SweepSettings, result: SweepResult) -> Iterator[tuple[Path, list[Path]]]:
    """Return the directory of each comparison and its runs: one, or one for each domain."""
    done = [cell for cell in result.cells if cell.job not in result.failed]
    place = settings.output / "comparison"
    for traffic in dict.fromkeys(cell.traffic for cell in done):
        runs = [cell.run_dir for cell in done if cell.traffic == traffic]
        yield (place / traffic.stem if settings.by_domain else place), runs
