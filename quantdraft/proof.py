"""The re-open checks: what was written is quantized, is not corrupt, and is what was promised.

Every check reads the finished files. The weights are dequantized here, from the stored integers and
scales, so a fault of the library that wrote or loads them shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from quantdraft.checkpoint import Checkpoint
from quantdraft.errors import CheckpointError
from quantdraft.ledger import projected_tensors
from quantdraft.recipe import Recipe
from quantdraft.schemes import WeightFormat, linear_modules, stored_format
from quantdraft.weights import FLOAT_DTYPES

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NUM_PROBES, PROBE_LENGTH, PROBE_SEED = 2, 32, 0

# Largest relative error ‖W − Ŵ‖ / ‖W‖ of one layer, by bits and kind. What rounding costs on
# normally distributed weights: INT4 in groups of 128, step = 2·2.7σ/15 and error step/√12, so 0.10;
# GPTQ moves weights off the nearest integer on purpose, up to about twice that. INT8 per row, step
# = 2·3.5σ/255: 0.008. FP8 with 3 mantissa bits: 0.026. A largest weight of 10σ (INT4) or 60σ
# (INT8) still passes. Scales multiplied at random by [0, 2] give √(1/3) = 0.58.
WEIGHT_ERROR_LIMITS = {(4, "int"): 0.5, (8, "int"): 0.15, (8, "float"): 0.08}

# Largest relative distance between the loaded model's logits and those of the baseline carrying our
# dequantized weights (and, where the scheme quantizes inputs, our own rounding of them).
# Weight-only: the same numbers, at most rounded to bf16 (2^-9 each) on the way. Inputs that lie
# between two integers may be rounded differently by the two, and what follows then differs too:
# one FP8 step is 2^-4 to 2^-3 of a value, one INT8 step 2^-7 of the token's largest, hence the
# wider limits. Weights loaded wrongly give unrelated logits, which are 1 to 1.4 apart.
LOGIT_DISTANCE_LIMITS: Mapping[str | None, float] = {None: 0.02, "int8": 0.10, "float8": 0.20}


@dataclass(frozen=True, slots=True)
class Proof:
    """What the re-open checks measured. Distances are relative to the reference's spread."""

    num_quantized_modules: int
    largest_weight_error: float
    weight_error_limit: float
    baseline_logit_distance: float  # to the full-precision draft: above 0, it is quantized
    logit_distance: float  # to the logits of our own dequantized weights
    logit_distance_limit: float
    weights_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the manifest."""
        return asdict(self)


def claims_but_not_quantized(checkpoint: Checkpoint) -> str | None:
    """Why a checkpoint that claims to be quantized is not, or None. Reads headers alone."""
    quantization = checkpoint.quantization
    if quantization is None:
        return None
    if quantization.get("quant_method") != "compressed-tensors":
        has_packed = any(n.endswith((".qweight", ".weight_packed")) for n in checkpoint.tensors)
        has_small = any(info.dtype not in FLOAT_DTYPES for info in checkpoint.tensors.values())
        method = quantization.get("quant_method")
        if has_packed or has_small:
            return None
        return f"'{checkpoint.path}' claims {method!r} quantization but holds only float weights."
    dense = [
        module
        for module in linear_modules(checkpoint.tensors)
        if checkpoint.tensors[f"{module}.weight"].dtype in FLOAT_DTYPES
        and stored_format(quantization, module) is not None
    ]
    if dense:
        dtype = checkpoint.tensors[f"{dense[0]}.weight"].dtype
        return (
            f"'{checkpoint.path}' claims to be quantized, but {len(dense)} layers hold {dtype} "
            f"weights, the first {dense[0]!r}. Quantize the draft again."
        )
    if not any(name.endswith(".weight_scale") for name in checkpoint.tensors):
        return f"'{checkpoint.path}' claims to be quantized, but holds no scales at all."
    return None


def require_promised_tensors(recipe: Recipe, source: Checkpoint, candidate: Checkpoint) -> None:
    """Raise CheckpointError unless names, types and shapes, so bytes, are as promised."""
    expected = {n: (t.dtype, t.shape) for n, t in projected_tensors(source, recipe).items()}
    found = {name: (info.dtype, info.shape) for name, info in candidate.tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"recipe {recipe.name!r} promises {name!r} as {_shown(expected.get(name))}, "
                f"the written checkpoint has {_shown(found.get(name))}. Nothing was kept."
            )


def prove(recipe: Recipe, source: Checkpoint, candidate: Checkpoint, device: torch.device) -> Proof:
    """Open the candidate as an engine would and check it against the source; see the limits above.

    Raises CheckpointError, naming what failed. One model is in memory at a time.
    """
    require_promised_tensors(recipe, source, candidate)
    dense = claims_but_not_quantized(candidate)
    if dense is not None:
        raise CheckpointError(dense)
    if recipe.is_identity:
        return _identity_proof(source, candidate, device)
    return _quantized_proof(source, candidate, device)


def weight_errors(source: Checkpoint, candidate: Checkpoint) -> dict[str, float]:
    """‖W − Ŵ‖ / ‖W‖ of each quantized module, Ŵ from the stored integers and scales."""
    from quantdraft.unpacking import dequantized, stored_weights

    errors = {}
    for module, weight in stored_weights(candidate):
        original = source_weight(source, module)
        errors[module] = float((dequantized(weight) - original).norm() / original.norm())
    return errors


def source_weight(source: Checkpoint, module: str) -> Tensor:
    """A module's full-precision weight, (out, in) float32; a tied head is the embedding table."""
    from quantdraft.ledger import embedding_name
    from quantdraft.unpacking import read_tensor

    name = f"{module}.weight"
    return read_tensor(source, name if name in source.tensors else embedding_name(source)).float()


def _quantized_proof(source: Checkpoint, candidate: Checkpoint, device: torch.device) -> Proof:
    import torch

    from quantdraft.unpacking import quantized_modules

    formats = quantized_modules(candidate)
    errors = weight_errors(source, candidate)
    for module, error in errors.items():
        limit = WEIGHT_ERROR_LIMITS[formats[module].num_bits, formats[module].kind]
        if not error <= limit:
            raise CheckpointError(
                f"{module!r} is {error:.3f} away from the draft's own weights, more than rounding "
                f"explains ({limit}): its scales or integers are corrupt."
            )
    baseline, reference = _reference_logits(source, candidate, device)
    logits = probe_logits(candidate, device)
    if torch.equal(logits, baseline):
        raise CheckpointError(
            f"'{candidate.path}' gives the full-precision draft's logits to the last bit: "
            "it is not really quantized."
        )
    limit = max(LOGIT_DISTANCE_LIMITS[fmt.activations] for fmt in formats.values())
    distance = logit_distance(logits, reference)
    if not distance <= limit:
        raise CheckpointError(
            f"'{candidate.path}' gives logits {distance:.3f} away from those of its own "
            f"dequantized weights (limit {limit}): it is corrupt, or loaded wrongly."
        )
    widest = max(errors, key=lambda module: errors[module])
    return Proof(
        num_quantized_modules=len(formats),
        largest_weight_error=errors[widest],
        weight_error_limit=WEIGHT_ERROR_LIMITS[formats[widest].num_bits, formats[widest].kind],
        baseline_logit_distance=logit_distance(logits, baseline),
        logit_distance=distance,
        logit_distance_limit=limit,
        weights_bytes=sum(info.num_bytes for info in candidate.tensors.values()),
    )


def _identity_proof(source: Checkpoint, candidate: Checkpoint, device: torch.device) -> Proof:
    distance = logit_distance(probe_logits(candidate, device), probe_logits(source, device))
    if distance != 0.0:
        raise CheckpointError(f"'{candidate.path}' is not the copy of the draft that it should be.")
    weights_bytes = sum(info.num_bytes for info in candidate.tensors.values())
    return Proof(0, 0.0, 0.0, 0.0, 0.0, 0.0, weights_bytes)


def probe_logits(checkpoint: Checkpoint, device: torch.device) -> Tensor:
    """Logits of the fixed probe, (probes, length, vocab) float32 on the CPU."""
    import torch

    from quantdraft.models import load_model

    return _logits(load_model(checkpoint.path, torch.float32, device), checkpoint)


def logit_distance(logits: Tensor, reference: Tensor) -> float:
    """‖logits − reference‖ / ‖reference‖, each position's mean removed: a shift changes nothing."""
    logits = logits - logits.mean(-1, keepdim=True)
    reference = reference - reference.mean(-1, keepdim=True)
    return float((logits - reference).norm() / reference.norm())


def _reference_logits(
    source: Checkpoint, candidate: Checkpoint, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Logits of the draft as it is, and with each quantized weight replaced by ours."""
    import torch

    from quantdraft.models import load_model
    from quantdraft.unpacking import dequantized, quantized_modules, stored_weights

    model = load_model(source.path, torch.float32, device)
    baseline = _logits(model, source)
    formats = quantized_modules(candidate)
    for name, weight in stored_weights(candidate):
        module = model.get_submodule(name)
        value = dequantized(weight).to(device)
        module.weight = torch.nn.Parameter(value, requires_grad=False)
        module.register_forward_pre_hook(_input_rounding(formats[name]))
    return baseline, _logits(model, source)


def _input_rounding(fmt: WeightFormat) -> Callable[[Any, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """A forward pre-hook that rounds a Linear's inputs as the scheme's kernels would."""
    from quantdraft.unpacking import rounded_inputs

    return lambda _module, inputs: (rounded_inputs(inputs[0], fmt), *inputs[1:])


def _logits(model: Any, checkpoint: Checkpoint) -> Tensor:
    import torch

    generator = torch.Generator().manual_seed(PROBE_SEED)
    num_tokens = int(checkpoint.text_config["vocab_size"])
    probe = torch.randint(num_tokens, (NUM_PROBES, PROBE_LENGTH), generator=generator)
    with torch.inference_mode():
        logits: Tensor = model(input_ids=probe.to(model.device), use_cache=False).logits
    return logits.float().cpu()


def _shown(tensor: tuple[str, tuple[int, ...]] | None) -> str:
    return "absent" if tensor is None else f"{tensor[0]} {list(tensor[1])}"
