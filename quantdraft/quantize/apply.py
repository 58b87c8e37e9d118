"""apply: quantize a draft into a whole and proven checkpoint, or write nothing."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quantdraft.checkpoints.checkpoint import (
    MANIFEST_FILE,
    MANIFEST_SCHEMA_VERSION,
    Checkpoint,
    open_checkpoint,
    require_tokenizer,
)
from quantdraft.checkpoints.heads.head import DraftHead, draft_head
from quantdraft.checkpoints.heads.opening import open_head
from quantdraft.checkpoints.links import require_own_files
from quantdraft.common.files import require_apart, whole_directory, write_json
from quantdraft.errors import CheckpointError
from quantdraft.quantize.backends import BACKENDS
from quantdraft.quantize.backends.job import QuantizationJob
from quantdraft.quantize.calibration import CalibrationData, calibration_data
from quantdraft.quantize.fitting import fit_recipe
from quantdraft.quantize.inner_mtp import keep_mtp
from quantdraft.quantize.ledger import weigh_recipe
from quantdraft.quantize.proof.proof import prove
from quantdraft.quantize.recipe import Recipe, load_recipe
from quantdraft.quantize.staging import complete_config, copy_unchanged_files, stage_source
from quantdraft.record import MIN_SPEEDUP
from quantdraft.record.provenance import directory_sha256, environment, model_identity
from quantdraft.record.wording import counted
from quantdraft.traffic.responses import ReadSettings

_EQUAL_LOGITS = "logits equal the draft's"


def apply(
    recipe: Recipe | str,
    draft: str,
    output: Path | None = None,
    *,
    calibration: Path | None = None,
    read: ReadSettings | None = None,
    device: str | None = None,
    revision: str | None = None,
    force: bool = False,
    min_speedup: float = MIN_SPEEDUP,
    progress: Callable[[str], None] | None = None,
    announce: Callable[[str], None] | None = None,
) -> Checkpoint:
    """Quantize a draft into `output`, re-open it, prove it, and return it.

    recipe: a recipe, the name of a bundled one, or a path to a YAML file
    draft: a directory or a Hub id
    output: `<draft>-<recipe>` in the current directory by default
    calibration: a traffic file, for a recipe that is calibrated; others do not read it
    read: how a log is read that is calibrated on; the default finds it out
    min_speedup: the speedup that the policy asks of a go; the byte ledger is compared with it
    progress: called with each step
    announce: called, before anything is done, with what a draft head could gain by its bytes
        alone, and with the part of a traffic that is calibrated on
    Raises a QuantDraftError, one line, and then leaves nothing behind.
    """
    from quantdraft.checkpoints.tensors.devices import pick_device
    from quantdraft.checkpoints.tensors.loading import resolve_model

    if isinstance(recipe, str):
        recipe = load_recipe(recipe)
    report = progress or (lambda message: None)
    torch_device = pick_device(device)
    source, head = _open_draft(resolve_model(draft, revision))
    recipe = fit_recipe(recipe, source, head)
    if head is not None and announce is not None:
        ledger = weigh_recipe(recipe, source, min_speedup=min_speedup)
        announce(f"{head.summary()} {ledger['sentence']}")
    target_dir = output or Path(f"{source.name}-{recipe.name}")
    require_apart(target_dir, source.path, "the draft")
    if calibration is not None:
        require_apart(target_dir, calibration, "what it is calibrated on")
    data = calibration_data(recipe, source, calibration, read)
    if data.note is not None and announce is not None:
        announce(data.note)
    identity = model_identity(source, draft) | {"path": str(source.path.absolute())}
    return write_candidate(
        recipe,
        source,
        target_dir,
        str(torch_device),
        lambda _: {"draft": identity},
        data=data,
        force=force,
        min_speedup=min_speedup,
        report=report,
    )


def write_candidate(
    recipe: Recipe,
    source: Checkpoint,
    output: Path,
    device: str,
    facts: Callable[[Checkpoint], Mapping[str, Any]],
    *,
    data: CalibrationData | None = None,
    force: bool = False,
    min_speedup: float = MIN_SPEEDUP,
    report: Callable[[str], None] = lambda message: None,
) -> Checkpoint:
    """Quantize an opened draft into `output`, re-open it, prove it, and return it.

    recipe: fitted to the draft
    facts: gives what the manifest says besides, of which draft it is made, once all is proven
    """
    from quantdraft.checkpoints.tensors.devices import hidden_gpus, pick_device

    head = draft_head(source)
    data = data or CalibrationData()
    with whole_directory(output, force) as staging:
        with stage_source(recipe, source, output) as staged:
            job = QuantizationJob(recipe, staged, staging, device, data.samples, report)
            with hidden_gpus() if device == "cpu" else contextlib.nullcontext():
                BACKENDS[recipe.backend](job)
            if not recipe.is_identity:
                complete_config(staged, staging)
        keep_mtp(source, staging)
        copy_unchanged_files(source, staging)
        report("re-opening and checking what was written")
        candidate = open_checkpoint(staging)
        proof = prove(recipe, source, candidate, pick_device(device))
        # No date, so that equal inputs give equal bytes.
        manifest = {
            "schema_version": MANIFEST_SCHEMA_VERSION,
            "recipe": json.loads(recipe.model_dump_json()),
            "calibration": data.record,
            "seeds": {"calibration": recipe.seed},
            "ledger": weigh_recipe(recipe, source, candidate, min_speedup),
            "proof": asdict(proof),
            "sha256": directory_sha256(staging),
            **_inherited(source),
            **facts(candidate),
            "environment": environment(device),
        }
        if head is not None:
            manifest["draft_head"] = head.family.name
        write_json(staging / MANIFEST_FILE, manifest)
    return open_checkpoint(output)


def _inherited(source: Checkpoint) -> dict[str, Any]:
    """Return what a trained draft was trained on: what is made of it has seen that too."""
    training = (source.manifest or {}).get("training")
    return {} if training is None else {"training": training}


def _open_draft(path: Path) -> tuple[Checkpoint, DraftHead | None]:
    """Open a draft whose files may be copied, and are all that its architecture needs.

    A draft head needs no tokenizer of its own.
    """
    from quantdraft.checkpoints.tensors.finite import require_finite_files
    from quantdraft.checkpoints.tensors.loading import require_loadable

    source = open_checkpoint(path)
    require_own_files(source.path)
    head = open_head(source)
    if head is None:
        require_tokenizer(source)
        require_loadable(source)
    require_finite_files(source)
    return source, head


def applied_lines(checkpoint: Checkpoint) -> list[str]:
    """Return what `apply` did, for the terminal: the directory, the proof, the possible gain."""
    manifest = checkpoint.manifest
    if manifest is None:
        raise CheckpointError(
            f"'{checkpoint.path}' has no {MANIFEST_FILE}: `quantdraft apply` did not make it."
        )
    proof, ledger = manifest["proof"], manifest["ledger"]
    checked = (
        f"{counted(proof['num_quantized_modules'], 'layer')} quantized, each within "
        f"{proof['largest_weight_error']:.4f} of the draft's weights "
        f"(limit {proof['weight_error_limit']}); {_logits_text(proof)}"
    )
    has_cache = manifest["recipe"].get("kv_cache", "keep") != "keep"
    if has_cache and proof["num_quantized_modules"] == 0:
        checked = (
            "keys and values quantized, their scales above 0; logits "
            f"{proof['baseline_logit_distance']:.4f} from the draft's "
            f"(limit {proof['logit_distance_limit']})"
        )
    elif has_cache:
        checked += "; the cache's scales are above 0"
    elif proof["num_quantized_modules"] == 0:
        checked = f"nothing quantized; {proof.get('without_logits') or _EQUAL_LOGITS}"
    lines = [
        f"Written: {checkpoint.path} ({str(manifest['recipe']['summary']).rstrip('.')})",
        f"Checked: {checked}.",
        f"Ledger:  {ledger['sentence']}",
        f"         {ledger['head_advice']}",
        f"MTP:     {ledger.get('mtp')}",
    ]
    return [line for line in lines if not line.endswith("None")]


def next_step(checkpoint: Checkpoint, policy: Path | None = None) -> str:
    """Return the command that measures what `apply` wrote; a draft head is measured by an engine.

    In capitals stands what is not known here: the target, and traffic or a log.
    """
    path = shlex.quote(str(checkpoint.path))
    if (checkpoint.manifest or {}).get("draft_head"):
        return f"quantdraft export {path} --engine vllm --target TARGET -o {path}-served"
    limits = "" if policy is None else f" --policy {shlex.quote(str(policy))}"
    return f"quantdraft evaluate {path} --target TARGET --traffic TRAFFIC.jsonl{limits}"


def _logits_text(proof: dict[str, Any]) -> str:
    if proof.get("without_logits"):
        return f"all other tensors unchanged; {proof['without_logits']}"
    return (
        f"logits {proof['baseline_logit_distance']:.4f} from the draft's, "
        f"{proof['logit_distance']:.4f} from those of the stored integers "
        f"(limit {proof['logit_distance_limit']})"
    )
