"""apply: a recipe and a draft become a checkpoint, whole and proven, or nothing at all."""

from __future__ import annotations

import fnmatch
import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantdraft.checkpoints.checkpoint import (
    MANIFEST_FILE,
    MANIFEST_SCHEMA_VERSION,
    Checkpoint,
    open_checkpoint,
    require_own_files,
    require_tokenizer,
)
from quantdraft.checkpoints.heads import DraftHead, draft_head
from quantdraft.checkpoints.stored_formats import HEAD
from quantdraft.checkpoints.weights import FLOAT_DTYPES, INDEX_FILE
from quantdraft.common.files import hidden_directory, require_apart, whole_directory, write_json
from quantdraft.errors import CheckpointError, RecipeError
from quantdraft.quantize.backends import BACKENDS, QuantizationJob
from quantdraft.quantize.calibration import CalibrationData, calibration_data
from quantdraft.quantize.head_recipes import recipe_for_head
from quantdraft.quantize.ledger import (
    byte_ledger,
    embedding_name,
    head_options,
    judged_context,
    project,
)
from quantdraft.quantize.proof.proof import Proof, prove
from quantdraft.quantize.recipe import Recipe
from quantdraft.quantize.recipe_formats import formats_by_module
from quantdraft.record import MIN_SPEEDUP
from quantdraft.record.provenance import directory_sha256, environment, model_identity
from quantdraft.record.step_bytes import ledger_summary
from quantdraft.record.wording import counted

# What belongs to a model besides config and weights, and is copied as it is.
CARRIED = (
    "tokenizer*", "*.model", "vocab.*", "merges.txt", "special_tokens_map.json", "spiece.*",
    "added_tokens.json", "generation_config.json", "chat_template*", "*.jinja", "tekken.json",
    "LICENSE*", "NOTICE*",
    "mask_embedding.pt",  # of some DFlash heads: vLLM reads it beside the weights; it is not opened
)  # fmt: skip
_EQUAL_LOGITS = "logits equal the draft's"
# Their projections are Conv1D modules, stored transposed: no format here describes them.
TRANSPOSED_MODEL_TYPES = frozenset({"gpt2", "openai-gpt"})


def apply(
    recipe: Recipe,
    draft: str,
    output: Path | None = None,
    *,
    calibration: Path | None = None,
    device: str | None = None,
    revision: str | None = None,
    force: bool = False,
    min_speedup: float = MIN_SPEEDUP,
    progress: Callable[[str], None] | None = None,
    announce: Callable[[str], None] | None = None,
) -> Checkpoint:
    """Quantize a draft into `output`, re-open it, prove it, and return it.

    draft: a directory or a Hub id; output: `<draft>-<recipe>` in the current directory by default;
    calibration: a traffic file, for a recipe that is calibrated; progress is told each step;
    min_speedup: what a go needs by the policy, against which the byte ledger is held.
    announce is told, before anything is done, what a draft head could gain by its bytes alone.
    Raises a QuantDraftError, one line, and then leaves nothing behind.
    """
    from quantdraft.checkpoints.tensors.loading import pick_device, resolve_model

    report = progress or (lambda message: None)
    source = open_checkpoint(resolve_model(draft, revision))
    require_own_files(source.path)
    head = draft_head(source)
    if head is None:
        require_tokenizer(source)
    else:
        recipe = recipe_for_head(recipe, head)
    require_applicable(recipe, source)
    if head is not None and announce is not None:
        announce(_outlook(recipe, source, head, min_speedup))
    target_dir = output or Path(f"{source.name}-{recipe.name}")
    require_apart(target_dir, source.path, "the draft")
    if calibration is not None:
        require_apart(target_dir, calibration, "what it is calibrated on")
    torch_device = pick_device(device)
    data = calibration_data(recipe, source, calibration)
    with whole_directory(target_dir, force) as staging:
        with _staged_source(recipe, source, target_dir) as staged:
            job = QuantizationJob(recipe, staged, staging, str(torch_device), data.samples, report)
            BACKENDS[recipe.backend](job)
        _carry_over(source, staging)
        report("re-opening and checking what was written")
        candidate = open_checkpoint(staging)
        proof = prove(recipe, source, candidate, torch_device)
        manifest = _manifest(recipe, source, candidate, data, proof, min_speedup) | {
            "draft": model_identity(source, draft) | {"path": str(source.path.absolute())},
            "environment": environment(str(torch_device)),
        }
        write_json(staging / MANIFEST_FILE, manifest)
    return open_checkpoint(target_dir)


def require_applicable(recipe: Recipe, source: Checkpoint) -> None:
    """Raise RecipeError where the recipe does not fit the draft; nothing is skipped in silence."""
    if recipe.is_identity:
        return
    if source.quantization is not None:
        method = source.quantization.get("quant_method", "an unknown method")
        raise RecipeError(
            f"'{source.path}' is quantized already ({method}). Give the full-precision draft."
        )
    if source.config.get("model_type") in TRANSPOSED_MODEL_TYPES:
        raise RecipeError(
            f"recipe {recipe.name!r} quantizes Linear modules; '{source.path}' is of type "
            f"{source.config['model_type']!r}, whose weights are stored transposed. "
            "Use a draft of another architecture."
        )
    if recipe.modifiers is None and recipe.scheme != "none":
        _require_whole_groups(recipe, source)


def _outlook(recipe: Recipe, source: Checkpoint, head: DraftHead, min_speedup: float) -> str:
    """What of a draft head can be quantized, and the most that it could give."""
    before, after = byte_ledger(source), project(source, recipe)
    summary = ledger_summary(before, after, min_speedup=min_speedup)
    return f"{head.summary()} {summary['sentence']}"


def _require_whole_groups(recipe: Recipe, source: Checkpoint) -> None:
    formats = formats_by_module(recipe, source.tensors)
    widths = {module: source.tensors[f"{module}.weight"] for module in formats}
    if source.has_tied_head and recipe.lm_head != "keep":
        widths[HEAD] = source.tensors[embedding_name(source)]
        formats |= formats_by_module(recipe, {f"{HEAD}.weight": widths[HEAD]})
    if not formats:
        raise RecipeError(f"recipe {recipe.name!r} ignores every layer of '{source.path}'.")
    for module, info in widths.items():
        fmt, columns = formats[module], info.shape[1]
        group_size = fmt.block[1] if fmt.block else fmt.group_size
        if fmt.library == "bitsandbytes":  # its blocks run on from row to row
            group_size = None
        if info.dtype not in FLOAT_DTYPES - {"F64"}:
            raise RecipeError(
                f"recipe {recipe.name!r}: '{module}' holds {info.dtype}, not 16- or 32-bit floats."
            )
        if group_size is not None and columns % group_size:
            smaller = f"copy the recipe and set group_size: {math.gcd(columns, 128)}, or "
            is_fixed = fmt.block is not None or fmt.kind != "int"
            raise RecipeError(
                f"recipe {recipe.name!r}: '{module}' has {columns} inputs, which groups of "
                f"{group_size} do not divide. To go on, {'' if is_fixed else smaller}"
                "use a recipe with one scale per row (int8, fp8)."
            )


@contextmanager
def _staged_source(recipe: Recipe, source: Checkpoint, output: Path) -> Iterator[Checkpoint]:
    """Links to what belongs to the model alone; a tied head to be quantized gets its own tensor.

    A draft's directory may hold more than the model (other formats, pickles); the backend must not
    see, copy or load it.
    """
    staging = hidden_directory(output, "source")
    try:
        files = sorted({info.file for info in source.tensors.values()})
        if source.has_tied_head and recipe.lm_head != "keep" and not recipe.is_identity:
            _untie(source, staging, files)
        else:
            optional = [INDEX_FILE] if (source.path / INDEX_FILE).is_file() else []
            for file in ["config.json", *optional, *files]:
                (staging / file).symlink_to((source.path / file).resolve())
        for path in _carried(source.path):  # GPTQ asks for a tokenizer
            (staging / path.name).symlink_to(path.resolve())
        yield open_checkpoint(staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _untie(source: Checkpoint, staging: Path, files: list[str]) -> None:
    """Stage the draft with its embedding table stored a second time, as lm_head.weight."""
    from safetensors.torch import save_file

    from quantdraft.checkpoints.tensors.unpacking import read_tensor

    total = len(files) + 1
    renamed = {f: f"model-{i:05d}-of-{total:05d}.safetensors" for i, f in enumerate(files, 1)}
    for file, link in renamed.items():
        (staging / link).symlink_to((source.path / file).resolve())
    head_file = f"model-{total:05d}-of-{total:05d}.safetensors"
    head = read_tensor(source, embedding_name(source))
    save_file({f"{HEAD}.weight": head}, staging / head_file, metadata={"format": "pt"})
    weight_map = {name: renamed[info.file] for name, info in source.tensors.items()}
    index = {"metadata": {}, "weight_map": weight_map | {f"{HEAD}.weight": head_file}}
    write_json(staging / INDEX_FILE, index)
    config = source.config | {"tie_word_embeddings": False}
    if "text_config" in config:
        config["text_config"] = config["text_config"] | {"tie_word_embeddings": False}
    write_json(staging / "config.json", config)


def _carry_over(source: Checkpoint, output: Path) -> None:
    """Copy tokenizer, chat template and generation settings."""
    for path in _carried(source.path):
        shutil.copyfile(path, output / path.name)
    for path in output.iterdir():  # some writers make files that only their owner can read
        path.chmod(0o644)


def _carried(directory: Path) -> list[Path]:
    files = sorted(path for path in directory.iterdir() if path.is_file())
    return [p for p in files if any(fnmatch.fnmatch(p.name, pattern) for pattern in CARRIED)]


def _manifest(
    recipe: Recipe,
    source: Checkpoint,
    candidate: Checkpoint,
    data: CalibrationData,
    proof: Proof,
    min_speedup: float,
) -> dict[str, Any]:
    """The content of quantdraft.json. No date in it: the same inputs give the same bytes."""
    draft = draft_head(source)
    has_options = recipe.modifiers is None and (draft is None or draft.can_quantize_head)
    head = head_options(source, recipe) if has_options else ()
    family = {} if draft is None else {"draft_head": draft.family.name}
    return {
        "schema_version": MANIFEST_SCHEMA_VERSION,
        "recipe": json.loads(recipe.model_dump_json()),
        "calibration": data.record,
        "seeds": {"calibration": recipe.calibration.seed if recipe.calibration else None},
        "ledger": ledger_summary(
            byte_ledger(source),
            byte_ledger(candidate),
            context_length=judged_context(recipe),
            head=head,
            min_speedup=min_speedup,
        ),
        "proof": proof.as_dict(),
        "sha256": directory_sha256(candidate.path, exclude=frozenset({MANIFEST_FILE})),
        **family,
    }


def applied_lines(checkpoint: Checkpoint) -> list[str]:
    """What `apply` did, for the terminal: where it lies, what was proven, what it could gain."""
    manifest = checkpoint.manifest
    if manifest is None:
        raise CheckpointError(
            f"'{checkpoint.path}' has no {MANIFEST_FILE}: `quantdraft apply` did not make it."
        )
    proof, ledger = manifest["proof"], manifest["ledger"]
    checked = (
        f"{counted(proof['num_quantized_modules'], 'layer')} quantized, each within "
        f"{proof['largest_weight_error']:.4f} of the draft's weights "
        f"(limit {proof['weight_error_limit']}); {_about_logits(proof)}"
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
        f"Written: {checkpoint.path} ({manifest['recipe']['summary']})",
        f"Checked: {checked}.",
        f"Ledger:  {ledger['sentence']}",
        f"         {ledger['head_advice']}",
    ]
    return [line for line in lines if not line.endswith("None")]


def _about_logits(proof: dict[str, Any]) -> str:
    if proof.get("without_logits"):
        return f"the rest to the bit as it was; {proof['without_logits']}"
    return (
        f"logits {proof['baseline_logit_distance']:.4f} from the draft's, "
        f"{proof['logit_distance']:.4f} from those of the stored integers "
        f"(limit {proof['logit_distance_limit']})"
    )
