"""The byte ledger: bytes that a draft step reads, by part, before and after a recipe.

A draft step at batch 1 reads every weight once, but of routed experts those that one token uses,
and nothing of a tower for pictures; one row of the embedding table; and the keys and values of the
context. `step_bytes` says what follows from the sums. No model is run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.dense_view import cache_bits
from quantdraft.checkpoints.formats import BOOKKEEPING_SUFFIXES
from quantdraft.checkpoints.heads.head import draft_head
from quantdraft.checkpoints.heads.inside import inner_mtp, inner_names, kept_text
from quantdraft.checkpoints.parts import (
    has_experts,
    is_routed,
    largest_expert,
    num_experts,
    num_experts_per_token,
    tower_tensors,
)
from quantdraft.checkpoints.stored_formats import EMBEDDINGS, HEAD, kv_scales
from quantdraft.checkpoints.weights import TensorInfo
from quantdraft.errors import CheckpointError
from quantdraft.quantize.cached_bytes import CachedBytes, cached_bytes
from quantdraft.quantize.recipe import Recipe
from quantdraft.quantize.recipe_formats import formats_by_module, has_one_group
from quantdraft.record import MIN_SPEEDUP
from quantdraft.record.step_bytes import HeadOption, Ledger, ledger_summary

Part = Literal["attention", "mlp", "head", "embedding", "norms", "other"]
ATTENTION = r"\b(self_attn|attn|attention|self_attention|linear_attn|mamba|mixer|conv)\b"
HEADS = {HEAD, "embed_out", "output_projection"}
LONG_CONTEXT = 4096  # tokens at which a recipe for the cache is judged: at none it saves nothing


def byte_ledger(checkpoint: Checkpoint) -> Ledger:
    """Return the ledger of a checkpoint as it is, full precision or quantized."""
    cached = _cached_bytes(checkpoint, cache_bits(checkpoint.quantization))
    return _ledger(checkpoint, checkpoint.tensors, checkpoint.has_tied_head, cached)


def project(checkpoint: Checkpoint, recipe: Recipe) -> Ledger:
    """Return the ledger of what the recipe would make of a full-precision checkpoint."""
    tensors = projected_tensors(checkpoint, recipe)
    is_tied = checkpoint.has_tied_head and recipe.lm_head == "keep"
    cached = _cached_bytes(checkpoint, None if recipe.kv_cache == "keep" else 8)
    return _ledger(checkpoint, tensors, is_tied, cached)


def weigh_recipe(
    recipe: Recipe,
    source: Checkpoint,
    candidate: Checkpoint | None = None,
    min_speedup: float = MIN_SPEEDUP,
) -> dict[str, Any]:
    """Return what a recipe saves of a draft's bytes, as `ledger_summary` has it.

    candidate: the checkpoint that was written; None: what the recipe would write
    """
    after = project(source, recipe) if candidate is None else byte_ledger(candidate)
    draft = draft_head(source)
    has_options = recipe.modifiers is None and (draft is None or draft.can_quantize_head)
    summary = ledger_summary(
        byte_ledger(source),
        after,
        context_length=judged_context(recipe),
        head=head_options(source, recipe) if has_options else (),
        min_speedup=min_speedup,
    )
    inner = inner_mtp(source)
    return summary | ({"mtp": kept_text(inner)} if inner else {})


def judged_context(recipe: Recipe) -> int:
    """Return the context at which a recipe is weighed: 0, except for recipes of the cache."""
    return 0 if recipe.kv_cache == "keep" else LONG_CONTEXT


def projected_tensors(checkpoint: Checkpoint, recipe: Recipe) -> dict[str, TensorInfo]:
    """Return every tensor that the recipe would write, by name; `file` is its source's."""
    tensors = untied_tensors(checkpoint, recipe)
    for module, fmt in formats_by_module(recipe, tensors).items():
        tensors |= fmt.stored(module, tensors.pop(f"{module}.weight"))
    return tensors | (kv_scales(checkpoint.tensors) if recipe.kv_cache != "keep" else {})


def untied_tensors(checkpoint: Checkpoint, recipe: Recipe) -> dict[str, TensorInfo]:
    """Return the source's tensors, with a head of its own where the recipe quantizes a tied one."""
    tensors = dict(checkpoint.tensors)
    if checkpoint.has_tied_head and recipe.lm_head != "keep":
        tensors[f"{HEAD}.weight"] = tensors[checkpoint.embedding_name]
    return tensors


def part_of(name: str) -> Part:
    """Return the part of the ledger that a tensor belongs to; a draft head's fc is `other`."""
    module = name.rpartition(".")[0]
    if re.fullmatch(EMBEDDINGS, module):
        return "embedding"
    if module.split(".")[-1] in HEADS or module.endswith("shared_head.head"):
        return "head"
    if "norm" in module.split(".")[-1] or re.search(r"\bln_\w+$", module):
        return "norms"
    if re.search(
        r"\b(self_attn|attn|attention|self_attention|linear_attn|mamba|mixer|conv)\b", module
    ):
        return "attention"
    if re.search(r"\b(mlp|feed_forward|ffn|experts|block_sparse_moe)\b", module):
        return "mlp"
    return "other"


def head_options(checkpoint: Checkpoint, recipe: Recipe) -> tuple[HeadOption, ...]:
    """Return what keep, 8-bit and 4-bit heads would cost under this recipe, in that order."""
    options = []
    for lever in recipe.head_levers:
        variant = recipe.model_copy(update={"lm_head": lever})
        ledger = project(checkpoint, variant)
        options.append(
            HeadOption(lever, ledger.head_bytes, ledger.step_bytes(), has_one_group(variant))
        )
    return tuple(options)


def _ledger(
    checkpoint: Checkpoint,
    tensors: Mapping[str, TensorInfo],
    is_tied: bool,
    cached: CachedBytes,
) -> Ledger:
    sums: dict[str, int] = dict.fromkeys(("attention", "mlp", "head", "norms", "other"), 0)
    row_bytes, head, towers = 0, draft_head(checkpoint), tower_tensors(tensors)
    num_used, num_routed = _expert_counts(checkpoint) if head is None else (0, 0)
    expert_bytes = 0
    inner = frozenset(inner_names(tensors) if head is None else ())
    for name, info in tensors.items():
        if name in inner:  # MTP layers of a whole model
            continue
        part = part_of(name)
        if head is None and name in towers:
            continue
        if part == "embedding" or (head is not None and head.is_looked_up(name)):
            row_bytes += replace(info, shape=info.shape[1:]).num_bytes
        elif head is not None and head.is_unread(name):
            continue
        elif not name.endswith(BOOKKEEPING_SUFFIXES):
            if num_routed and is_routed(name):
                expert_bytes += info.num_bytes
            else:
                sums[part] += info.num_bytes if head is None else head.bytes_read(name, info)
    if num_routed:
        expert_bytes = math.ceil(expert_bytes * num_used / num_routed)
    if head is not None:
        sums["head"] += head.shared_head_bytes
    elif is_tied:
        sums["head"] += tensors[checkpoint.embedding_name].num_bytes
    return Ledger(
        attention_bytes=sums["attention"],
        mlp_bytes=sums["mlp"] + expert_bytes,
        head_bytes=sums["head"],
        embedding_row_bytes=row_bytes,
        norms_bytes=sums["norms"],
        other_bytes=sums["other"],
        kv_bytes_per_context_token=cached.kv,
        windowed_kv_bytes_per_context_token=cached.windowed_kv,
        window=cached.window,
        state_bytes=cached.state,
        expert_bytes=expert_bytes,
        num_experts=num_routed,
        num_experts_per_token=num_used,
    )


def _expert_counts(checkpoint: Checkpoint) -> tuple[int, int]:
    """Return how many routed experts a token uses, and of how many; (0, 0) without any.

    Raises CheckpointError where the config does not say it.
    """
    if not has_experts(checkpoint.tensors):
        return 0, 0
    config = checkpoint.text_config
    total = num_experts(config) or 1 + largest_expert(checkpoint.tensors)
    used = num_experts_per_token(config)
    if used is None:
        raise CheckpointError(
            f"'{checkpoint.path}' holds experts, and its config.json does not say how many of them "
            "a token uses. Set 'num_experts_per_tok' in it."
        )
    return min(used, total), total


def _cached_bytes(checkpoint: Checkpoint, num_bits: int | None) -> CachedBytes:
    head = draft_head(checkpoint)
    if head is not None:
        return CachedBytes(head.kv_bytes_per_context_token)
    return cached_bytes(checkpoint, num_bits)
