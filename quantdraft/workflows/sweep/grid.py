"""The grid of a sweep or a choice: its settings, cells and jobs. Nothing is computed here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quantdraft.checkpoints.tensors.loading import resolve_model
from quantdraft.common.files import coerce_paths, write_text
from quantdraft.errors import OutputExistsError
from quantdraft.measure.settings import SharedSettings
from quantdraft.quantize.calibration import taking_all
from quantdraft.quantize.recipe import Recipe, bundled_sweep_names, load_sweep
from quantdraft.quantize.recipe_changes import load_all_changed
from quantdraft.record.choices import ExecutorChoice
from quantdraft.traffic.domains import split_by_domain
from quantdraft.traffic.responses import ReadSettings
from quantdraft.workflows.sweep.jobs import ApplyJob, EvaluateJob, Job


@dataclass(frozen=True, slots=True)
class SweepSettings:
    """The settings of `quantdraft sweep`; names and defaults are the command line's."""

    drafts: tuple[str, ...]
    recipes: tuple[str, ...]
    traffic_path: Path
    output: Path
    target: str | None = None
    evaluations: SharedSettings = field(default_factory=SharedSettings)
    changes: Mapping[str, Any] = field(default_factory=dict)  # of the recipes that have the field
    calibration: Path | None = None
    by_domain: bool = False
    executor: ExecutorChoice = "local"
    ray_address: str | None = None
    cpus: float | None = None
    gpus: float = 0.0
    memory_gb: float | None = None
    is_shared: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        coerce_paths(self)


@dataclass(frozen=True, slots=True)
class Cell:
    """One draft under one recipe on one part of the traffic."""

    draft: str
    recipe: str
    domain: str | None  # None: the whole traffic
    traffic: Path
    job: str  # the evaluation's name
    run_dir: Path


def grid(settings: SweepSettings) -> tuple[list[Cell], list[Job]]:
    """Return the cells and their jobs: a candidate's comes before the evaluations that need it."""
    recipes, _ = load_all_changed(expand_sweeps(settings.recipes), settings.changes)
    if not calibrates_on_traffic(settings):
        recipes = [taking_all(recipe) for recipe in recipes]
    is_held_out = any(calibrates_on_half(settings, recipe) for recipe in recipes)
    parts = _parts(settings)
    cells: list[Cell] = []
    jobs: list[Job] = []
    for draft, name in zip(settings.drafts, _names(settings.drafts), strict=True):
        local = _local(settings, draft)
        for recipe in recipes:
            made = _apply_job(settings, recipe, local, f"{name}-{recipe.name}")
            jobs.append(made)
            for domain, traffic in parts.items():
                job = _evaluate_job(settings, made, local, domain, traffic, is_held_out)
                jobs.append(job)
                cells.append(Cell(draft, recipe.name, domain, traffic, job.name, job.output))
    return cells, jobs


def _local(settings: SweepSettings, draft: str) -> str:
    """Return where a draft lies; a sweep in this process names it as it was given."""
    path = resolve_model(draft)
    return str(path if settings.executor == "local" else path.absolute())


def expand_sweeps(names: Sequence[str]) -> tuple[str, ...]:
    """Return recipes by name, each once; a bundled sweep, `ladder`, stands for its recipes."""
    sweeps = bundled_sweep_names()
    found = [
        each for name in names for each in (load_sweep(name).recipes if name in sweeps else [name])
    ]
    return tuple(dict.fromkeys(found))


def with_absolute_paths(settings: SweepSettings) -> SweepSettings:
    """Return the settings with paths that hold in any directory that a worker starts in."""

    def whole(path: Path | None) -> Path | None:  # an id of the Hub is no path
        return path.absolute() if path is not None and path.exists() else path

    shared = settings.evaluations
    return replace(
        settings,
        traffic_path=settings.traffic_path.absolute(),
        output=settings.output.absolute(),
        target=None if settings.target is None else str(whole(Path(settings.target))),
        evaluations=replace(
            shared,
            policy=whole(shared.policy),
            read=replace(shared.read, requests=whole(shared.read.requests)),
        ),
        calibration=whole(settings.calibration),
    )


def _parts(settings: SweepSettings) -> dict[str | None, Path]:
    """Return the traffic, whole or by domain: one file each."""
    if not settings.by_domain:
        return {None: settings.traffic_path}
    parts = split_by_domain(
        settings.traffic_path, settings.output / "traffic", settings.evaluations.read
    )
    return dict(parts.items())


def _names(drafts: Sequence[str]) -> list[str]:
    """Return a short name for each draft, no two alike."""
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
        device=settings.evaluations.device,
        read=settings.evaluations.read if recipe.reads_traffic else ReadSettings(),
    )


def _evaluate_job(
    settings: SweepSettings,
    made: ApplyJob,
    draft: str,
    domain: str | None,
    traffic: Path,
    is_held_out: bool,
) -> EvaluateJob:
    whole = made.name.removeprefix("apply-")
    name = whole if domain is None else f"{whole}-{traffic.stem}"
    output = settings.output / "runs" / name
    own = settings.evaluations.evaluation(
        str(made.output),
        settings.target,
        draft,
        traffic,
        output,
        sweep_replays=settings.output / "shared",
        is_held_out=is_held_out,
    )
    return EvaluateJob(name, own, output, made.name)


def calibrates_on_half(settings: SweepSettings, recipe: Recipe) -> bool:
    """Return True when a recipe sees a half of the traffic: all are judged on the other one."""
    own = recipe.calibration
    is_half = recipe.reads_traffic and own is not None and own.share is None
    return is_half and calibrates_on_traffic(settings)


def calibrates_on_traffic(settings: SweepSettings) -> bool:
    """Return True when recipes calibrate on responses that they would be judged on."""
    given = settings.calibration
    return given is not None and given.resolve() == settings.traffic_path.resolve()


def claim_output(output: Path, settings: dict[str, str], what: str, force: bool) -> None:
    """Write the settings that decide what is computed to the output's settings.json.

    The output may hold what the same settings computed, to go on with. what: names them in the
    error. Raises OutputExistsError where it holds something else, without `force`.
    """
    path, wanted = output / "settings.json", json.dumps(settings, indent=1)
    known = path.read_text(encoding="utf-8") if path.is_file() else ""
    # Hidden are the lock, and what is left of a run that was killed before it wrote anything.
    is_other = known != wanted and any(p.name[0] != "." for p in output.iterdir())
    if is_other and not force:
        raise OutputExistsError(
            f"'{output}' holds something else than {what}. Give another --output, or "
            "--force to add to it."
        )
    write_text(path, wanted)
