"""Prove a written checkpoint: it is quantized, not corrupt, and what the recipe promised.

Every check reads the finished files. The weights are dequantized here, from the stored integers and
scales, so a fault of the library that wrote or loads them is found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.claims import claims_but_not_quantized
from quantdraft.checkpoints.formats import WeightFormat
from quantdraft.checkpoints.heads.head import DraftHead, draft_head
from quantdraft.checkpoints.stored_formats import (
    KV_SCALES,
    linear_modules,
    matches,
    stored_format,
)
from quantdraft.checkpoints.weights import FLOAT_DTYPES
from quantdraft.common.progress import bar
from quantdraft.errors import CheckpointError
from quantdraft.quantize.proof.tensors import require_promised_tensors
from quantdraft.quantize.proof.weights import (
    ComparedWeights,
    Deviation,
    error_limit,
    require_small,
    require_unchanged,
    unquantized_names,
)
from quantdraft.quantize.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NUM_PROBES, PROBE_LENGTH, PROBE_SEED = 2, 8, 0

# Largest relative distance between the loaded model's logits and those of the baseline carrying our
# dequantized weights (and, where the scheme quantizes inputs, our own rounding of them).
# Weight-only: the same numbers, at most rounded to bf16 (2^-9 each) on the way. Inputs that lie
# between two integers may be rounded differently by the two, and what follows then differs too:
# one FP8 step is 2^-4 to 2^-3 of a value, one INT8 step 2^-7 of the token's largest, hence the
# wider limits. Weights loaded wrongly give unrelated logits, which are 1 to 1.4 apart.
# FP4's steps are four times FP8's.
LOGIT_DISTANCE_LIMITS: Mapping[str | None, float] = {
    None: 0.02,
    "int8": 0.10,
    "float8": 0.20,
    "float4": 0.40,
}
# Weight-only, but multiplied in 16 bits (gptqmodel, bitsandbytes) or unpacked to bf16 (FP4 and MX
# by compressed-tensors): every product is rounded, by 2^-9, and the layers after it see that: 0.026
# after the 30 layers of a real model in NF4. Zero points off by one, what optimum's own writer
# leaves, are 0.28 to 1.4.
SIXTEEN_BIT_LOGIT_LIMIT = 0.10
SIXTEEN_BIT_LIBRARIES = frozenset({"gptq", "bitsandbytes"})
CACHE_LOGIT_LIMIT = 0.20  # keys and values in FP8 and nothing else: as for FP8 inputs
# Where layers traded scale, the weights cannot be held to the draft's, but the function can: what
# one layer gave and the next did not take makes unrelated logits, 1 to 1.4 apart.
MAX_FUNCTION_DISTANCE = 0.9


@dataclass(frozen=True, slots=True)
class Proof:
    """The figures of a proof. Distances are relative to the reference's spread."""

    num_quantized_modules: int
    largest_weight_error: float
    weight_error_limit: float
    baseline_logit_distance: float | None  # to the full-precision draft: above 0, it is quantized
    logit_distance: float | None  # to the logits of our own dequantized weights
    logit_distance_limit: float | None
    weights_bytes: int
    without_logits: str | None = None  # why they were not compared, where they were not


def prove(recipe: Recipe, source: Checkpoint, candidate: Checkpoint, device: torch.device) -> Proof:
    """Open the candidate as an engine would and check it against the source; see the limits above.

    A draft head is not run, as it computes from its target's hidden states: its files are checked.
    Raises CheckpointError, naming what failed. One model is in memory at a time.
    """
    require_promised_tensors(recipe, source, candidate)
    dense = claims_but_not_quantized(candidate)
    if dense is not None:
        raise CheckpointError(dense)
    head = draft_head(source)
    if head is not None:
        return _head_proof(recipe, head, source, candidate)
    if recipe.is_identity:
        return _identity_proof(source, candidate, device)
    if not recipe.moves_scales and recipe.modifiers is None:
        require_unchanged(source, candidate)
    return _quantized_proof(recipe, source, candidate, device)


def _head_proof(
    recipe: Recipe, head: DraftHead, source: Checkpoint, candidate: Checkpoint
) -> Proof:
    from quantdraft.checkpoints.tensors.unpacking import quantized_modules

    require_unchanged(source, candidate)
    _require_excluded(head, candidate)
    _require_scales(candidate, (".weight_scale", ".weight_global_scale"), may_be_zero=True)
    formats = {} if recipe.is_identity else quantized_modules(candidate)
    errors = ComparedWeights(source, candidate, formats).all_errors()
    if not errors and not recipe.is_identity:
        raise CheckpointError(f"'{candidate.path}' holds no quantized layer.")
    require_small(errors, formats)
    reason = (
        f"logits were not compared: a draft head ({head.family.title}) has no forward pass "
        "without its target"
    )
    return Proof(
        len(formats),
        *_widest(errors, formats),
        None,
        None,
        None,
        candidate.num_bytes,
        without_logits=reason,
    )


def _widest(
    errors: Mapping[str, Deviation], formats: Mapping[str, WeightFormat]
) -> tuple[float, float]:
    """Return the largest error of all layers, and its limit; 0 where none is quantized."""
    if not errors:
        return 0.0, 0.0
    widest = max(errors, key=lambda module: errors[module].error)
    return errors[widest].error, error_limit(formats[widest])


def _require_excluded(head: DraftHead, candidate: Checkpoint) -> None:
    """Raise CheckpointError where the config or the tensors quantize what the family excludes."""
    patterns = [pattern for each in head.family.excluded for pattern in each.patterns]
    for module in linear_modules(head.tensors):
        if not matches(module, patterns):
            continue
        info = candidate.tensors.get(f"{module}.weight")
        is_claimed = stored_format(candidate.quantization or {}, module) is not None
        if info is None or info.dtype not in FLOAT_DTYPES or is_claimed:
            raise CheckpointError(
                f"{module!r} is quantized, and engines read it raw in {head.family.title} heads."
            )


def _quantized_proof(
    recipe: Recipe, source: Checkpoint, candidate: Checkpoint, device: torch.device
) -> Proof:
    import torch

    from quantdraft.checkpoints.tensors.unpacking import quantized_modules

    formats = quantized_modules(candidate)
    # Scales of inputs and of the cache, which no weight shows.
    _require_scales(candidate, (*KV_SCALES, ".input_scale", ".input_global_scale"))
    with bar(len(formats), "check against the draft", "layer") as advance:
        stored = ComparedWeights(source, candidate, formats, recipe.moves_scales, advance=advance)
        baseline, reference = _reference_logits(stored, device)
        errors = stored.all_errors()
    require_small(errors, formats)
    logits = probe_logits(candidate, device)
    if torch.equal(logits, baseline):
        raise CheckpointError(
            f"'{candidate.path}' gives the full-precision draft's logits to the last bit: "
            "it is not really quantized."
        )
    limit = max((logit_limit(fmt) for fmt in formats.values()), default=CACHE_LOGIT_LIMIT)
    distance, to_baseline = logit_distance(logits, reference), logit_distance(logits, baseline)
    if not distance <= limit:
        raise CheckpointError(
            f"'{candidate.path}' gives logits {distance:.3f} away from those of its own "
            f"dequantized weights (limit {limit}): it is corrupt, or loaded wrongly."
        )
    if recipe.moves_scales and not to_baseline <= MAX_FUNCTION_DISTANCE:
        raise CheckpointError(
            f"'{candidate.path}' gives logits {to_baseline:.3f} away from the draft's (limit "
            f"{MAX_FUNCTION_DISTANCE}): what was scaled out of one layer is not in the next."
        )
    widest = _widest(errors, formats)
    return Proof(len(formats), *widest, to_baseline, distance, limit, candidate.num_bytes)


def logit_limit(fmt: WeightFormat) -> float:
    """Return how far the loaded model's logits may be from those of our own dequantized weights."""
    if fmt.activations is None and (
        fmt.library in SIXTEEN_BIT_LIBRARIES or fmt.scale_type != "float"
    ):
        return SIXTEEN_BIT_LOGIT_LIMIT
    return LOGIT_DISTANCE_LIMITS[fmt.activations]


def _require_scales(
    candidate: Checkpoint, suffixes: tuple[str, ...], *, may_be_zero: bool = False
) -> None:
    """Raise CheckpointError where a tensor with one of these endings holds what is no scale."""
    from quantdraft.checkpoints.tensors.unpacking import read_tensor

    for name in candidate.tensors:
        if name.endswith(suffixes):
            scale = read_tensor(candidate, name).float()
            is_scale = scale >= 0 if may_be_zero else scale > 0
            wrong = scale[~(is_scale & scale.isfinite())]
            if len(wrong):
                raise CheckpointError(
                    f"{name!r} holds {wrong[0]:g}, which is no scale: a scale is above 0."
                )


def _identity_proof(source: Checkpoint, candidate: Checkpoint, device: torch.device) -> Proof:
    distance = logit_distance(probe_logits(candidate, device), probe_logits(source, device))
    if distance != 0.0:
        raise CheckpointError(f"'{candidate.path}' is not an exact copy of the draft.")
    return Proof(0, 0.0, 0.0, 0.0, 0.0, 0.0, candidate.num_bytes)


def probe_logits(checkpoint: Checkpoint, device: torch.device) -> Tensor:
    """Return logits of the fixed probe, (probes, length, vocab) float32 on the CPU."""
    from quantdraft.quantize.proof.streamed_model import load_on_demand

    return _logits(load_on_demand(checkpoint, device), checkpoint)


def logit_distance(logits: Tensor, reference: Tensor) -> float:
    """Return ‖logits − reference‖ / ‖reference‖, after removing each position's mean."""
    logits = logits - logits.mean(-1, keepdim=True)
    reference = reference - reference.mean(-1, keepdim=True)
    return float((logits - reference).norm() / reference.norm())


def _reference_logits(stored: ComparedWeights, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return logits of the draft as it is, and with every stored weight in place of its own.

    Quantized weights are dequantized here, from the stored numbers.
    """
    from quantdraft.quantize.proof.streamed_model import load_on_demand, take_tensors

    model = load_on_demand(stored.source, device)
    baseline = _logits(model, stored.source)
    # Norms: AWQ changes them.
    take_tensors(model, stored.candidate, unquantized_names(stored.candidate))
    _take_quantized_weights(model, stored)
    return baseline, _logits(model, stored.source)


def _take_quantized_weights(model: Any, stored: ComparedWeights) -> None:
    from quantdraft.checkpoints.tensors.loaded_names import loaded_names
    from quantdraft.quantize.proof.streamed_model import provide

    def read(name: str) -> list[Tensor]:
        return [stored.weight(name)]

    found = loaded_names(model, [f"{name}.weight" for name in stored.formats])
    for name, fmt in stored.formats.items():
        if f"{name}.weight" not in found:
            raise CheckpointError(
                f"{name!r} is quantized, and transformers' {type(model).__name__} has no such "
                "Linear: the draft's logits cannot be checked. Leave it out: add it to the "
                "recipe's 'ignore'."
            )
        module = model.get_submodule(found[f"{name}.weight"].removesuffix(".weight"))
        provide(module, partial(read, name))
        scale = _static_scale(stored.candidate, name)
        module.register_forward_pre_hook(_input_rounding(fmt, scale))


def _static_scale(candidate: Checkpoint, module: str) -> Tensor | None:
    from quantdraft.checkpoints.tensors.unpacking import read_tensor

    for suffix in ("input_scale", "input_global_scale"):
        if f"{module}.{suffix}" in candidate.tensors:
            return read_tensor(candidate, f"{module}.{suffix}")
    return None


def _input_rounding(
    fmt: WeightFormat, static_scale: Tensor | None
) -> Callable[[Any, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """Return a forward pre-hook that rounds a Linear's inputs as the scheme's kernels would."""
    from quantdraft.checkpoints.tensors.rounding import round_inputs

    return lambda _module, inputs: (round_inputs(inputs[0], fmt, static_scale), *inputs[1:])


def _logits(model: Any, checkpoint: Checkpoint) -> Tensor:
    import torch

    generator = torch.Generator().manual_seed(PROBE_SEED)
    num_tokens = int(checkpoint.text_config["vocab_size"])
    probe = torch.randint(num_tokens, (NUM_PROBES, PROBE_LENGTH), generator=generator)
    with torch.inference_mode():
        logits: Tensor = model(input_ids=probe.to(model.device), use_cache=False).logits
    return logits.float().cpu()
