"""sweep: drafts x recipes x domains as jobs, done anywhere, kept by content, then compared."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from quantdraft.domains import split_by_domain
from quantdraft.errors import OptionError, OutputExistsError
from quantdraft.evaluation import RECORD_FILE
from quantdraft.executors.local import run_local
from quantdraft.executors.ray_cluster import Resources, run_on_ray
from quantdraft.files import write_json, write_text
from quantdraft.inputs import Settings
from quantdraft.jobs import ApplyJob, EvaluateJob, Job, Outcome
from quantdraft.models import resolve_model
from quantdraft.recipe import Recipe, bundled_sweep_names, load_recipe, load_sweep
from quantdraft.report import compare
from quantdraft.results import Evaluation, read_evaluation

RECORD = "sweep.json"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class SweepSettings:
    """What the user asked for; names and defaults are the command line's."""

    drafts: tuple[str, ...]
    recipes: tuple[str, ...]
    traffic_path: Path
    output: Path
    evaluation: Settings  # its candidate, baseline, traffic and output are each cell's own
    calibration: Path | None = None
    by_domain: bool = False
    executor: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    cpus: float | None = None
    gpus: float = 0.0
    memory_gb: float | None = None
    is_shared: bool = False
    force: bool = False

    @classmethod
    def of(cls, **options: Any) -> SweepSettings:
        """From the command line's names: what is not a sweep's own belongs to its evaluations."""
        own = {each.name for each in fields(cls)} & set(options)
        others = {name: value for name, value in options.items() if name not in own}
        evaluation = Settings(candidate="", **others)
        return cls(evaluation=evaluation, **{name: options[name] for name in own})


@dataclass(frozen=True, slots=True)
class Cell:
    """One draft under one recipe on one part of the traffic."""

    draft: str
    recipe: str
    domain: str | None  # None: the whole traffic
    traffic: Path
    job: str  # the evaluation's name
    run_dir: Path


@dataclass(frozen=True, slots=True)
class SweepResult:
    """What came of a sweep; a cell that failed has its reason in `failed`, by the job's name."""

    cells: tuple[Cell, ...]
    failed: dict[str, str] = field(default_factory=dict)


def sweep(settings: SweepSettings, say: Say = lambda line: None) -> SweepResult:
    """Quantize and evaluate every cell of the grid, and compare what came of them.

    Cells that an earlier sweep into the same output finished, from the same inputs and versions,
    are not computed again. Writes `sweep.json` and one comparison (with `by_domain` one a domain).
    Raises OptionError, OutputExistsError, and what reading the inputs raises.
    """
    _check(settings)
    _open_output(settings)
    cells, jobs = grid(settings)
    say(f"{len(cells)} evaluations, {len(jobs) - len(cells)} candidates to make: {settings.output}")
    outcomes = _run(settings, jobs)
    failed = {o.name: o.error for o in outcomes.values() if o.error is not None}
    result = SweepResult(tuple(cells), failed)
    write_json(settings.output / RECORD, record(result))
    for line in _ending(outcomes, jobs):
        say(line)
    for directory, runs in _comparisons(settings, result):
        say(compare(runs, directory, force=True))
        say(f"Report: {directory / 'report.html'}")
    return result


def grid(settings: SweepSettings) -> tuple[list[Cell], list[Job]]:
    """The cells, and their jobs: a candidate's comes before the evaluations that need it."""
    recipes = [load_recipe(name) for name in expanded(settings.recipes)]
    parts = _parts(settings)
    cells: list[Cell] = []
    jobs: list[Job] = []
    for draft, name in zip(settings.drafts, _names(settings.drafts), strict=True):
        local = str(resolve_model(draft))
        for recipe in recipes:
            made = _apply_job(settings, recipe, local, f"{name}-{recipe.name}")
            jobs.append(made)
            for domain, traffic in parts.items():
                job = _evaluate_job(settings, made, local, domain, traffic, name)
                jobs.append(job)
                cells.append(Cell(draft, recipe.name, domain, traffic, job.name, job.output))
    return cells, jobs


def expanded(names: Sequence[str]) -> tuple[str, ...]:
    """Recipes by name, each once; the name of a bundled sweep, `ladder`, stands for its recipes."""
    sweeps = bundled_sweep_names()
    found = [
        each for name in names for each in (load_sweep(name).recipes if name in sweeps else [name])
    ]
    return tuple(dict.fromkeys(found))


def record(result: SweepResult) -> dict[str, Any]:
    """What was found, without times of day and places: equal sweeps have equal records."""
    rows = []
    for cell in result.cells:
        row: dict[str, Any] = {"draft": cell.draft, "recipe": cell.recipe, "domain": cell.domain}
        error = result.failed.get(cell.job)
        found = None if error is not None else read_evaluation(cell.run_dir / RECORD_FILE)
        rows.append(row | {"error": error} | ({} if found is None else _figures(found)))
    return {"schema_version": 1, "cells": rows}


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    speedup = evaluation.operating_point.speedup_over_baseline
    return {
        "decision": evaluation.verdict.decision,
        "acceptance": [asdict(point) for point in evaluation.acceptance],
        "speedup_over_baseline": None if speedup is None else asdict(speedup),
    }


def _check(settings: SweepSettings) -> None:
    if not settings.drafts or not settings.recipes:
        raise OptionError("a sweep needs at least one --draft and one of --recipes.")
    calibration = settings.calibration
    if (
        settings.by_domain
        and calibration
        and calibration.resolve() == settings.traffic_path.resolve()
    ):
        raise OptionError(
            "--by-domain evaluates on all of the traffic: calibrate on another file, or recipes "
            "are judged on what they were calibrated with."
        )
    only_ray = {"--ray-address": settings.ray_address, "--shared": settings.is_shared}
    given = [name for name, value in only_ray.items() if value]
    if settings.executor == "local" and given:
        raise OptionError(f"{given[0]} needs --executor ray.")


def _open_output(settings: SweepSettings) -> None:
    """A directory may hold a sweep of the same grid, to go on with; another's needs --force."""
    path, wanted = settings.output / "settings.json", _identity(settings)
    if settings.output.exists() and not settings.force:
        known = path.read_text(encoding="utf-8") if path.is_file() else ""
        if known != wanted and any(settings.output.iterdir()):
            raise OutputExistsError(
                f"'{settings.output}' holds something else than this sweep. Give another --output, "
                "or --force to add to it."
            )
    write_text(path, wanted)


def _identity(settings: SweepSettings) -> str:
    """The grid as text; who computes it is no part of it."""
    parts = ("drafts", "recipes", "traffic_path", "calibration", "by_domain")
    return json.dumps({name: str(getattr(settings, name)) for name in parts}, indent=1)


def _parts(settings: SweepSettings) -> dict[str | None, Path]:
    """The traffic, whole or by domain: one file each."""
    if not settings.by_domain:
        return {None: settings.traffic_path}
    parts = split_by_domain(settings.traffic_path, settings.output / "traffic")
    return dict(parts.items())


def _names(drafts: Sequence[str]) -> list[str]:
    """A short name for each draft, no two alike."""
    names = [Path(draft).name for draft in drafts]
    return [
        name if names.count(name) == 1 else f"{name}-{number}"
        for number, name in enumerate(names, 1)
    ]


def _apply_job(settings: SweepSettings, recipe: Recipe, draft: str, name: str) -> ApplyJob:
    return ApplyJob(
        name=f"apply-{name}",
        recipe=recipe,
        draft=draft,
        calibration=settings.calibration,
        output=settings.output / "candidates" / name,
        device=settings.evaluation.device,
    )


def _evaluate_job(
    settings: SweepSettings,
    made: ApplyJob,
    draft: str,
    domain: str | None,
    traffic: Path,
    draft_name: str,
) -> EvaluateJob:
    whole = made.name.removeprefix("apply-")
    name = whole if domain is None else f"{whole}-{traffic.stem}"
    part = draft_name if domain is None else f"{draft_name}-{traffic.stem}"
    output = settings.output / "runs" / name
    own = replace(
        settings.evaluation,
        candidate=str(made.output),
        baseline=draft,
        traffic_path=traffic,
        output=output,
        shared_stages=settings.output / "shared" / part,
    )
    return EvaluateJob(name, own, output, made.name)


def _run(settings: SweepSettings, jobs: Sequence[Job]) -> dict[str, Outcome]:
    logs = settings.output / "logs"
    with _job_bar(len(jobs)) as told:
        if settings.executor == "local":
            return run_local(jobs, logs, told)
        return run_on_ray(
            jobs,
            logs,
            told,
            address=settings.ray_address,
            resources=_resources(settings),
            is_shared=settings.is_shared,
        )


def _resources(settings: SweepSettings) -> Resources:
    memory = None if settings.memory_gb is None else int(settings.memory_gb * 1e9)
    timed = not settings.evaluation.no_latency and settings.evaluation.target is not None
    alone = None if timed else 1.0
    cpus = settings.cpus or settings.evaluation.threads or alone
    return Resources(cpus, settings.gpus, memory)


@contextmanager
def _job_bar(total: int) -> Iterator[Callable[[Outcome], None]]:
    """One bar for the whole sweep, whatever the jobs themselves would show."""
    with tqdm(total=total, desc="sweep", unit="job", disable=not sys.stderr.isatty()) as shown:

        def told(outcome: Outcome) -> None:
            shown.set_postfix_str(
                outcome.name if outcome.error is None else f"{outcome.name} failed"
            )
            shown.update()

        yield told


def _ending(outcomes: dict[str, Outcome], jobs: Sequence[Job]) -> Iterator[str]:
    """What was not computed, and why."""
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
    """Where each comparison goes, and its runs: one, or one a domain."""
    done = [cell for cell in result.cells if cell.job not in result.failed]
    place = settings.output / "comparison"
    for traffic in dict.fromkeys(cell.traffic for cell in done):
        runs = [cell.run_dir for cell in done if cell.traffic == traffic]
        yield (place / traffic.stem if settings.by_domain else place), runs
