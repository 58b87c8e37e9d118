"""export: a directory an engine loads, a model card with the evidence, and the launch line.

What each engine needs is in `quantdraft.engines.registry`, one file an engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from quantdraft.checkpoints.checkpoint import (
    Checkpoint,
    open_checkpoint,
    require_own_files,
    require_tokenizer,
)
from quantdraft.checkpoints.heads import draft_head
from quantdraft.common.files import require_apart, whole_directory, write_text
from quantdraft.engines.findings import Draft, Finding, Pair, vocab_size
from quantdraft.engines.llamacpp import launch as llamacpp
from quantdraft.engines.llamacpp.gguf import (
    COMMANDS_FILE,
    Conversion,
    commands,
    convert,
    plan_conversion,
)
from quantdraft.engines.registry import engine_name, engine_named, extra_files
from quantdraft.errors import CheckpointError, OptionError, VerdictError
from quantdraft.judge.verdict import dtype_mismatch
from quantdraft.record import Evaluation
from quantdraft.report.card import model_card
from quantdraft.workflows.export.contents import copy_served
from quantdraft.workflows.export.evidence import (
    choose_k,
    read_run,
    require_same_weights,
    require_verdict,
    verdict_warnings,
)
from quantdraft.workflows.export.gguf_check import Proof, prove
from quantdraft.workflows.export.heads import HeadServing, head_serving
from quantdraft.workflows.export.padding import Padding, pad, plan_padding
from quantdraft.workflows.export.target import Target, read_target


@dataclass(frozen=True, slots=True)
class _Job:
    """What is exported, for which engine, with which evidence."""

    checkpoint: Checkpoint
    engine: str
    serving: ModuleType | HeadServing
    output: Path
    target: Target
    evaluation: Evaluation | None
    padding: Padding | None = None
    conversion: Conversion | None = None

    @property
    def draft(self) -> Path:
        """What the launch line calls the draft: the directory, or llama.cpp's one file."""
        return self.output / self.conversion.file if self.conversion else self.output


def export(
    checkpoint_dir: Path,
    engine: str,
    output: Path,
    *,
    target: str,
    run: Path | None = None,
    num_speculative_tokens: int | None = None,
    pad_vocab: bool = False,
    draft: Path | None = None,
    gguf_type: str | None = None,
    llamacpp_dir: Path | None = None,
    proof: bool = True,
    require_go: bool = False,
    force: bool = False,
) -> list[str]:
    """Write the directory, whole or not at all, and return what to tell the user, line by line.

    run: the evaluation's record or its run directory; it must be of these very weights
    num_speculative_tokens: k of the launch line; None takes the measured best
    pad_vocab: give the draft as many rows of embedding and head as the target has
    draft, gguf_type, llamacpp_dir: for llama.cpp, the full-precision draft that the GGUF is made
        from, its type, and llama.cpp's sources; without these the commands are written
    proof: let llama.cpp's own server, where it is built, load the GGUF and speculate with it

    Raises VerdictError under `require_go` for anything but a go, PairingError for an evaluation
    of other weights or token ids that differ, CheckpointError or OptionError for what the engine
    cannot load, EngineError for a GGUF that llama.cpp's server does not use.
    """
    name = engine_name(engine)
    checkpoint = open_checkpoint(checkpoint_dir)
    require_own_files(checkpoint_dir)
    require_apart(output, checkpoint_dir, "the checkpoint")
    if run is not None:
        require_apart(output, run, "the run")
    head = draft_head(checkpoint)
    if head is None:
        require_tokenizer(checkpoint)
    elif pad_vocab:
        raise OptionError("--pad-vocab: a draft head has no vocabulary of its own to pad.")
    evaluation = read_run(run)
    if evaluation is not None:
        require_same_weights(checkpoint, evaluation)
    require_verdict(evaluation, require_go)
    serving = engine_named(name) if head is None else head_serving(head, name)
    job = _Job(checkpoint, name, serving, output.absolute(), read_target(target), evaluation)
    job = replace(
        job,
        padding=_planned_padding(job, pad_vocab),
        conversion=_planned_conversion(job, draft, gguf_type, llamacpp_dir, require_go),
    )
    k, k_warnings = choose_k(evaluation, num_speculative_tokens)
    warnings = (*_evidence_warnings(job), *k_warnings, *_checked(job), *_said(job))
    pair = _pair(job, k)
    launch: str = job.serving.launch(pair)
    with whole_directory(output, force) as staging:
        _write_draft(job, staging)
        _write_launch(job, staging, launch, pair)
        found = _proven(job, staging, k) if proof else Proof()
        warnings += found.warnings
        write_text(staging / "README.md", _card(job, launch, warnings, found.seen))
    told = [*(f"WARNING: {warning}" for warning in warnings), *found.seen]
    return [*told, f"Written: {output}", f"Launch ({name}, k = {k}): {_shown(job, launch)}"]


def _planned_padding(job: _Job, pad_vocab: bool) -> Padding | None:
    """The padding asked for, once the token ids that both have are known to be the same."""
    if not pad_vocab:
        return None
    if job.engine == "llamacpp":
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


def _planned_conversion(
    job: _Job,
    draft: Path | None,
    gguf_type: str | None,
    llamacpp_dir: Path | None,
    require_go: bool,
) -> Conversion | None:
    """How llama.cpp's file is made; None for every other engine."""
    if job.serving is llamacpp:
        if require_go:
            raise VerdictError(
                "--require-go: a GGUF draft is another quantization than the one that was "
                "evaluated, and no verdict is on it. Export without --require-go."
            )
        return plan_conversion(job.checkpoint, draft, gguf_type, llamacpp_dir)
    given = {"--draft": draft, "--gguf-type": gguf_type, "--llamacpp": llamacpp_dir}
    for option, value in given.items():
        if value is not None:
            raise OptionError(f"{option} needs --engine llamacpp.")
    return None


def _evidence_warnings(job: _Job) -> Iterator[str]:
    if job.conversion is None:
        yield from verdict_warnings(job.evaluation)
        yield from job.target.cross_pairing(job.evaluation)
        yield from _other_dtype(job)
        return
    yield (
        f"the GGUF ({job.conversion.gguf_type}) is made from the full-precision draft: it is "
        "another quantization than this candidate, and no evaluation is of it. Judge it on its own."
    )


def _other_dtype(job: _Job) -> Iterator[str]:
    """What to say where the draft was measured in another float type than the engine gives it."""
    launched = job.target.dtype(job.evaluation)
    measured = job.evaluation.provenance.get("compute_dtype") if job.evaluation else None
    if launched is None or not isinstance(measured, str):
        return
    alarm = dtype_mismatch(measured, launched, is_forced=True)
    if alarm is not None:
        yield f"{alarm.code}: {alarm.message}"


def _checked(job: _Job) -> tuple[str, ...]:
    """The engine's warnings; raises for the first thing the engine would refuse."""
    config = job.checkpoint.config
    if job.padding is not None:
        config = _padded(config, job.padding.after)
    draft = Draft(job.output, config, job.target.config)
    findings: tuple[Finding, ...] = job.serving.check(draft)
    refusals = [finding.message for finding in findings if finding.severity == "refuse"]
    if refusals:
        raise CheckpointError(f"{job.engine} cannot serve this draft: {'; '.join(refusals)}")
    return tuple(finding.message for finding in findings)


def _padded(config: dict[str, object], rows: int) -> dict[str, object]:
    text = config.get("text_config")
    inner = {"text_config": {**text, "vocab_size": rows}} if isinstance(text, dict) else {}
    return {**config, "vocab_size": rows, **inner}


def _said(job: _Job) -> Iterator[str]:
    if job.padding is not None:
        yield job.padding.sentence
    if job.conversion is not None and job.conversion.llamacpp is None:
        yield (
            f"{job.conversion.file} is still to be made: set LLAMACPP to llama.cpp's sources and "
            f"run {COMMANDS_FILE}, or export again with --llamacpp DIR."
        )
    if job.conversion is not None and not job.target.name.endswith(".gguf"):
        yield (
            f"llama-server needs the target as a GGUF file too; '{job.target.name}' is none. "
            "Convert it in the same way."
        )


def _pair(job: _Job, k: int) -> Pair:
    return Pair(
        job.target.name,
        job.draft,
        k,
        dtype=job.target.dtype(job.evaluation),
        acceptance_rule=job.evaluation.acceptance_rule if job.evaluation else None,
        quantization=job.checkpoint.quantization or {},
    )


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


def _proven(job: _Job, staging: Path, k: int) -> Proof:
    """What llama.cpp's server did with the file that was made; nothing where there is none."""
    if job.conversion is None or job.conversion.llamacpp is None:
        return Proof()
    return prove(job.conversion, staging / job.conversion.file, job.target, k)


def _write_launch(job: _Job, staging: Path, launch: str, pair: Pair) -> None:
    path = staging / job.serving.LAUNCH_FILE
    write_text(path, job.serving.launch_text(launch))
    path.chmod(0o755)
    for name, text in extra_files(job.serving, pair).items():
        write_text(staging / name, text)


def _card(job: _Job, launch: str, warnings: tuple[str, ...], seen: tuple[str, ...]) -> str:
    is_evidence = job.conversion is None
    return model_card(
        job.output.name,
        job.checkpoint.manifest,
        job.evaluation if is_evidence else None,
        engine=job.engine,
        launch=launch,
        target=job.target.stamp(job.evaluation),
        notes=job.serving.NOTES,
        warnings=warnings,
        gguf_type=None if job.conversion is None else job.conversion.gguf_type,
        seen=seen,
    )


def _shown(job: _Job, launch: str) -> str:
    """A one-line launch as it is; a script by the command that runs it."""
    if "\n" not in launch.strip():
        return launch
    return f'python {job.output / job.serving.LAUNCH_FILE} "Your prompt"'
