"""Replay and time every draft under every recipe on one target's traffic, and rank them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantdraft.checkpoints.checkpoint import Checkpoint, open_checkpoint
from quantdraft.checkpoints.heads.head import require_draft_model
from quantdraft.checkpoints.pairing import check_pairing
from quantdraft.checkpoints.tensors.loading import require_loadable, resolve_model
from quantdraft.common.files import coerce_paths, write_json
from quantdraft.common.locks import sole_writer
from quantdraft.common.progress import bar
from quantdraft.errors import CheckpointError, OptionError, PairingError
from quantdraft.judge.verdict.policy import load_policy
from quantdraft.measure.settings import SharedSettings
from quantdraft.quantize.ledger import byte_ledger
from quantdraft.quantize.recipe_changes import tell_unchanged
from quantdraft.record import RECORD_FILE, Arm, Evaluation, read_evaluation
from quantdraft.record.terms import nearest_to_usual
from quantdraft.report import remove_pages, try_pages, write_document
from quantdraft.workflows.select.known import with_known_runs
from quantdraft.workflows.select.ranking import Contender, basis_of, rank
from quantdraft.workflows.select.record import (
    SELECTION_FILE,
    SELECTION_SCHEMA_VERSION,
    Selection,
)
from quantdraft.workflows.select.traits import traits_of
from quantdraft.workflows.select.view import selection_document
from quantdraft.workflows.sweep.grid import Cell, SweepSettings, claim_output, grid
from quantdraft.workflows.sweep.jobs import Outcome
from quantdraft.workflows.sweep.local import run_local

AGAIN = "quantdraft select"  # the same command: nothing is measured again
AS_IS = "identity"  # the recipe that quantizes nothing: the draft itself

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class SelectSettings:
    """What the user asked for; names and defaults are the command line's."""

    target: str
    drafts: tuple[str, ...]
    traffic_path: Path
    output: Path
    evaluations: SharedSettings = field(default_factory=SharedSettings)
    recipes: tuple[str, ...] = ()  # none: the drafts as they are
    changes: Mapping[str, Any] = field(default_factory=dict)  # of the recipes that have the field
    calibration: Path | None = None
    runs: tuple[Path, ...] = ()  # finished evaluations, taken where they measured the same
    force: bool = False

    def __post_init__(self) -> None:
        coerce_paths(self)


@dataclass(frozen=True, slots=True)
class _Pairing:
    """The drafts that fit the target, and why others do not, by the names that the user gave."""

    target: Checkpoint
    fitting: dict[str, Checkpoint]
    refused: dict[str, str]
    warnings: dict[str, tuple[str, ...]]


def select(settings: SelectSettings, say: Say = lambda line: None) -> Selection:
    """Refuse what does not fit, measure the rest, rank it, and write selection.json and pages.

    What an earlier run into the same output finished is not computed again. Raises OptionError,
    OutputExistsError, OutputBusyError, and PairingError where no draft fits.
    """
    _check(settings)
    pairing = _pair(settings)
    for draft, why in pairing.refused.items():
        say(f"Refused: {draft}: {why}")
    if not pairing.fitting:
        first = next(iter(pairing.refused.values()))
        raise PairingError(f"no draft fits target '{settings.target}': {first}")
    with sole_writer(settings.output, is_inside=True):
        names = ("target", "drafts", "recipes", "traffic_path", "calibration")
        wanted = {name: str(getattr(settings, name)) for name in names}
        if settings.changes:
            wanted["changes"] = str(dict(settings.changes))
        if how := settings.evaluations.read.as_record():
            wanted["read"] = str(how)
        claim_output(settings.output, wanted, "this choice", settings.force)
        cells, outcomes = _measure(settings, pairing, say)
        selection = _conclude(settings, pairing, cells, outcomes)
        remove_pages(settings.output)
        write_json(settings.output / SELECTION_FILE, selection)
        try_pages(
            lambda: write_document(selection_document(selection), settings.output),
            settings.output / SELECTION_FILE,
            AGAIN,
        )
    return selection


def _check(settings: SelectSettings) -> None:
    if len(set(settings.drafts)) < len(settings.drafts):
        twice = next(d for d in settings.drafts if settings.drafts.count(d) > 1)
        raise OptionError(f"--draft {twice!r} is given twice. Name each draft once.")
    if len(settings.drafts) + len(settings.recipes) < 2:
        raise OptionError(
            "one draft and no recipe leave nothing to choose. Give another --draft, or a --recipe."
        )
    if not settings.traffic_path.is_file():
        raise OptionError(
            f"no traffic file '{settings.traffic_path}'. Make it with `quantdraft capture`."
        )


def _pair(settings: SelectSettings) -> _Pairing:
    """Open the drafts whose tokens are the target's; one that cannot be read is an error."""
    target_path = resolve_model(settings.target)
    fitting: dict[str, Checkpoint] = {}
    refused: dict[str, str] = {}
    warnings: dict[str, tuple[str, ...]] = {}
    for draft in settings.drafts:
        path = resolve_model(draft)
        checkpoint = open_checkpoint(path)
        try:
            require_draft_model(checkpoint, "replayed")
        except CheckpointError as error:
            refused[draft] = str(error)
            continue
        require_loadable(checkpoint)
        findings = check_pairing(target_path, path)
        errors = [finding.message for finding in findings if finding.level == "error"]
        if errors:
            refused[draft] = errors[0]
            continue
        fitting[draft] = checkpoint
        warnings[draft] = tuple(f.message for f in findings if f.level == "warning")
    target = open_checkpoint(target_path)
    require_loadable(target)
    return _Pairing(target, fitting, refused, warnings)


def _measure(
    settings: SelectSettings, pairing: _Pairing, say: Say
) -> tuple[list[Cell], dict[str, Outcome]]:
    sweep = SweepSettings(
        drafts=tuple(pairing.fitting),
        recipes=settings.recipes or (AS_IS,),
        traffic_path=settings.traffic_path,
        output=settings.output,
        target=settings.target,
        evaluations=settings.evaluations,
        calibration=settings.calibration,
        changes=settings.changes,
    )
    asked, jobs = grid(sweep)
    if settings.changes:
        tell_unchanged(sweep.recipes, settings.changes, say)
    cells, jobs = with_known_runs(
        asked, jobs, settings.runs, settings.evaluations, pairing.target, pairing.fitting
    )
    for before, cell in zip(asked, cells, strict=True):
        if cell.run_dir != before.run_dir:
            say(f"Measured before: {cell.draft} + {cell.recipe}, {cell.run_dir}")
    with bar(len(jobs), "select", "job") as advance:
        outcomes = run_local(jobs, settings.output / "logs", lambda outcome: advance(1))
    known = {cell.job: Outcome(cell.job, was_done=True) for cell in cells}
    return cells, known | outcomes


def _conclude(
    settings: SelectSettings,
    pairing: _Pairing,
    cells: Sequence[Cell],
    outcomes: dict[str, Outcome],
) -> Selection:
    failed = {
        f"{cell.draft} + {cell.recipe}": error
        for cell in cells
        if (error := outcomes[cell.job].error) is not None
    }
    runs = [
        (cell, read_evaluation(cell.run_dir / RECORD_FILE))
        for cell in cells
        if outcomes[cell.job].error is None
    ]
    if not runs:
        name, why = next(iter(failed.items()))
        raise OptionError(f"nothing could be measured. {name}: {why}")
    runs, apart = _split_by_prompts(runs)
    contenders = _contenders(pairing, runs)
    first = runs[0][1]
    common_k = nearest_to_usual(first.num_speculative_tokens)
    basis = basis_of(contenders)
    return Selection(
        schema_version=SELECTION_SCHEMA_VERSION,
        target=settings.target,
        traffic=str(settings.traffic_path),
        acceptance_rule=first.acceptance_rule,
        num_prompts=len(first.prompts),
        common_k=common_k,
        basis=basis,
        basis_reason="" if basis == "measured" else _why_predicted(contenders),
        rows=rank(contenders, common_k, settings.evaluations.seed),
        refused=pairing.refused,
        failed=failed | apart,
        warnings={draft: lines for draft, lines in pairing.warnings.items() if lines},
        min_speedup=load_policy(settings.evaluations.policy).min_speedup_over_autoregressive,
    )


def _split_by_prompts(
    runs: list[tuple[Cell, Evaluation]],
) -> tuple[list[tuple[Cell, Evaluation]], dict[str, str]]:
    """Return the runs on all prompts, and why the others are left out, by name.

    A recipe that was calibrated on some of the traffic is judged on the rest: its prompts are not
    the others'.
    """
    fullest = max(len(run.prompts) for _, run in runs)
    apart = {
        f"{cell.draft} + {cell.recipe}": (
            "calibrated on a part of this traffic, so replayed on fewer prompts. Give "
            "--calibration another file"
        )
        for cell, run in runs
        if len(run.prompts) < fullest
    }
    return [(cell, run) for cell, run in runs if len(run.prompts) == fullest], apart


def _contenders(
    pairing: _Pairing, runs: Sequence[tuple[Cell, Evaluation]]
) -> tuple[Contender, ...]:
    """Return every draft once as it is, by its first run, and once for each recipe."""
    of_target = byte_ledger(pairing.target)
    size = traits_of(pairing.target).num_parameters
    found: list[Contender] = []
    seen: set[str] = set()
    for cell, run in runs:
        traits = traits_of(pairing.fitting[cell.draft])
        arms: dict[Arm, str] = {} if cell.draft in seen else {"baseline": "none"}
        if cell.recipe != AS_IS:
            arms["candidate"] = cell.recipe
        seen.add(cell.draft)
        for arm, recipe in arms.items():
            found.append(
                Contender(
                    draft=cell.draft,
                    recipe=recipe,
                    arm=arm,
                    run=run,
                    step_bytes=int(run.ledger[arm]["step_bytes"]),
                    target_step_bytes=of_target.step_bytes(int(run.ledger["context_length"])),
                    traits=traits,
                    size_ratio=size / traits.num_parameters,
                )
            )
    return tuple(found)


def _why_predicted(contenders: Sequence[Contender]) -> str:
    """Return the first reason that a speed is missing; a comparison needs all of them."""
    for each in contenders:
        undefined = each.run.latency.undefined
        for arm in (each.arm, "target"):
            if arm in undefined:
                return f"{each.name} was not timed ({undefined[arm]})"
    return "not every step was timed"
