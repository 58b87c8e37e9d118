"""The checkpoints of an evaluation, opened, and refused where they cannot be measured together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantdraft.checkpoints.checkpoint import Checkpoint, open_checkpoint, require_tokenizer
from quantdraft.checkpoints.configs import num_positions
from quantdraft.checkpoints.heads.head import require_draft_model
from quantdraft.checkpoints.pairing import require_compatible
from quantdraft.checkpoints.tensors.loading import require_loadable, resolve_model
from quantdraft.errors import CheckpointError, OptionError
from quantdraft.measure.settings import ModelSettings


@dataclass(frozen=True, slots=True)
class Models:
    """The opened checkpoints; `target` is None when only its traffic is at hand."""

    target: Checkpoint | None
    baseline: Checkpoint
    candidate: Checkpoint


def open_models(settings: ModelSettings, longest_context: int = 0) -> Models:
    """Open the named models.

    longest_context: tokens of the longest context that will be timed
    Raises CheckpointError, PairingError for models whose token ids differ, and OptionError for a
    context that a model cannot hold.
    """
    candidate = open_checkpoint(resolve_model(settings.candidate))
    require_draft_model(candidate, "replayed")
    require_tokenizer(candidate)
    require_loadable(candidate)
    baseline = open_checkpoint(resolve_model(settings.baseline or source_of(candidate)))
    require_loadable(baseline)
    require_compatible(baseline.path, candidate.path)
    target = None
    if settings.target is not None:
        target = open_checkpoint(resolve_model(settings.target))
        require_loadable(target)
        require_compatible(target.path, candidate.path)
    for model in (candidate, target):
        _require_positions(model, longest_context)
    return Models(target, baseline, candidate)


def _require_positions(model: Checkpoint | None, context_length: int) -> None:
    positions = None if model is None else num_positions(model.text_config)
    if model is not None and positions is not None and context_length >= positions:
        raise OptionError(
            f"--context-length {context_length} is too long: '{model.name}' has {positions} "
            "positions."
        )


def source_of(candidate: Checkpoint) -> str:
    """Return the full-precision draft that `apply` made a candidate from, by its manifest."""
    draft = (candidate.manifest or {}).get("draft", {})
    if not draft or not draft.get("path"):
        raise OptionError(
            f"'{candidate.path}' does not say which draft it was made from. Give --baseline."
        )
    if Path(draft["path"]).is_dir():
        return str(draft["path"])
    # Never from the Hub: it is the checkpoint that names the draft, not the user.
    raise CheckpointError(
        f"the draft '{draft['path']}', from which '{candidate.path}' was made, is gone. "
        f"Give --baseline: its directory, or its Hub id ({draft.get('name')!r}, it says)."
    )
