"""Run any architecture as transformers' modules around the engine's kernels.

Slower in Python than the project's decoder, and one row at a time, but every model that
transformers knows can be timed and decoded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quantdraft.checkpoints.tensors.experts import separate_experts
from quantdraft.checkpoints.tensors.loaded_names import loaded_names
from quantdraft.checkpoints.tensors.rotary import fix_frequencies
from quantdraft.engines.kernels.dense import type_name
from quantdraft.engines.native.caches import RewindableCache
from quantdraft.engines.native.linears import Linears
from quantdraft.engines.native.weight_sources import WeightSource
from quantdraft.errors import NoKernelError


def load_borrowed(config: Any, source: WeightSource, linears: Linears) -> Any:
    """Load the architecture's transformers model with kernels for its quantized Linears."""
    import transformers
    from transformers.conversion_mapping import get_model_conversion_mapping

    checkpoint = source.checkpoint
    architecture = (config.architectures or ["unknown"])[0]
    model_class = getattr(transformers, architecture, None)
    # The name is the checkpoint's: it may be a model, and nothing else that the library has.
    is_model = isinstance(model_class, type) and issubclass(
        model_class, transformers.PreTrainedModel
    )
    if model_class is None or not is_model or checkpoint is None:
        raise NoKernelError(f"transformers has no {architecture} for the native engine to build on")
    plain = {
        name: source.tensor(name)
        for name in checkpoint.tensors
        if name.rpartition(".")[0] not in source.formats or name.endswith(".bias")
    }
    with separate_experts(config, checkpoint.tensors):
        model = model_class.from_pretrained(
            None, config=config, state_dict=plain, dtype=linears.dtype
        )
        conversions = get_model_conversion_mapping(model)
    weights = [f"{module}.weight" for module in source.formats]
    found = loaded_names(model, weights, conversions)
    for module in source.formats:
        if f"{module}.weight" not in found:
            raise NoKernelError(
                f"'{source.name}': {module!r} is quantized, and transformers' {architecture} has "
                "no Linear of its own for it"
            )
        name = found[f"{module}.weight"].removesuffix(".weight")
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent) if parent else model, child, linears.one(module))
    if any(isinstance(module, nn.Linear) for module in model.modules()):
        linears.kernels.add(f"linear_{type_name(linears.dtype)}")
    fix_frequencies(model)
    return model.to(linears.device).eval()


class BorrowedRows:
    """Caches that grow, and step back when they are fed an earlier position.

    One cache for each row, or a single one for all where rows always stand at the same position.
    """

    def __init__(self, model: Any, num_caches: int) -> None:
        self.caches = [RewindableCache(model) for _ in range(num_caches)]

    def forward(self, token_ids: Tensor, positions: Tensor, at: Tensor | None) -> Tensor:
        """Return logits as `Decoder.forward` does; with a cache a row, rows run one by one."""
        parts = token_ids.chunk(len(self.caches))
        starts = positions[:, 0].tolist()
        if at is None:
            each = zip(self.caches, parts, starts, strict=False)
            return torch.cat([cache.read(part, start) for cache, part, start in each])
        asked = zip(self.caches, parts, starts, at.chunk(len(self.caches)), strict=False)
        return torch.cat([_read_at(cache, part, start, here) for cache, part, start, here in asked])


def _read_at(cache: RewindableCache, token_ids: Tensor, start: int, at: Tensor) -> Tensor:
    """Return the logits at some places. What follows the last of them is padding: it is not read.

    A recurrent state would hold the padding for ever.
    """
    logits = cache.read(token_ids[:, : int(at.max()) + 1], start)
    return logits.gather(1, at[:, :, None].expand(-1, -1, logits.shape[-1]))
