"""What an engine does with a checkpoint, as far as its config tells. Plain data, no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.dense_view import stored_modules

Severity = Literal["refuse", "warn"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that stops an engine from serving the draft, or that its user must know."""

    severity: Severity
    message: str


@dataclass(frozen=True, slots=True)
class Draft:
    """What the checks look at: where the draft will lie, its config, and its target's if known."""

    path: Path
    config: dict[str, Any]
    target_config: dict[str, Any] | None = None
    # Outputs and inputs of the matrices of 16-bit inputs and integers in groups, by module.
    grouped: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    # Last parts of its tensors' names: weight, weight_scale; empty where they were not read.
    parameters: frozenset[str] = frozenset()

    @property
    def quantization(self) -> dict[str, Any]:
        """The quantization config, empty for a full-precision draft."""
        text = self.config.get("text_config") or {}
        found = self.config.get("quantization_config") or text.get("quantization_config")
        return dict(found or {})

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The config groups of a compressed-tensors checkpoint."""
        return list((self.quantization.get("config_groups") or {}).values())

    @property
    def format(self) -> str:
        """The format by its weights and inputs: W4A16, W8A16, INT8, FP8, FP8_BLOCK, or a method."""
        if not self.groups:
            return str(self.quantization.get("quant_method", "none")).upper()
        weights = self.groups[0].get("weights") or {}
        inputs = self.groups[0].get("input_activations")
        if weights.get("type") == "float":
            return _float_format(weights, inputs)
        bits = weights.get("num_bits")
        return "INT8" if inputs else f"W{bits}A16"


def stored_draft(checkpoint: Checkpoint, target_config: dict[str, Any] | None) -> Draft:
    """Return what the checks look at of a checkpoint where it lies."""
    grouped = {
        each.name: (each.shape[0], each.shape[1])
        for each in stored_modules(checkpoint)
        if each.fmt.kind == "int"
        and each.fmt.group_size
        and each.fmt.activations is None
        and len(each.shape) == 2
    }
    parameters = frozenset(name.rpartition(".")[2] for name in checkpoint.tensors)
    path = checkpoint.path.absolute()
    return Draft(path, checkpoint.config, target_config, grouped, parameters)


def _float_format(weights: dict[str, Any], inputs: dict[str, Any] | None) -> str:
    if weights.get("num_bits") != 8:
        return f"FP{weights.get('num_bits')}"
    if weights.get("strategy") == "block":
        return "FP8_BLOCK"
    is_static = bool(inputs) and not (inputs or {}).get("dynamic")
    return "FP8_STATIC" if is_static else "FP8"


def vocab_size(config: dict[str, Any] | None) -> int | None:
    """Return the rows of the embedding table, or None where the config does not say."""
    config = config or {}
    found = (config.get("text_config") or config).get("vocab_size")
    return int(found) if found is not None else None


def float_type(config: dict[str, Any] | None) -> str | None:
    """Return the float type that a config names: bfloat16, float16, float32."""
    config = config or {}
    text = config.get("text_config") or {}
    found = config.get("dtype") or config.get("torch_dtype") or text.get("dtype")
    # It becomes a part of launch lines and of a script: a word, or nothing.
    word = re.fullmatch(r"(?:torch\.)?([A-Za-z]\w{0,31})", str(found or ""))
    return word.group(1) if word else None


def float_mix(draft: Draft) -> Iterator[Finding]:
    """Yield what a float16 on one side alone means: the draft runs in the target's float type."""
    own, target = float_type(draft.config), float_type(draft.target_config)
    if "float16" not in {own, target} or own == target:
        return
    shown = f"the draft is {own or 'of unknown type'} and the target {target or 'of unknown type'}"
    if target == "float16" and own == "bfloat16":
        yield Finding(
            "refuse",
            f"{shown}: the draft runs in the target's type, and a bfloat16 model forced to float16 "
            "once accepted none of 1,100 tokens (vllm#55294). Serve the target in bfloat16.",
        )
        return
    yield Finding(
        "warn",
        f"{shown}, in which the engine runs both: watch the acceptance rate (vllm#55294).",
    )


def misnamed_scale(draft: Draft, wanted: str, engine: str) -> Iterator[Finding]:
    """Yield a refusal where an FP8 checkpoint's scales have not the name that the engine reads."""
    scales = draft.parameters & {"weight_scale", "weight_scale_inv"}
    if draft.quantization.get("quant_method") == "fp8" and scales and wanted not in scales:
        yield Finding(
            "refuse",
            f"the scales of its FP8 weights are named '{min(scales)}', and {engine} reads "
            f"'{wanted}' for this config: the weights would go without. Make the draft with "
            "`apply --recipe fp8`.",
        )


def fp8_scale_name(draft: Draft) -> str:
    """Return the name of FP8 scales for vLLM and SGLang: by blocks, or one for each weight."""
    has_blocks = draft.quantization.get("weight_block_size") is not None
    return "weight_scale_inv" if has_blocks else "weight_scale"


def several_groups(draft: Draft, engine: str) -> Iterator[Finding]:
    """Yield a warning for more than one scheme in one checkpoint."""
    if len(draft.groups) > 1:
        yield Finding(
            "warn",
            f"the draft has {len(draft.groups)} quantization config groups: check that {engine} "
            "reads each of them.",
        )


def unequal_vocabulary(draft: Draft, allowed: int = 0) -> str | None:
    """Return a clause that says both embeddings' rows, where they are known to differ by more."""
    own, target = vocab_size(draft.config), vocab_size(draft.target_config)
    if own is None or target is None or abs(own - target) <= allowed:
        return None
    return f"vocab_size is {own} in the draft and {target} in the target"
