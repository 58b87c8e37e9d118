"""export: a directory an engine loads, a model card with the evidence, and the launch line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from quantdraft.checkpoint import Checkpoint, open_checkpoint, require_tokenizer
from quantdraft.errors import CheckpointError, OptionError, PairingError, VerdictError
from quantdraft.files import file_sha256, whole_directory, write_text
from quantdraft.report.card import NO_EVALUATION, model_card
from quantdraft.report.headline import sentence
from quantdraft.results import Evaluation, read_evaluation
from quantdraft.serving import engine_named
from quantdraft.serving.findings import Draft, Finding, float_type
from quantdraft.weights import weight_files

RECORD_FILE = "evaluation.json"
# What an engine may read of a model directory; pickles and leftovers of training stay behind.
SERVED_SUFFIXES = {".safetensors", ".json", ".model", ".txt", ".jinja"}
SERVED_NAMES = {"LICENSE", "NOTICE"}
# Used, and said so, only where nothing was measured.
UNMEASURED_K = 4


@dataclass(frozen=True, slots=True)
class _Job:
    """What is exported, for which engine, with which evidence."""

    checkpoint: Checkpoint
    engine: str
    serving: ModuleType
    output: Path
    target: str
    evaluation: Evaluation | None


def export(
    checkpoint_dir: Path,
    engine: str,
    output: Path,
    *,
    target: str,
    run: Path | None = None,
    num_speculative_tokens: int | None = None,
    require_go: bool = False,
    force: bool = False,
) -> list[str]:
    """Write the directory, whole or not at all, and return what to tell the user, line by line.

    run: the evaluation's record or its run directory; it must be of these very weights
    num_speculative_tokens: k of the launch line; None takes the measured best

    Raises VerdictError under `require_go` for anything but a go, PairingError for an evaluation
    of other weights or an unequal vocabulary, CheckpointError or OptionError for what the engine
    cannot load.
    """
    serving = engine_named(engine)
    checkpoint = open_checkpoint(checkpoint_dir)
    if output.resolve() == checkpoint_dir.resolve():
        raise OptionError(f"--output '{output}' is the checkpoint itself. Give another directory.")
    require_tokenizer(checkpoint)
    evaluation = _read_run(run)
    if evaluation is not None:
        require_same_weights(checkpoint, evaluation)
    _require_go(evaluation, require_go)
    job = _Job(checkpoint, engine, serving, output.absolute(), target, evaluation)

    k, k_warnings = _choose_k(evaluation, num_speculative_tokens)
    warnings = (*_verdict_warnings(evaluation), *k_warnings, *_checked(job))
    launch = _launch(job, k)
    with whole_directory(output, force) as staging:
        _copy(checkpoint.path, staging)
        _write_launch(job, staging, launch)
        write_text(staging / "README.md", _card(job, launch, warnings))
    told = [f"WARNING: {warning}" for warning in warnings]
    return [*told, f"Written: {output}", f"Launch ({engine}, k = {k}): {_shown(job, launch)}"]


def require_same_weights(checkpoint: Checkpoint, evaluation: Evaluation) -> None:
    """Raise PairingError unless the evaluation's candidate has this checkpoint's weights."""
    candidate = evaluation.provenance.get("candidate") or {}
    recorded = candidate.get("sha256") or candidate.get("weights_sha256")
    names = weight_files(checkpoint.path)
    if isinstance(recorded, Mapping):
        recorded = {name: recorded.get(name) for name in names}
    elif recorded and len(names) == 1:
        recorded = {names[0]: recorded}
    else:
        raise PairingError(
            f"the evaluation {evaluation.name!r} does not say which weights it measured, so it "
            f"cannot vouch for '{checkpoint.path}'. Evaluate this checkpoint again."
        )
    found = {name: file_sha256(checkpoint.path / name) for name in names}
    if found != recorded:
        raise PairingError(
            f"the evaluation {evaluation.name!r} is of other weights than '{checkpoint.path}' "
            "(sha256 differs). Evaluate this checkpoint, or give the run that belongs to it."
        )


def _read_run(run: Path | None) -> Evaluation | None:
    if run is None:
        return None
    return read_evaluation(run / RECORD_FILE if run.is_dir() else run)


def _require_go(evaluation: Evaluation | None, require_go: bool) -> None:
    if not require_go:
        return
    if evaluation is None:
        raise VerdictError("--require-go needs an evaluation. Give --run RUN.")
    if evaluation.verdict.decision != "go":
        raise VerdictError(
            f"the verdict on {evaluation.name!r} is {evaluation.verdict.decision}: "
            f"{sentence(evaluation.verdict)} Nothing was exported (--require-go)."
        )


def _verdict_warnings(evaluation: Evaluation | None) -> tuple[str, ...]:
    if evaluation is None:
        return (NO_EVALUATION,)
    verdict = evaluation.verdict
    if verdict.decision == "go":
        return ()
    alarms = tuple(f"alarm {alarm.code}: {alarm.message}" for alarm in verdict.alarms)
    return (f"the verdict is {verdict.decision.upper()}: {sentence(verdict)}", *alarms)


def _choose_k(evaluation: Evaluation | None, asked: int | None) -> tuple[int, tuple[str, ...]]:
    """The k to launch with, and what to say of it where it is not the measured best."""
    best = evaluation.best_k.get("candidate") if evaluation else None
    if asked is not None:
        if asked < 1:
            raise OptionError(f"--num-speculative-tokens {asked} must be at least 1.")
        differs = best is not None and asked != best
        return asked, (f"k = {asked} was asked for; the measured best is {best}.",) * differs
    if best is not None:
        return best, ()
    if evaluation is not None:
        k = evaluation.operating_point.candidate_num_speculative_tokens
        return k, (f"k = {k} is the evaluated one, not a measured best: speed is undefined.",)
    return UNMEASURED_K, (f"k = {UNMEASURED_K} is a guess: nothing was measured.",)


def _checked(job: _Job) -> tuple[str, ...]:
    """The engine's warnings; raises for the first thing the engine would refuse."""
    draft = Draft(job.output, job.checkpoint.config, _target_config(job.target))
    findings: tuple[Finding, ...] = job.serving.check(draft)
    refusals = [finding.message for finding in findings if finding.severity == "refuse"]
    if refusals:
        raise CheckpointError(f"{job.engine} cannot serve this draft: {'; '.join(refusals)}")
    return tuple(finding.message for finding in findings)


def _target_config(target: str) -> dict[str, Any] | None:
    """The target's config where it lies on this machine; a Hub id is not downloaded for it."""
    path = Path(target) / "config.json"
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"'{path}' is not JSON: {error}") from error
    return config if isinstance(config, dict) else None


def _launch(job: _Job, k: int) -> str:
    rule = job.evaluation.acceptance_rule if job.evaluation else None
    dtype = float_type(_target_config(job.target)) or _recorded_dtype(job.evaluation)
    launched: str = job.serving.launch(job.target, job.output, k, dtype=dtype, acceptance_rule=rule)
    return launched


def _recorded_dtype(evaluation: Evaluation | None) -> str | None:
    if evaluation is None:
        return None
    return float_type(evaluation.provenance.get("target"))


def _copy(source: Path, staging: Path) -> None:
    """Weights are linked where the file system allows it: they are large and never edited."""
    for path in sorted(source.iterdir()):
        if not path.is_file():
            continue
        if path.suffix == ".safetensors":
            _link_or_copy(path.resolve(), staging / path.name)
        elif path.suffix in SERVED_SUFFIXES or path.name.split(".")[0] in SERVED_NAMES:
            shutil.copyfile(path, staging / path.name)


def _link_or_copy(source: Path, copy: Path) -> None:
    try:
        os.link(source, copy)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, copy)


def _write_launch(job: _Job, staging: Path, launch: str) -> None:
    path = staging / job.serving.LAUNCH_FILE
    write_text(path, job.serving.launch_text(launch))
    path.chmod(0o755)


def _card(job: _Job, launch: str, warnings: tuple[str, ...]) -> str:
    return model_card(
        job.output.name,
        job.checkpoint.manifest,
        job.evaluation,
        engine=job.engine,
        launch=launch,
        target=job.target,
        notes=job.serving.NOTES,
        warnings=warnings,
    )


def _shown(job: _Job, launch: str) -> str:
    """A one-line launch as it is; a script by the command that runs it."""
    if "\n" not in launch.strip():
        return launch
    return f'python {job.output / job.serving.LAUNCH_FILE} "Your prompt"'
