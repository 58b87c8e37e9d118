"""MTP layers inside a whole model's checkpoint: kept as they are stored, and no part of its step.

transformers leaves them out when it loads the model, so what saves a loaded model loses them.
Engines load them beside the model, to speculate with.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.heads.head import draft_head
from quantdraft.checkpoints.weights import TensorInfo

# `mtp.fc`, `model.mtp_layers.0.…`, `model.mtp_block.0.…`, or a decoder layer more than the model
# has, which the modules before its attention give away.
_INNER = re.compile(
    r"(.*\.)?(mtp|nextn)(_\w+)?\.|(?P<layer>(.*\.)?layers\.\d+\.)(eh_proj|enorm|hnorm)\.", re.DOTALL
)


def inner_mtp(checkpoint: Checkpoint) -> dict[str, TensorInfo]:
    """Return the tensors of a model's own MTP layers; of a head apart, which is all MTP, none."""
    names = inner_names(checkpoint.tensors)
    if not names or draft_head(checkpoint) is not None:
        return {}
    return {name: checkpoint.tensors[name] for name in names}


def inner_names(names: Iterable[str]) -> list[str]:
    """Return the names that belong to MTP modules, in their order."""
    known = list(names)
    prefixes = tuple(_prefixes(known))
    return [name for name in known if name.startswith(prefixes)] if prefixes else []


def inner_patterns(names: Iterable[str]) -> list[str]:
    """Return patterns of the MTP modules, for the `ignore` of a quantization config."""
    ends = {
        re.sub(r"^.*\.(?=(layers\.\d+|(mtp|nextn)\w*)\.$)", "", each) for each in _prefixes(names)
    }
    return [rf"re:(.*\.)?{re.escape(end)}.*" for end in sorted(ends)]


def kept_text(inner: Mapping[str, TensorInfo]) -> str:
    """Return the sentence on MTP layers that were kept."""
    modules = sorted(_prefixes(inner))
    total = sum(info.num_bytes for info in inner.values()) / 1e6
    shown = ", ".join(each.removesuffix(".") for each in modules[:3])
    return (
        f"the draft's own MTP layers ({shown}: {len(inner)} tensors, {total:,.2f} MB) are kept to "
        "the byte, unquantized; a step of the draft does not read them"
    )


def _prefixes(names: Iterable[str]) -> set[str]:
    matches = (_INNER.match(name) for name in names)
    return {m.group("layer") or m.group(0) for m in matches if m}
