"""Check that the written files hold exactly the tensors that a recipe promises. No weights.

Names, types and shapes are compared, and with them the bytes; `weights` compares the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.formats import FREE_LENGTH
from quantdraft.checkpoints.stored_formats import HEAD, kv_scales, linear_modules, stored_format
from quantdraft.checkpoints.weights import TensorInfo
from quantdraft.errors import CheckpointError
from quantdraft.quantize.ledger import projected_tensors
from quantdraft.quantize.recipe import Recipe


def require_promised_tensors(recipe: Recipe, source: Checkpoint, candidate: Checkpoint) -> None:
    """Raise CheckpointError unless names, types and shapes, so bytes, are as promised."""
    expected = _comparable(promised_tensors(recipe, source, candidate))
    found = _comparable(candidate.tensors)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"recipe {recipe.name!r} promises {name!r} as {_tensor_text(expected.get(name))}, "
                f"the written checkpoint has {_tensor_text(found.get(name))}. Nothing was kept."
            )


def promised_tensors(
    recipe: Recipe, source: Checkpoint, candidate: Checkpoint
) -> dict[str, TensorInfo]:
    """Return the tensors that the recipe stores; for a verbatim recipe, by the candidate's config.

    A verbatim recipe names its schemes in terms of llm-compressor's modifiers: the config that it
    writes is the promise that engines read.
    """
    if recipe.modifiers is None:
        return projected_tensors(source, recipe)
    quantization, tensors = candidate.quantization or {}, dict(source.tensors)
    if source.has_tied_head and not candidate.has_tied_head:
        tensors[f"{HEAD}.weight"] = tensors[source.embedding_name]
    scales = kv_scales(tensors) if quantization.get("kv_cache_scheme") else {}
    for module in list(linear_modules(tensors)):
        fmt = stored_format(quantization, module)
        if fmt is not None:
            tensors |= fmt.stored(module, tensors.pop(f"{module}.weight"))
    return tensors | scales


def _comparable(tensors: Mapping[str, TensorInfo]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return types and shapes; of a text stored as a tensor the length is left open."""
    return {
        name: (info.dtype, () if name.endswith(FREE_LENGTH) else info.shape)
        for name, info in tensors.items()
    }


def _tensor_text(tensor: tuple[str, tuple[int, ...]] | None) -> str:
    return "absent" if tensor is None else f"{tensor[0]} {list(tensor[1])}"
