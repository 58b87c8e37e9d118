"""Jobs of a sweep that any machine can do: quantize a draft, or evaluate a candidate.

A job reads files and directories and writes one directory. Before the work begins, a key of all
that it depends on is written beside that directory. So a killed job continues where it stopped,
nothing is computed twice, and an old output is not taken for a new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quantdraft import __version__
from quantdraft.common.files import file_sha256, is_of_the_disk, write_text
from quantdraft.common.locks import lock_path, sole_writer
from quantdraft.errors import OutputError, QuantDraftError
from quantdraft.measure.settings import EvaluateSettings
from quantdraft.quantize.recipe import Recipe
from quantdraft.record import RECORD_FILE
from quantdraft.record.provenance import directory_sha256, package_versions
from quantdraft.traffic.responses import ReadSettings

Places = Callable[[Path], Path]  # where a path of the sweep's machine lies on the worker


@dataclass(frozen=True, slots=True)
class ApplyJob:
    """A recipe on a draft; its output is the candidate."""

    name: str
    recipe: Recipe
    draft: str  # a directory or a Hub id
    calibration: Path | None
    output: Path
    device: str | None = None
    needs: str | None = None
    read: ReadSettings = field(default_factory=ReadSettings)  # of a log that is calibrated on

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The files and directories it reads."""
        return _local(self.draft, self.calibration, self.read.requests)

    @property
    def facts(self) -> dict[str, Any]:
        """What decides its output besides its inputs' content, as JSON values."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "draft": _if_hub(self.draft),
            **_how_read(self.read),
        }

    def is_whole(self, at: Places) -> bool:
        """Return True when its output is there; a candidate is written whole or not at all."""
        return at(self.output).is_dir()

    def work(self, at: Places) -> None:
        """Quantize the draft; raises a QuantDraftError and leaves nothing where that fails."""
        from quantdraft.quantize.apply import apply

        given = self.calibration  # a file, or an id of the Hub
        calibration = None if given is None else Path(_place_model(str(given), at))
        output, draft = at(self.output), _place_model(self.draft, at)
        apply(
            self.recipe,
            draft,
            output,
            calibration=calibration,
            read=_read_there(self.read, at),
            device=self.device,
            force=True,
        )


@dataclass(frozen=True, slots=True)
class EvaluateJob:
    """A candidate's evaluation; its output is the run directory."""

    name: str
    settings: EvaluateSettings  # every path as the sweep's machine sees it
    output: Path
    needs: str | None

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The files and directories it reads."""
        models = self.settings.models
        given = models.candidate, models.target, models.baseline
        traffic = self.settings.traffic
        return _local(*given, traffic.traffic_path, traffic.read.requests, self.settings.policy)

    @property
    def facts(self) -> dict[str, Any]:
        """What decides its output besides its inputs' content, as JSON values."""
        asked, models, timing = self.settings, self.settings.models, self.settings.timing
        return {
            "models": [_if_hub(m) for m in (models.candidate, models.target, models.baseline)],
            "dtype": models.dtype,
            "device": models.device,
            "threads": models.threads,
            "acceptance_rule": asked.traffic.acceptance_rule,
            "ks": asked.ks,
            "seed": asked.seed,
            "live_prompts": asked.live_prompts,
            "batch_size": timing.batch_size,
            "context_length": timing.context_length,
            "latency_seconds": timing.latency_seconds,
            "mode": timing.mode,
            "no_latency": timing.no_latency,
            "is_held_out": asked.traffic.is_held_out,
            **_how_read(asked.traffic.read),
        }

    def is_whole(self, at: Places) -> bool:
        """Return True when its output is there; a run writes its record last."""
        return (at(self.output) / RECORD_FILE).is_file()

    def work(self, at: Places) -> None:
        """Evaluate the candidate; continue a run that was cut short."""
        from quantdraft.workflows.evaluate import evaluate

        asked, models = self.settings, self.settings.models
        path = asked.traffic.traffic_path
        there = replace(
            models,
            candidate=_place_model(models.candidate, at),
            target=None if models.target is None else _place_model(models.target, at),
            baseline=None if models.baseline is None else _place_model(models.baseline, at),
        )
        settings = replace(
            asked,
            models=there,
            traffic=replace(
                asked.traffic,
                traffic_path=None if path is None else at(path),
                read=_read_there(asked.traffic.read, at),
            ),
            policy=None if asked.policy is None else at(asked.policy),
            sweep_replays=None if asked.sweep_replays is None else at(asked.sweep_replays),
            output=at(self.output),
            force=True,
        )
        evaluate(settings)


Job = ApplyJob | EvaluateJob


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended: `error` is None where its output is there."""

    name: str
    error: str | None = None
    was_done: bool = False  # before, by an earlier sweep


OnOutcome = Callable[[Outcome], None]


def perform(job: Job, at: Places, log: Path) -> Outcome:
    """Do a job unless its output is there already; a QuantDraftError becomes its outcome.

    log: the file for what the job writes to stderr, in place of the terminal
    Raises OutputError where the disk refuses: other jobs would fail in the same way.
    """
    if (before := done_before(job, at)) is not None:
        return before
    begin(job, at)
    try:
        with _log_stderr(log):
            job.work(at)
    except OutputError:
        raise
    except QuantDraftError as error:
        return Outcome(job.name, str(error))
    return Outcome(job.name)


def done_before(job: Job, at: Places) -> Outcome | None:
    """Return the outcome of a job whose output is there; None where there is something to do."""
    if not is_done(job, at):
        return None
    _clear_lock(job, at)
    return Outcome(job.name, was_done=True)


def is_done(job: Job, at: Places) -> bool:
    """Return True when the output is there, made from what the inputs hold now."""
    return job.is_whole(at) and _read_key(at(job.output)) == job_key(job, at)


def begin(job: Job, at: Places) -> None:
    """Write beside the output what it is made from; remove an output of something else."""
    output, key = at(job.output), job_key(job, at)
    if _read_key(output) == key:  # begun before, and killed
        return
    if output.exists():
        shutil.rmtree(output)
    write_text(_key_file(output), json.dumps({"key": key}))


def _clear_lock(job: Job, at: Places) -> None:
    """Remove the lock of a job that was killed after it finished."""
    is_inside = isinstance(job, EvaluateJob)
    if lock_path(at(job.output), is_inside=is_inside).exists():
        with contextlib.suppress(OutputError), sole_writer(at(job.output), is_inside=is_inside):
            pass


@contextlib.contextmanager
def _log_stderr(log: Path) -> Iterator[None]:
    """Append what is written to stderr to a file."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a", encoding="utf-8") as file, contextlib.redirect_stderr(file):
            yield
    except OSError as error:
        if not is_of_the_disk(error):
            raise
        raise OutputError(f"cannot write '{log}': {error.strerror or error}.") from error


def job_key(job: Job, at: Places) -> str:
    """Return a hash of all that decides the output: facts, the inputs' content, versions."""
    content = [_content(at(path)) for path in job.inputs]
    facts = {"facts": job.facts, "inputs": content, "versions": package_versions()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def require_same_version(version: str) -> None:
    """Raise QuantDraftError on a worker whose version is not that of the sweep."""
    if version != __version__:
        raise QuantDraftError(
            f"this worker has quantdraft {__version__}, the sweep was started by {version}. "
            "Install the same version on every node."
        )


def _content(path: Path) -> Any:
    if not path.is_dir():
        return file_sha256(path)
    # A candidate's manifest holds paths and times: its weights and config say what it is.
    return directory_sha256(path, exclude=frozenset({"quantdraft.json"}))


def _read_key(output: Path) -> str | None:
    try:
        kept = json.loads(_key_file(output).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return kept.get("key") if isinstance(kept, dict) else None


def _key_file(output: Path) -> Path:
    return output.with_name(f"{output.name}.job.json")


def _local(*given: str | Path | None) -> tuple[Path, ...]:
    """Return those that are files or directories; a Hub id is none."""
    paths = [Path(name) for name in given if name is not None]
    return tuple(path for path in paths if path.exists())


def _how_read(read: ReadSettings) -> dict[str, Any]:
    """Return how a log is read, where that is said; the content of its requests is an input."""
    known = replace(read, requests=None).as_record()
    return {"read": known} if known else {}


def _read_there(read: ReadSettings, at: Places) -> ReadSettings:
    return replace(read, requests=None if read.requests is None else at(read.requests))


def _if_hub(model: str | None) -> str | None:
    return None if model is None or Path(model).exists() else model


def _place_model(model: str, at: Places) -> str:
    """Return where a model's directory lies; a Hub id stays as it is."""
    path = Path(model)
    there = at(path)
    return str(there) if there.exists() else model
