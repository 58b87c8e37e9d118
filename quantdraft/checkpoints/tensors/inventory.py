"""Compare the tensors that a checkpoint's files stand for with those that its architecture needs.

transformers' own loader compares them, on tensors without data: its renames, and the way it stacks
experts, count, and nothing large is allocated. What it leaves out by design (MTP layers, buffers of
old checkpoints) is explained and no fault.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.dense_view import dense_view
from quantdraft.checkpoints.tied_head import TIED_FLAG, find_copied_head, tied_flag
from quantdraft.errors import CheckpointError, MissingPackageError, QuantDraftError, first_line

Shape = tuple[int, ...]
# What old checkpoints stored and is computed today, and the modules that predict further tokens.
EXPLAINED = re.compile(
    r"(.*\.)?(rotary_emb\.\w*(cos|sin|inv_freq)\w*|(attn|attention)\.(masked_)?bias|position_ids)"
    r"|(model\.)?(mtp|mtp_layers|nextn)\..*"
)
LAYER = re.compile(r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)\..*")
EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(.*)")
ADAPTER = re.compile(r".*\b(lora_\w+|modules_to_save|ia3_l)\b.*")
NUM_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
# Of transformers' models: no published interface, and the only account of what a file lacks.
LOADER = ("_load_pretrained_model", "_adjust_missing_and_unexpected_keys")
NUM_NEXT_LAYERS = "num_nextn_predict_layers"


@dataclass(frozen=True, slots=True)
class Differences:
    """Names of tensors: absent, left over, of another shape than needed, and not to be stacked."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[tuple[str, Shape, Shape], ...] = ()  # name, stored shape, needed shape
    unstackable: tuple[str, ...] = ()  # parameters whose stored parts do not fit together


@dataclass(frozen=True, slots=True)
class _Question:
    """A config and the shapes of the tensors beside it, to be asked once a process."""

    text: str  # of the config
    shapes: frozenset[tuple[str, Shape]]
    config: Any = field(compare=False)
    path: Path = field(compare=False)


def require_complete(checkpoint: Checkpoint, config: Any) -> None:
    """Raise CheckpointError, with the tensor, unless the files hold what the architecture needs.

    config: as transformers loaded it. Of a model type that it has no language model for, nothing is
    known, and loading says so.
    """
    if getattr(config, TIED_FLAG, False) and tied_flag(checkpoint.config) is None:
        find_copied_head(checkpoint.path, {TIED_FLAG: True}, checkpoint.tensors)
    shapes = frozenset((name, info.shape) for name, info in dense_view(checkpoint).items())
    found = _compare(_Question(config.to_json_string(), shapes, config, checkpoint.path))
    for sentence in _sentences(found, checkpoint):
        raise CheckpointError(f"'{checkpoint.path}' {sentence}")


@lru_cache(maxsize=32)
def _compare(question: _Question) -> Differences:
    """Return how the tensors differ from what the config's architecture needs."""
    from transformers import AutoModelForCausalLM

    shapes = dict(question.shapes)
    if holes := tuple(_missing_experts(shapes)):
        return Differences(missing=holes)
    if type(question.config) not in AutoModelForCausalLM._model_mapping:
        return Differences()
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(question.config, trust_remote_code=False)
    except ImportError as error:  # of a tower: timm and the like
        raise MissingPackageError(
            f"transformers needs a package for models of the type {question.config.model_type!r} "
            f"that is not installed: {' '.join(str(error).split())}"
        ) from error
    except Exception as error:  # each architecture checks its fields in its own way, or not at all
        raise CheckpointError(
            f"'{question.path}' has a config.json of which transformers makes no "
            f"{question.config.model_type}: {type(error).__name__}: {first_line(error)}"
        ) from error
    _require_partial_rotation(model, question.path)
    info = _load_without_data(model, shapes)
    text = model.config.get_text_config()
    return Differences(
        missing=tuple(sorted(info.missing_keys)),
        unexpected=tuple(n for n in sorted(info.unexpected_keys) if not _is_explained(n, text)),
        mismatched=tuple(sorted((n, tuple(a), tuple(b)) for n, a, b in info.mismatched_keys)),
        unstackable=tuple(sorted(info.conversion_errors)),
    )


def _require_partial_rotation(model: Any, path: Path) -> None:
    """Refuse a 'partial_rotary_factor' that transformers' model rotates nothing less for.

    vLLM obeys it in every architecture.
    """
    text = model.config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    factor = rope.get("partial_rotary_factor") or getattr(text, "partial_rotary_factor", None)
    if not isinstance(factor, float) or factor >= 1 or rope.get("rope_type") != "default":
        return
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    rotated = {2 * len(b) for name, b in model.named_buffers() if name.endswith("inv_freq")}
    if rotated == {size}:
        raise CheckpointError(
            f"'{path}' has a partial_rotary_factor of {factor}, which transformers' "
            f"{type(model).__name__} does not know: it rotates all {size} dimensions of a head, "
            "and vLLM a part. Keep what it was trained with: without the field, or with a "
            "model_type that has it."
        )


def _load_without_data(model: Any, shapes: Mapping[str, Shape]) -> Any:
    """Return transformers' own account of loading tensors of these shapes into a model on meta.

    `from_pretrained` does these steps; to be told the device it would need the accelerate package.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.modeling_utils import LoadStateDictConfig
    except ImportError as error:
        raise _other_library(str(error)) from error
    for name in LOADER:
        if not hasattr(model, name):
            raise _other_library(f"its models have no {name}")
    dtype, meta = model.dtype, torch.device("meta")
    tensors = {n: torch.empty(shape, dtype=dtype, device=meta) for n, shape in shapes.items()}
    how = LoadStateDictConfig(
        ignore_mismatched_sizes=True,
        device_map={"": meta},
        dtype=dtype,
        weight_mapping=get_model_conversion_mapping(model),
    )
    info, _ = model._load_pretrained_model(model, tensors, None, how)
    model.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
    model._adjust_missing_and_unexpected_keys(info)
    return info


def _other_library(found: str) -> QuantDraftError:
    """Return the error for a transformers whose loader has changed: its parts used are its own."""
    import transformers

    return QuantDraftError(
        f"transformers {transformers.__version__} loads models in a way that this quantdraft does "
        f"not know ({found}). Install one that it was made for: pip install --upgrade quantdraft"
    )


def _is_explained(name: str, config: Any) -> bool:
    """Return True for a tensor that is left out by design."""
    layer = LAYER.fullmatch(name)
    if layer is not None:  # MTP modules follow the layers, and are numbered on
        first, count = config.num_hidden_layers, getattr(config, NUM_NEXT_LAYERS, None) or 0
        if first <= int(layer[1]) < first + count:
            return True
    return EXPLAINED.fullmatch(name) is not None


def _missing_experts(names: Iterable[str]) -> Iterator[str]:
    """Yield the parts that one expert of a layer lacks and another one has."""
    indices: dict[str, set[str]] = {}
    parts: dict[str, set[str]] = {}
    known = set(names)
    for name in known:
        if found := EXPERT.fullmatch(name):
            indices.setdefault(found[1], set()).add(found[2])
            parts.setdefault(found[1], set()).add(found[3])
    for experts in sorted(indices):
        wanted = {f"{experts}.{i}.{p}" for i in indices[experts] for p in parts[experts]}
        yield from sorted(wanted - known)


def _sentences(found: Differences, checkpoint: Checkpoint) -> Iterator[str]:
    """Yield what is wrong, what tells most first, each with what to do."""
    for name, stored, needed in found.mismatched:
        yield (
            f"holds {name!r} in the shape {list(stored)}, and its config.json asks for "
            f"{list(needed)}{_rows(needed, checkpoint)}: one of the two belongs to another "
            "model. Copy both from one place."
        )
    for name in found.missing:
        yield (
            f"lacks {_counted(name, found.missing)}, which its config.json asks for"
            f"{_about(name, checkpoint)}. A model without it would compute with random numbers. "
            "Download or copy it again, or correct config.json."
        )
    for name in found.unexpected:
        yield (
            f"holds {_counted(name, found.unexpected)}, which its config.json has no use for"
            f"{_about(name, checkpoint)}: it would be dropped without a word. {_advice(name)}"
        )
    for name in found.unstackable:
        yield (
            f"holds parts of {name!r} that do not fit together. Download or copy it again, or "
            "correct config.json."
        )


def _rows(needed: Shape, checkpoint: Checkpoint) -> str:
    size = checkpoint.text_config.get("vocab_size")
    return f" (vocab_size is {size})" if needed[:1] == (size,) else ""


def _counted(name: str, names: tuple[str, ...]) -> str:
    return f"the tensor {name!r}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _about(name: str, checkpoint: Checkpoint) -> str:
    """Return what the config says that a missing or superfluous tensor hangs on."""
    config = checkpoint.text_config
    key = next((key for key in NUM_LAYERS if config.get(key) is not None), None)
    if key is not None and LAYER.fullmatch(name):
        layers = {m[1] for m in map(LAYER.fullmatch, checkpoint.tensors) if m}
        if len(layers) != config[key]:
            return f" ({key} is {config[key]}, and tensors of {len(layers)} layers are stored)"
    if name.rpartition(".")[0].endswith("lm_head"):
        said = {True: "true", False: "false", None: "not set"}[tied_flag(checkpoint.config)]
        return f" ({TIED_FLAG} is {said})"
    return ""


def _advice(name: str) -> str:
    if ADAPTER.fullmatch(name):
        return "It is an adapter's: merge the adapter first (merge_and_unload)."
    return "Is config.json the one that belongs to these weights?"
