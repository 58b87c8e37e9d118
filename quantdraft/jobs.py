"""One cell of a sweep as work that any machine can do: quantize a draft, or evaluate a candidate.

A job reads files and directories and writes one directory. What it has written is kept under a key
of everything it depends on, so that nothing is computed twice and nothing stale is taken for new.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantdraft import __version__
from quantdraft.errors import QuantDraftError
from quantdraft.files import file_sha256, write_text
from quantdraft.inputs import Settings
from quantdraft.provenance import directory_sha256, package_versions
from quantdraft.recipe import Recipe

Places = Callable[[Path], Path]  # where a path of the one who asks lies on the machine that works


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

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The files and directories it reads."""
        return _local(self.draft, self.calibration)

    @property
    def facts(self) -> dict[str, Any]:
        """What decides its output besides its inputs' content, as JSON values."""
        return {"recipe": self.recipe.model_dump(mode="json"), "draft": _if_hub(self.draft)}

    def work(self, at: Places) -> None:
        """Make the candidate; raises a QuantDraftError and leaves nothing where that fails."""
        from quantdraft.quantization import apply

        calibration = None if self.calibration is None else at(self.calibration)
        output, draft = at(self.output), _placed(self.draft, at)
        apply(self.recipe, draft, output, calibration=calibration, device=self.device, force=True)


@dataclass(frozen=True, slots=True)
class EvaluateJob:
    """A candidate's evaluation; its output is the run directory."""

    name: str
    settings: Settings  # every path as the one who asks sees it
    output: Path
    needs: str | None

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The files and directories it reads."""
        s = self.settings
        return _local(s.candidate, s.target, s.baseline, s.traffic_path, s.policy)

    @property
    def facts(self) -> dict[str, Any]:
        """What decides its output besides its inputs' content, as JSON values."""
        s = self.settings
        names = ("ks", "acceptance_rule", "seed", "batch_size", "context_length", "dtype", "device")
        timing = ("no_latency", "latency_seconds", "live_prompts", "threads", "mode")
        given = {name: getattr(s, name) for name in names + timing}
        return given | {"models": [_if_hub(m) for m in (s.candidate, s.target, s.baseline)]}

    def work(self, at: Places) -> None:
        """Evaluate; a run that was cut short is continued."""
        from quantdraft.evaluation import evaluate

        s = self.settings
        there = replace(
            s,
            candidate=_placed(s.candidate, at),
            target=None if s.target is None else _placed(s.target, at),
            baseline=None if s.baseline is None else _placed(s.baseline, at),
            traffic_path=None if s.traffic_path is None else at(s.traffic_path),
            policy=None if s.policy is None else at(s.policy),
            shared_stages=None if s.shared_stages is None else at(s.shared_stages),
            output=at(self.output),
            force=True,
        )
        evaluate(there)


Job = ApplyJob | EvaluateJob


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended: `error` is None where its output is there."""

    name: str
    error: str | None = None
    was_done: bool = False  # before, by an earlier sweep


def perform(job: Job, at: Places, log: Path) -> Outcome:
    """Do a job unless its output is there already; an error of ours becomes its outcome.

    log: what the job says on the way goes there, not to the terminal
    """
    if is_done(job, at):
        return Outcome(job.name, was_done=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(log, "a", encoding="utf-8") as file, contextlib.redirect_stderr(file):
            job.work(at)
    except QuantDraftError as error:
        return Outcome(job.name, str(error))
    mark_done(job, at)
    return Outcome(job.name)


def is_done(job: Job, at: Places) -> bool:
    """True when the output is there, made from what the inputs hold now."""
    output = at(job.output)
    return output.is_dir() and _kept_key(output) == job_key(job, at)


def mark_done(job: Job, at: Places) -> None:
    """Keep beside the output what it was made from."""
    write_text(_key_file(at(job.output)), json.dumps({"key": job_key(job, at)}))


def job_key(job: Job, at: Places) -> str:
    """A hash of all that decides the job's output: its facts, its inputs' content, the versions."""
    content = [_content(at(path)) for path in job.inputs]
    facts = {"facts": job.facts, "inputs": content, "versions": package_versions()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def require_same_version(version: str) -> None:
    """Raise QuantDraftError on a worker that has another version than the one who asks."""
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


def _kept_key(output: Path) -> str | None:
    try:
        kept = json.loads(_key_file(output).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return kept.get("key") if isinstance(kept, dict) else None


def _key_file(output: Path) -> Path:
    return output.with_name(f"{output.name}.job.json")


def _local(*given: str | Path | None) -> tuple[Path, ...]:
    """Those that are files or directories; a Hub id is none."""
    paths = [Path(name) for name in given if name is not None]
    return tuple(path for path in paths if path.exists())


def _if_hub(model: str | None) -> str | None:
    return None if model is None or Path(model).exists() else model


def _placed(model: str, at: Places) -> str:
    """A Hub id stays as it is; a directory is where it lies."""
    path = Path(model)
    there = at(path)
    return str(there) if there.exists() else model
