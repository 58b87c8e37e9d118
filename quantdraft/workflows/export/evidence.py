"""What an evaluation allows an export to say: whose weights, which verdict, which k."""

from __future__ import annotations

from collections.abc import Mapping

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.weights import weight_files
from quantdraft.common.files import file_sha256
from quantdraft.errors import OptionError, PairingError, VerdictError
from quantdraft.record import Evaluation
from quantdraft.record.terms import USUAL_K
from quantdraft.report.card import NO_EVALUATION, UNMEASURED_HEAD
from quantdraft.report.sections.headline import sentence


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


def require_verdict(evaluation: Evaluation | None, require_go: bool) -> None:
    """Raise VerdictError under `require_go` for anything but a go."""
    if not require_go:
        return
    if evaluation is None:
        raise VerdictError("--require-go needs an evaluation. Give --run RUN.")
    if evaluation.verdict.decision != "go":
        raise VerdictError(
            f"the verdict on {evaluation.name!r} is {evaluation.verdict.decision}: "
            f"{sentence(evaluation.verdict)} Nothing was exported (--require-go)."
        )


def verdict_warnings(evaluation: Evaluation | None, *, is_head: bool = False) -> tuple[str, ...]:
    """Return the warnings for a draft that is not a go, or was never measured."""
    if evaluation is None:
        return (UNMEASURED_HEAD if is_head else NO_EVALUATION,)
    verdict = evaluation.verdict
    if verdict.decision == "go":
        return ()
    alarms = tuple(f"alarm {alarm.code}: {alarm.message}" for alarm in verdict.alarms)
    return (f"the verdict is {verdict.decision.upper()}: {sentence(verdict)}", *alarms)


def choose_k(evaluation: Evaluation | None, asked: int | None) -> tuple[int, tuple[str, ...]]:
    """Return the k to launch with, and the warning where it is not the measured best."""
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
    return USUAL_K, (f"k = {USUAL_K} is a guess: nothing was measured.",)
