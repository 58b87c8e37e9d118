"""The byte ledger: what a draft step reads, by part, before and after a recipe; no model is run.

A draft step at batch 1 reads every weight once, one row of the embedding table, and the keys and
values of the context. What the sums bound is in `step_bytes`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.formats import BOOKKEEPING_SUFFIXES
from quantdraft.checkpoints.heads import draft_head
from quantdraft.checkpoints.stored_formats import EMBEDDINGS, HEAD, kv_scales
from quantdraft.checkpoints.weights import ELEMENT_BYTES, TensorInfo
from quantdraft.errors import UndefinedMetricError
from quantdraft.quantize.recipe import Recipe
from quantdraft.quantize.recipe_formats import formats_by_module, has_one_group
from quantdraft.record.step_bytes import HeadOption, Ledger

Part = Literal["attention", "mlp", "head", "embedding", "norms", "other"]
LONG_CONTEXT = 4096  # tokens at which a recipe for the cache is judged: at none it saves nothing


def byte_ledger(checkpoint: Checkpoint) -> Ledger:
    """The ledger of a checkpoint as it is, full precision or quantized."""
    cache = (checkpoint.quantization or {}).get("kv_cache_scheme") or {}
    kv_bytes = _kv_bytes(checkpoint, cache.get("num_bits"))
    return _ledger(checkpoint, checkpoint.tensors, checkpoint.has_tied_head, kv_bytes)


def project(checkpoint: Checkpoint, recipe: Recipe) -> Ledger:
    """The ledger of what the recipe would make of a full-precision checkpoint."""
    tensors = projected_tensors(checkpoint, recipe)
    is_tied = checkpoint.has_tied_head and recipe.lm_head == "keep"
    kv_bytes = _kv_bytes(checkpoint, None if recipe.kv_cache == "keep" else 8)
    return _ledger(checkpoint, tensors, is_tied, kv_bytes)


def judged_context(recipe: Recipe) -> int:
    """The context at which the ledger weighs a recipe: none, but for recipes of the cache."""
    return 0 if recipe.kv_cache == "keep" else LONG_CONTEXT


def projected_tensors(checkpoint: Checkpoint, recipe: Recipe) -> dict[str, TensorInfo]:
    """Every tensor that the recipe would leave, by name; `file` says where its source was."""
    tensors = untied_tensors(checkpoint, recipe)
    for module, fmt in formats_by_module(recipe, tensors).items():
        tensors |= fmt.stored(module, tensors.pop(f"{module}.weight"))
    return tensors | (kv_scales(checkpoint.tensors) if recipe.kv_cache != "keep" else {})


def untied_tensors(checkpoint: Checkpoint, recipe: Recipe) -> dict[str, TensorInfo]:
    """The source's tensors, with a head of its own where the recipe quantizes a tied one."""
    tensors = dict(checkpoint.tensors)
    if checkpoint.has_tied_head and recipe.lm_head != "keep" and not recipe.is_identity:
        tensors[f"{HEAD}.weight"] = tensors[embedding_name(checkpoint)]
    return tensors


def embedding_name(checkpoint: Checkpoint) -> str:
    """Name of the token embedding's tensor: the largest table there is."""
    tables = {n: t for n, t in checkpoint.tensors.items() if part_of(n) == "embedding"}
    if not tables:
        raise UndefinedMetricError(
            f"'{checkpoint.path}' has no embedding table that this quantdraft recognises."
        )
    return max(tables, key=lambda name: tables[name].num_bytes)


def part_of(name: str) -> Part:
    """Which line of the ledger a tensor belongs to, by its name; a draft head's fc is `other`."""
    module = name.rpartition(".")[0]
    if re.fullmatch(EMBEDDINGS, module):
        return "embedding"
    if module.split(".")[-1] == HEAD or module.endswith("shared_head.head"):
        return "head"
    if "norm" in module.split(".")[-1] or re.search(r"\bln_\w+$", module):
        return "norms"
    if re.search(r"\b(self_attn|attn|attention|self_attention|linear_attn)\b", module):
        return "attention"
    if re.search(r"\b(mlp|feed_forward|ffn|experts|block_sparse_moe)\b", module):
        return "mlp"
    return "other"


def head_options(
    checkpoint: Checkpoint, recipe: Recipe, context_length: int = 0
) -> tuple[HeadOption, ...]:
    """What keep, 8-bit and 4-bit heads would cost under this recipe, in that order."""
    options = []
    for lever in recipe.head_levers:
        variant = recipe.model_copy(update={"lm_head": lever})
        ledger = project(checkpoint, variant)
        step_bytes = ledger.step_bytes(context_length)
        options.append(HeadOption(lever, ledger.head_bytes, step_bytes, has_one_group(variant)))
    return tuple(options)


def _ledger(
    checkpoint: Checkpoint, tensors: Mapping[str, TensorInfo], is_tied: bool, kv_bytes: int
) -> Ledger:
    sums: dict[str, int] = dict.fromkeys(("attention", "mlp", "head", "norms", "other"), 0)
    row_bytes, head = 0, draft_head(checkpoint)
    for name, info in tensors.items():
        part = part_of(name)
        if part == "embedding" or (head is not None and head.is_looked_up(name)):
            row_bytes += replace(info, shape=info.shape[1:]).num_bytes
        elif head is not None and head.is_unread(name):
            continue
        elif not name.endswith(BOOKKEEPING_SUFFIXES):
            sums[part] += info.num_bytes if head is None else head.bytes_read(name, info)
    if head is not None:
        sums["head"] += head.shared_head_bytes
    elif is_tied:
        sums["head"] += tensors[embedding_name(checkpoint)].num_bytes
    return Ledger(
        attention_bytes=sums["attention"],
        mlp_bytes=sums["mlp"],
        head_bytes=sums["head"],
        embedding_row_bytes=row_bytes,
        norms_bytes=sums["norms"],
        other_bytes=sums["other"],
        kv_bytes_per_context_token=kv_bytes,
    )


def _kv_bytes(checkpoint: Checkpoint, num_bits: int | None) -> int:
    """Keys and values of one token over all layers; None: in the embedding table's float type."""
    head = draft_head(checkpoint)
    if head is not None:
        return head.kv_bytes_per_context_token
    config = checkpoint.text_config
    num_layers = config.get("num_hidden_layers") or config.get("n_layer") or 0
    num_heads = config.get("num_attention_heads") or config.get("n_head") or 0
    hidden_size = config.get("hidden_size") or config.get("n_embd") or 0
    head_dim = config.get("head_dim") or (hidden_size // num_heads if num_heads else 0)
    num_kv_heads = config.get("num_key_value_heads") or num_heads
    element_bytes = ELEMENT_BYTES[checkpoint.tensors[embedding_name(checkpoint)].dtype]
    if num_bits is not None:
        element_bytes = num_bits // 8
    return int(2 * num_layers * num_kv_heads * head_dim * element_bytes)
