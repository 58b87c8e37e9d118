"""Find finished runs: a choice takes their record instead of measuring once more.

The same draft under the same recipe then has one verdict, wherever it is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from quantdraft import __version__
from quantdraft.checkpoints.checkpoint import Checkpoint, open_checkpoint
from quantdraft.common.files import file_sha256
from quantdraft.errors import QuantDraftError
from quantdraft.judge.verdict.policy import load_policy, policy_of
from quantdraft.measure.settings import SharedSettings
from quantdraft.quantize.recipe import Recipe
from quantdraft.record import RECORD_FILE, Evaluation, read_evaluation
from quantdraft.record.provenance import model_identity
from quantdraft.traffic.responses import ReadSettings
from quantdraft.workflows.sweep.grid import Cell
from quantdraft.workflows.sweep.jobs import ApplyJob, Job


def with_known_runs(
    cells: Sequence[Cell],
    jobs: Sequence[Job],
    runs: Sequence[Path],
    settings: SharedSettings,
    target: Checkpoint,
    drafts: Mapping[str, Checkpoint],
) -> tuple[list[Cell], list[Job]]:
    """Return the cells with the directories of runs that measured them, and the jobs left to do.

    settings: of the evaluations that the choice would make
    drafts: the opened drafts, by what the user called them
    Raises what `read_evaluation` raises for a directory that holds no run.
    """
    found: dict[str, Path] = {}
    recipes = {job.name: job.recipe for job in jobs if isinstance(job, ApplyJob)}
    made = {job.name: recipes[job.needs] for job in jobs if job.needs in recipes}
    for run in runs:
        record = read_evaluation(run / RECORD_FILE)
        for cell in cells:
            if not any(
                _differences(record, cell, made[cell.job], settings, target, drafts[cell.draft])
            ):
                found[cell.job] = run
    placed = [
        replace(cell, run_dir=found[cell.job]) if cell.job in found else cell for cell in cells
    ]
    left = [job for job in jobs if job.name not in found]
    needed = {job.needs for job in left if job.needs is not None}
    applied = {job.needs for job in jobs if job.needs is not None}
    return placed, [job for job in left if job.name not in applied or job.name in needed]


def _differences(
    record: Evaluation,
    cell: Cell,
    recipe: Recipe,
    settings: SharedSettings,
    target: Checkpoint,
    draft: Checkpoint,
) -> Iterator[bool]:
    """Yield for every setting whether the run's differs from what the choice would measure."""
    known, latency = record.provenance, record.latency
    yield record.num_speculative_tokens != tuple(settings.ks)
    yield settings.acceptance_rule not in (None, record.acceptance_rule)
    yield latency.batch_size != settings.timing.batch_size
    yield settings.timing.context_length not in (None, latency.context_length)
    # Of several GPUs the record names the one that was visible: cuda.
    yield _kind(settings.device) not in ("", _kind(latency.device))
    yield settings.dtype not in ("auto", known.get("compute_dtype"))
    yield not settings.timing.no_latency and not latency.arms
    yield policy_of(record) != load_policy(settings.policy)
    yield (known.get("versions") or {}).get("quantdraft") != __version__
    yield (known.get("traffic") or {}).get("sha256") != file_sha256(cell.traffic)
    yield not _is_read_so(known, settings.read)
    yield _weights(known, "target") != model_identity(target)["sha256"]
    yield _weights(known, "baseline") != model_identity(draft)["sha256"]
    yield recipe.needs_calibration  # the record does not say what it was calibrated on
    yield _recipe_of(known) != recipe.model_dump(mode="json")


def _is_read_so(provenance: Mapping[str, Any], read: ReadSettings) -> bool:
    """Return whether a run read its log as it would be read; `turns` are recorded unasked too."""
    found = (provenance.get("traffic") or {}).get("read_with") or {}
    asked = read.as_record()
    return bool({**found, **asked} == found and set(found) <= {*asked, "turns"})


def _kind(device: str | None) -> str:
    return (device or "").partition(":")[0]


def _weights(provenance: Mapping[str, Any], role: str) -> Any:
    return (provenance.get(role) or {}).get("sha256")


def _recipe_of(provenance: Mapping[str, Any]) -> Any:
    """Return the recipe that the measured candidate carries; None where it is gone or changed."""
    path = (provenance.get("candidate") or {}).get("path")
    if path is None or not Path(path).is_dir():
        return None
    try:
        candidate = open_checkpoint(Path(path))
    except QuantDraftError:
        return None
    if model_identity(candidate)["sha256"] != _weights(provenance, "candidate"):
        return None
    recipe = (candidate.manifest or {}).get("recipe")
    return {"changes": {}} | recipe if recipe else None
