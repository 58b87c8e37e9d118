"""export: a directory an engine loads, a model card with the evidence, and the launch line.

What each engine needs is in `quantdraft.engines.registry`, one file an engine.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from quantdraft.checkpoints.checkpoint import (
    Checkpoint,
    open_checkpoint,
    require_tokenizer,
)
from quantdraft.checkpoints.heads.opening import open_head
from quantdraft.checkpoints.links import require_own_files, shards_elsewhere
from quantdraft.common.files import coerce_paths, require_apart, whole_directory, write_text
from quantdraft.engines.engine import Engine, LaunchPair
from quantdraft.engines.findings import stored_draft, vocab_size
from quantdraft.engines.llamacpp.gguf import (
    COMMANDS_FILE,
    GgufConversion,
    commands,
    convert,
    plan_conversion,
)
from quantdraft.engines.registry import engine_named
from quantdraft.errors import CheckpointError, OptionError, VerdictError
from quantdraft.judge.verdict.alarms import dtype_mismatch
from quantdraft.record import Evaluation, read_evaluation
from quantdraft.report.card import model_card
from quantdraft.workflows.compare import record_file
from quantdraft.workflows.export.contents import copy_served
from quantdraft.workflows.export.evidence import (
    choose_k,
    require_same_weights,
    require_verdict,
    verdict_warnings,
)
from quantdraft.workflows.export.gguf_check import ServerTrial, try_server
from quantdraft.workflows.export.heads import HeadEngine, head_engine
from quantdraft.workflows.export.padding import Padding, pad, padded_config, plan_padding
from quantdraft.workflows.export.portable import portable_pair
from quantdraft.workflows.export.target import Target, read_target

LLAMACPP = "llamacpp"


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """What the user asked for; names and defaults are the command line's."""

    checkpoint: Path
    engine: str
    output: Path
    target: str  # as the engine is to load it
    run: Path | None = None  # the evaluation's record or its run directory
    num_speculative_tokens: int | None = None  # of the launch line; None: the measured best
    pad_vocab: bool = False  # give the draft as many rows of embedding and head as the target
    # For llama.cpp: the full-precision draft that the GGUF is made from, its type, and llama.cpp's
    # sources; without sources the commands are written.
    draft: Path | None = None
    gguf_type: str | None = None
    llamacpp_dir: Path | None = None
    proof: bool = True  # let llama.cpp's own server, where it is built, load the GGUF
    require_go: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        coerce_paths(self)


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and what its user must know."""

    output: Path
    engine: str
    num_speculative_tokens: int
    launch: str  # the shell line that serves it
    warnings: tuple[str, ...]
    seen: tuple[str, ...]  # what llama.cpp's server did with the file

    @property
    def lines(self) -> list[str]:
        """What to tell the user, line by line."""
        return [
            *(f"WARNING: {warning}" for warning in self.warnings),
            *self.seen,
            f"Written: {self.output}",
            f"Launch ({self.engine}, k = {self.num_speculative_tokens}): {self.launch}",
        ]


@dataclass(frozen=True, slots=True)
class _Job:
    """What is exported, for which engine, with which evidence."""

    checkpoint: Checkpoint
    engine: Engine
    output: Path
    target: Target
    evaluation: Evaluation | None
    padding: Padding | None = None
    conversion: GgufConversion | None = None

    @property
    def is_head(self) -> bool:
        """True for a draft head, which an engine alone measures."""
        return isinstance(self.engine, HeadEngine)

    @property
    def draft(self) -> Path:
        """What the launch line calls the draft: the directory, or llama.cpp's one file."""
        return self.output / self.conversion.file if self.conversion else self.output


def export(settings: ExportSettings) -> Exported:
    """Write the directory, whole or not at all.

    Raises VerdictError under `require_go` for anything but a go, PairingError for an evaluation
    of other weights or token ids that differ, CheckpointError or OptionError for what the engine
    cannot load, EngineError for a GGUF that llama.cpp's server does not use.
    """
    job = _open_job(settings)
    require_verdict(job.evaluation, settings.require_go)
    job = replace(
        job,
        padding=_plan_padding(job, settings.pad_vocab),
        conversion=_plan_conversion(job, settings),
    )
    k, k_warnings = choose_k(job.evaluation, settings.num_speculative_tokens)
    warnings = (*_evidence_warnings(job), *k_warnings, *_engine_warnings(job), *_change_notes(job))
    pair = _launch_pair(job, k)
    launch, beside = job.engine.launch(pair), portable_pair(pair, settings.output)
    script = job.engine.launch(beside)
    with whole_directory(settings.output, settings.force) as staging:
        _write_draft(job, staging)
        _write_launch(job, staging, script, beside)
        tried = _try_server(job, staging, k) if settings.proof else ServerTrial()
        warnings += tried.warnings
        write_text(staging / "README.md", _card(job, script, warnings, tried.seen))
    line = _launch_command(job, launch, beside)
    return Exported(settings.output, job.engine.name, k, line, warnings, tried.seen)


def _open_job(settings: ExportSettings) -> _Job:
    """Open the checkpoint, the target and the evaluation, and hold them against each other."""
    from quantdraft.checkpoints.tensors.finite import require_finite_files
    from quantdraft.checkpoints.tensors.loading import require_loadable

    engine, checkpoint = engine_named(settings.engine), open_checkpoint(settings.checkpoint)
    require_own_files(settings.checkpoint)
    require_apart(settings.output, settings.checkpoint, "the checkpoint")
    if settings.run is not None:
        require_apart(settings.output, settings.run, "the run")
    head = open_head(checkpoint)
    if head is None:
        require_tokenizer(checkpoint)
        require_loadable(checkpoint)
    elif settings.pad_vocab:
        raise OptionError("--pad-vocab: a draft head has no vocabulary of its own to pad.")
    else:
        engine = head_engine(head, engine)
    require_finite_files(checkpoint)
    evaluation = None if settings.run is None else read_evaluation(record_file(settings.run))
    if evaluation is not None:
        require_same_weights(checkpoint, evaluation)
    output, target = settings.output.absolute(), read_target(settings.target)
    return _Job(checkpoint, engine, output, target, evaluation)


def _plan_padding(job: _Job, pad_vocab: bool) -> Padding | None:
    """Return the padding asked for, once the common token ids are known to be the same."""
    if not pad_vocab:
        return None
    if job.engine.name == LLAMACPP:
        raise OptionError("--pad-vocab: llama.cpp compares tokens and needs no padding.")
    rows = vocab_size(job.target.config)
    if rows is None:
        raise OptionError(
            f"--pad-vocab needs the target's config.json and tokenizer: '{job.target.name}' is not "
            "a directory with them. Download the target, and give its directory as --target."
        )
    from quantdraft.checkpoints.pairing import require_compatible

    require_compatible(Path(job.target.name), job.checkpoint.path)
    return plan_padding(job.checkpoint, rows)


def _plan_conversion(job: _Job, settings: ExportSettings) -> GgufConversion | None:
    """Return how llama.cpp's file is made; None for every other engine."""
    draft, gguf_type, llamacpp = settings.draft, settings.gguf_type, settings.llamacpp_dir
    if job.engine.name == LLAMACPP:
        if settings.require_go:
            raise VerdictError(
                "--require-go: a GGUF draft is another quantization than the one that was "
                "evaluated, and no verdict is on it. Export without --require-go."
            )
        return plan_conversion(job.checkpoint, draft, gguf_type, llamacpp)
    given = {"--draft": draft, "--gguf-type": gguf_type, "--llamacpp": llamacpp}
    for option, value in given.items():
        if value is not None:
            raise OptionError(f"{option} needs --engine llamacpp.")
    return None


def _evidence_warnings(job: _Job) -> Iterator[str]:
    if job.conversion is None:
        yield from verdict_warnings(job.evaluation, is_head=job.is_head)
        yield from job.target.cross_pairing(job.evaluation)
        yield from _other_dtype(job)
        return
    yield (
        f"the GGUF ({job.conversion.gguf_type}) is made from the full-precision draft: it is "
        "another quantization than this candidate, and no evaluation is of it. Judge it on its own."
    )


def _other_dtype(job: _Job) -> Iterator[str]:
    """Yield a warning where the draft was measured in another float type than it is served."""
    launched = job.target.dtype(job.evaluation)
    measured = job.evaluation.provenance.get("compute_dtype") if job.evaluation else None
    if launched is None or not isinstance(measured, str):
        return
    alarm = dtype_mismatch(measured, launched, is_forced=True)
    if alarm is not None:
        yield f"{alarm.code}: {alarm.message}"


def _engine_warnings(job: _Job) -> tuple[str, ...]:
    """Return the engine's warnings. Raises CheckpointError for what it refuses."""
    config = job.checkpoint.config
    if job.padding is not None:
        config = padded_config(config, job.padding.after)
    draft = stored_draft(job.checkpoint, job.target.config)
    draft = replace(draft, path=job.output, config=config)
    findings = job.engine.check(draft)
    refusals = [finding.message for finding in findings if finding.severity == "refuse"]
    if refusals:
        raise CheckpointError(f"{job.engine.name} cannot serve this draft: {'; '.join(refusals)}")
    return tuple(finding.message for finding in findings)


def _change_notes(job: _Job) -> Iterator[str]:
    for path in shards_elsewhere(job.checkpoint.path):
        yield f"'{path}' is a link to '{path.resolve()}', outside the model's directory: copied."
    if job.padding is not None:
        yield job.padding.sentence
    if job.conversion is not None and job.conversion.llamacpp is None:
        yield (
            f"{job.conversion.file} is still to be made: set LLAMACPP to llama.cpp's sources and "
            f"run {COMMANDS_FILE}, or export again with --llamacpp DIR."
        )
    if job.conversion is not None and not job.target.name.endswith(".gguf"):
        yield (
            f"llama-server needs the target as a GGUF file too; '{job.target.shown}' is none. "
            "Convert it in the same way."
        )


def _launch_pair(job: _Job, k: int) -> LaunchPair:
    return LaunchPair(
        job.target.name,
        job.draft,
        k,
        dtype=job.target.dtype(job.evaluation),
        acceptance_rule=job.evaluation.acceptance_rule if job.evaluation else None,
        quantization=job.checkpoint.quantization or {},
        revision=_named_revision(job),
    )


def _named_revision(job: _Job) -> str | None:
    """Return the revision that the target was named with; OptionError where no line can say it."""
    if job.target.config is not None or job.target.revision is None:  # a directory is a revision
        return None
    if not job.engine.names_revision:
        raise OptionError(
            f"--target {job.target.name}@{job.target.revision}: the launch line of "
            f"{job.engine.name} names no revision. Download it, and give its directory."
        )
    return job.target.revision


def _write_draft(job: _Job, staging: Path) -> None:
    if job.conversion is not None:
        write_text(staging / COMMANDS_FILE, commands(job.conversion, job.output))
        (staging / COMMANDS_FILE).chmod(0o755)
        if job.conversion.llamacpp is not None:
            convert(job.conversion, staging)
        return
    copy_served(job.checkpoint, staging)
    if job.padding is not None:
        pad(job.checkpoint, job.padding, staging)


def _try_server(job: _Job, staging: Path, k: int) -> ServerTrial:
    """Return what llama.cpp's server did with the file that was made, if there is one."""
    if job.conversion is None or job.conversion.llamacpp is None:
        return ServerTrial()
    return try_server(job.conversion, staging / job.conversion.file, job.target, k)


def _write_launch(job: _Job, staging: Path, launch: str, pair: LaunchPair) -> None:
    path = staging / job.engine.launch_file
    write_text(path, job.engine.launch_text(launch, pair.target))
    path.chmod(0o755)
    for name, text in job.engine.extra_files(pair).items():
        write_text(staging / name, text)


def _card(job: _Job, launch: str, warnings: tuple[str, ...], seen: tuple[str, ...]) -> str:
    is_evidence = job.conversion is None
    return model_card(
        job.output.name,
        job.checkpoint.manifest,
        job.evaluation if is_evidence else None,
        engine=job.engine.name,
        launch=launch,
        target=job.target.stamp(job.evaluation),
        notes=job.engine.notes,
        warnings=warnings,
        gguf_type=None if job.conversion is None else job.conversion.gguf_type,
        seen=seen,
        is_head=job.is_head,
    )


def _launch_command(job: _Job, launch: str, beside: LaunchPair) -> str:
    """Return a launch of one line as it is, else the command that runs the file with it."""
    script = job.output / job.engine.launch_file
    if job.engine.extra_files(beside):
        return shlex.join(["sh", str(script)])
    if "\n" not in launch.strip():
        return launch
    return f'python {shlex.quote(str(script))} "Your prompt"'
