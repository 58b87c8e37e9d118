"""Let a model compute with its weights as a recipe stores them, and train the floats behind them.

The stored weight is what `apply` writes of the same floats, to the bit: the floats in the type of
the file, scales from their least and greatest values, integers by rounding. Its gradient is handed
on to the floats as if rounding were nothing (straight-through, arXiv:1308.3432). Inputs that the
scheme rounds are rounded too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.formats import WeightFormat
from quantdraft.checkpoints.tensors.loaded_names import loaded_names
from quantdraft.checkpoints.tensors.rounding import round_inputs
from quantdraft.checkpoints.weights import FLOAT_NAMES
from quantdraft.errors import RecipeError
from quantdraft.quantize.backends.config_groups import scheme
from quantdraft.quantize.ledger import untied_tensors
from quantdraft.quantize.recipe import Recipe
from quantdraft.quantize.recipe_formats import formats_by_module


def require_trainable(recipe: Recipe) -> None:
    """Raise RecipeError for a recipe whose checkpoint is not its weights rounded one by one."""
    other = "Recipes that round to nearest are trained through: int4, int8, fp8, mxfp4, …"
    if recipe.is_identity:
        raise RecipeError(
            f"recipe {recipe.name!r} quantizes nothing: leave out --recipe to train the floats."
        )
    if recipe.needs_calibration or recipe.modifiers is not None or recipe.method != "rtn":
        raise RecipeError(
            f"recipe {recipe.name!r} chooses its numbers by calibration, not by rounding. {other}"
        )
    if recipe.backend != "llmcompressor" or recipe.kv_cache != "keep":
        raise RecipeError(f"recipe {recipe.name!r} cannot be trained through yet. {other}")
    if recipe.scheme in {"NVFP4", "NVFP4A16"}:
        raise RecipeError(
            f"recipe {recipe.name!r} shares a scale among layers, and cannot be trained through "
            f"yet. {other}"
        )


def train_through(model: Any, source: Checkpoint, recipe: Recipe | None) -> dict[str, nn.Parameter]:
    """Make the model compute with what would be stored; return its floats by the files' names.

    model: the source, loaded in float32
    recipe: None stores the floats in the files' own type
    """
    formats = {} if recipe is None else formats_by_module(recipe, untied_tensors(source, recipe))
    own = dict(model.named_parameters(remove_duplicate=False))
    names = {name: at for name, at in loaded_names(model, source.tensors).items() if at in own}
    floats = {name: own[at] for name, at in names.items()}
    stored = {at: getattr(torch, FLOAT_NAMES[source.tensors[n].dtype]) for n, at in names.items()}
    quantized = loaded_names(model, [f"{module}.weight" for module in formats])
    missing = sorted(set(formats) - {name.removesuffix(".weight") for name in quantized})
    if missing or not floats:
        raise RecipeError(
            f"{missing[0] if missing else source.name!r} has no Linear of its own in transformers' "
            f"{type(model).__name__}: this draft cannot be trained."
        )
    by_place = {at: formats[name.removesuffix(".weight")] for name, at in quantized.items()}
    for at in {*stored, *by_place}:
        dtype = stored.get(at) or stored[_tied_place(own, at, stored)]
        _round_parameter(model, at, dtype, by_place.get(at))
    for parameter in model.parameters():
        parameter.requires_grad_(any(parameter is each for each in floats.values()))
    return floats


def _tied_place(own: dict[str, nn.Parameter], at: str, stored: dict[str, torch.dtype]) -> str:
    """Return another name of a tied parameter, under which the files have it."""
    return next(other for other in stored if own[other] is own[at])


def _round_parameter(model: Any, at: str, dtype: torch.dtype, fmt: WeightFormat | None) -> None:
    path, _, name = at.rpartition(".")
    module = model.get_submodule(path)
    if fmt is None and dtype is torch.float32:
        return
    parametrize.register_parametrization(module, name, StoredWeight(dtype, fmt), unsafe=True)
    if fmt is not None and fmt.activations is not None:
        module.register_forward_pre_hook(_InputRounding(fmt))


class StoredWeight(nn.Module):
    """A weight as its file holds it, in float32; gradients pass to the floats unchanged."""

    def __init__(self, dtype: torch.dtype, fmt: WeightFormat | None) -> None:
        super().__init__()
        self.dtype = dtype
        self.args = None if fmt is None else scheme(fmt).weights

    def forward(self, weight: Tensor) -> Tensor:
        """Return what is stored of a weight, (out, in) float32."""
        return _straight_through(weight, self.stored(weight.detach()))

    @torch.no_grad()
    def stored(self, weight: Tensor) -> Tensor:
        """Return the numbers that the file stands for, float32."""
        rounded = weight.to(self.dtype)
        return (rounded if self.args is None else round_weight(rounded, self.args)).float()


class _InputRounding:
    """A forward pre-hook that rounds a Linear's inputs as the scheme's kernels would."""

    def __init__(self, fmt: WeightFormat) -> None:
        self.fmt = fmt

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        given = inputs[0]
        with torch.no_grad():
            rounded = round_inputs(given.detach(), self.fmt).to(given.dtype)
        return (_straight_through(given, rounded), *inputs[1:])


class _StraightThrough(torch.autograd.Function):
    """The second argument forward, exactly; the gradient to the first, unchanged."""

    @staticmethod
    def forward(ctx: Any, floats: Tensor, rounded: Tensor) -> Tensor:
        """Return the rounded numbers."""
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Return the gradient of the floats."""
        return gradients[0], None


def _straight_through(floats: Tensor, rounded: Tensor) -> Tensor:
    found: Tensor = _StraightThrough.apply(floats, rounded)  # type: ignore[no-untyped-call]
    return found


def round_weight(weight: Tensor, args: Any) -> Tensor:
    """Return a weight rounded by compressed-tensors' own scales and integers, (out, in) float32.

    weight: (out, in), in the type of the file; args: the library's arguments of a format
    The steps are those by which a checkpoint is written: least and greatest value of each scale's
    weights, the scale in the weight's type, the nearest integer or 8 or 4 bit float.
    """
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    least, greatest = _extremes(weight, args)
    scale, zero_point = calculate_qparams(least, greatest, args)
    scale = scale.to(weight.dtype)
    integers = quantize(weight, scale, zero_point.to(weight.dtype), args).float()
    found: Tensor = integers * _spread(scale.float(), args, integers.shape)
    return found


def _extremes(weight: Tensor, args: Any) -> tuple[Tensor, Tensor]:
    """Return the least and greatest weight under every scale."""
    rows, columns = weight.shape
    if args.block_structure:
        high, wide = args.block_structure
        padded = nn.functional.pad(weight, (0, -columns % wide, 0, -rows % high))
        shape = (padded.shape[0] // high, high, padded.shape[1] // wide, wide)
        blocks = padded.reshape(shape)
        return blocks.amin((1, 3)), blocks.amax((1, 3))
    runs = weight.reshape(rows, -1, args.group_size or columns)
    return runs.amin(-1), runs.amax(-1)


def _spread(scale: Tensor, args: Any, shape: torch.Size) -> Tensor:
    """Return the scale of every weight."""
    if args.block_structure:
        high, wide = args.block_structure
        whole = scale.repeat_interleave(high, 0).repeat_interleave(wide, 1)
        return whole[: shape[0], : shape[1]]
    return scale.repeat_interleave(shape[1] // scale.shape[1], 1)
