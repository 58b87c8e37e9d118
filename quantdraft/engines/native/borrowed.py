"""The transformers library's own modules around the engine's kernels, for any architecture.

Slower in Python than the project's decoder, and one row at a time, but every model that
transformers knows can be timed and decoded.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from quantdraft.engines.kernels import NoKernelError
from quantdraft.engines.native.cache import rewind, rewindable_cache
from quantdraft.engines.native.weight_sources import WeightSource


class LinearBuilder(Protocol):
    """What makes a module's Linear; see `quantdraft.engines.native.model.Linears`."""

    dtype: torch.dtype
    device: torch.device
    kernels: set[str]

    def one(self, module: str) -> nn.Module:
        """The Linear of one module."""


def load_borrowed(config: Any, source: WeightSource, linears: LinearBuilder) -> Any:
    """The architecture's transformers model, its quantized Linears replaced by kernels."""
    import transformers

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
    model = model_class.from_pretrained(None, config=config, state_dict=plain, dtype=linears.dtype)
    for module in source.formats:
        parent, _, child = module.rpartition(".")
        setattr(model.get_submodule(parent) if parent else model, child, linears.one(module))
    if any(isinstance(module, nn.Linear) for module in model.modules()):
        linears.kernels.add(f"linear_{str(linears.dtype).removeprefix('torch.')}")
    return model.to(linears.device).eval()


class BorrowedRows:
    """Growing caches, stepped back when they are fed an earlier position.

    One cache for each row, or a single one for all where rows always stand at the same position.
    """

    def __init__(self, model: Any, num_caches: int) -> None:
        self.model = model
        self.caches = [rewindable_cache(model) for _ in range(num_caches)]
        self.lengths = [0] * num_caches

    def forward(self, token_ids: Tensor, positions: Tensor, at: Tensor | None) -> Tensor:
        """As `Decoder.forward`; with a cache a row, rows run one after the other."""
        parts = token_ids.chunk(len(self.caches))
        starts = positions[:, 0].tolist()
        logits = torch.cat([self._fed(i, part, starts[i]) for i, part in enumerate(parts)])
        if at is None:
            return logits
        return logits.gather(1, at[:, :, None].expand(-1, -1, logits.shape[-1]))

    def _fed(self, index: int, token_ids: Tensor, start: int) -> Tensor:
        rewind(self.caches[index], self.lengths[index] - start)
        out = self.model(input_ids=token_ids, past_key_values=self.caches[index], use_cache=True)
        self.lengths[index] = start + token_ids.shape[1]
        logits: Tensor = out.logits
        return logits
