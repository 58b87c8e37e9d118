"""Whether an output head is the embedding table: what the config says, and what the files hold.

Where the config ties the two and a head is stored too, transformers uses the stored head and vLLM
skips it (`skip_prefixes` "lm_head."). A copy is left out, so that all agree; another is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantdraft.checkpoints.stored_formats import EMBEDDINGS
from quantdraft.checkpoints.weights import TensorInfo, is_same_data
from quantdraft.errors import CheckpointError

TIED_FLAG = "tie_word_embeddings"
# Model types whose config ties the head where it does not say; transformers leaves the flag out.
TIED_BY_DEFAULT = frozenset({
    *("bloom", "cohere", "cohere2", "cohere2_moe", "ernie4_5", "ernie4_5_moe", "falcon"),
    *("falcon_mamba", "gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text"),
    *("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text", "gpt2", "gpt_bigcode"),
    *("gpt_neo", "granite_swa", "jetmoe", "lfm2", "lfm2_moe", "mamba", "minicpm3", "mpt", "opt"),
    *("recurrent_gemma", "smollm3", "starcoder2", "vaultgemma", "xglm", "youtu", "zamba"),
    *("zamba2", "zaya"),
})  # fmt: skip
OWN_HEAD = r"((model|language_model|model\.language_model)\.)?lm_head\..*"
# Heads of speculation come with a copy of their target's config and tables: engines load both.
DRAFT_HEADS = r".*(Eagle|EAGLE|DFlash|DSpark|LiLiCorr|MTP|NextN|Medusa|Speculator).*"
DRAFT_HEAD_TENSORS = r"(model\.)?(d2t|t2d|fc\.weight|hidden_norm\.weight)"
BODY = r"(?!.*mtp)(.*\.)?(layers|h|blocks)\.0\..*"  # of a model; an MTP head has none


def stored_head(tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Return the names of the tensors that an output head of its own is stored in.

    A bias is none: CTRL adds one to the product by its embedding table.
    """
    return sorted(n for n in tensors if re.fullmatch(OWN_HEAD, n) and not n.endswith(".bias"))


def find_copied_head(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]
) -> tuple[str, ...]:
    """Return the stored head's name where it is a copy of the embedding table it is tied to, or ().

    Raises CheckpointError for a head under the tied flag that is not the embedding table.
    """
    head = stored_head(tensors)
    if not head or _is_draft_head(config, tensors) or not _is_tied(config):
        return ()
    tables = [n for n in tensors if re.fullmatch(EMBEDDINGS, n.rpartition(".")[0])]
    if len(head) == 1 and any(is_same_data(path, tensors[head[0]], tensors[n]) for n in tables):
        return tuple(head)
    raise CheckpointError(
        f"'{path}' has {TIED_FLAG} true in its config.json and a head {head[0]!r} that is not "
        "the embedding table: transformers uses that head, vLLM the table. Set it to false to use "
        "the head, or remove the head."
    )


def tied_flag(config: Mapping[str, Any]) -> bool | None:
    """Return what a config.json says of the head: tied, not tied, or None where it is silent."""
    text = config.get("text_config") or {}
    found = config.get(TIED_FLAG)
    return found if found is not None else text.get(TIED_FLAG)


def _is_tied(config: Mapping[str, Any]) -> bool:
    """Return what the config says, or else what transformers takes for granted for its type."""
    said = tied_flag(config)
    return config.get("model_type") in TIED_BY_DEFAULT if said is None else said


def _is_draft_head(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> bool:
    architectures = config.get("architectures") or ()
    return (
        "speculators_model_type" in config
        or "draft_vocab_size" in config
        or any(re.fullmatch(DRAFT_HEADS, name) for name in architectures)
        or any(re.fullmatch(DRAFT_HEAD_TENSORS, name) for name in tensors)
        or not any(re.fullmatch(BODY, name) for name in tensors)
    )
