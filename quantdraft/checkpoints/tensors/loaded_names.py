"""Say which name a stored tensor has in the model that transformers loads it into.

The library renames on load: 'block_sparse_moe.experts.0.w1' becomes 'mlp.experts.0.gate_proj', and
'language_model.model.layers' becomes 'model.language_model.layers'.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def loaded_names(
    model: Any, names: Iterable[str], conversions: Iterable[Any] | None = None
) -> dict[str, str]:
    """Return the name that each stored tensor has in a loaded model, where it has one.

    Tensors that the library joins, splits or leaves out are missing.

    conversions: the library's of this model; None: those that it used, which are all that matter
        where all tensors were loaded
    """
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    if conversions is None:
        conversions = getattr(model, "_weight_conversions", None) or ()
    renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
    own = {name: True for name, _ in (*model.named_parameters(), *model.named_buffers())}
    # A quantized Linear holds its weight under other names.
    own |= {f"{name}.weight": True for name, _ in model.named_modules()}
    found = {}
    for name in names:
        renamed, _ = rename_source_key(name, renamings, [], model.base_model_prefix, own)
        if renamed in own:
            found[name] = renamed
    return found
