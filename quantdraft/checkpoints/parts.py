"""Which part of a model a tensor belongs to: experts, routers, towers, what recurrent layers keep.

Names, shapes and the config alone, no torch. A step of one token reads a few of the routed experts,
and nothing of a tower: text needs no pictures.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from quantdraft.checkpoints.weights import TensorInfo

# Experts one by one ('…experts.3.up_proj.weight') or stacked in one tensor ('…experts.down_proj',
# '…block_sparse_moe.input_linear.weight'). Shared experts are not routed: every token uses them.
_EXPERT = re.compile(r"(?:^|\.)experts\.(\d+)\.")
_STACKED = re.compile(r"(?:^|\.)experts\.(?!\d)|(?:^|\.)(?:input|output)_linear\.weight$")
_FLAT = re.compile(r"(?:^|\.)experts\.mlp\.(?:w1|v1|w2)$")
_ROUTER = re.compile(
    r"(?:.*\.)?(?:gate|router|shared_expert_gate)(?:\.(?:layer|wg|classifier|gate))?"
)
# They give step sizes and decays of a recurrence: narrow, and fused kernels read them as floats.
_OF_RECURRENCE = re.compile(r"(?:.*\.)?(?:dt_proj|in_proj_(?:ba|a|b))")
# DeepSeek's choice of the keys that a token attends to: its weights are read as floats.
_OF_INDEX = re.compile(r"(?:.*\.)?indexer\.weights_proj")
# Gemma 3n's mixing of its four streams: matrices of 4 columns.
_OF_STREAMS = re.compile(r"(?:.*\.)?altup\.\w+")
# Output heads of other names than lm_head, by a tensor of the body: where the head is tied to the
# embedding it is not stored, and transformers has a Linear of that name all the same.
_OTHER_HEADS = {
    r"biogpt\..*": "output_projection",
    r"gpt_neox(?:_japanese)?\..*|embed_out\..*": "embed_out",
    r"cls\.predictions\..*": "decoder",
    r"model\.embeddings\.tok_embeddings\..*": "decoder",
}
_LANGUAGE = re.compile(r"(?:^|\.)(?:language_model|text_model)\.")
# No tower's: the output head, and layers that predict further tokens.
_OF_TEXT = re.compile(r"(?:.*\.)?(?:(?:lm_head|embed_out)\.[^.]+|mtp\w*\..*)")
_TOWER = re.compile(
    r"(?:model\.)?((?:vision|visual|image|audio|speech)(?:_\w+)?|vit|mlp1|aligner|connector"
    r"|(?:multi_modal|mm|multimodal|modality)_projector|embed_(?:vision|audio|image)\w*)\..*"
)
_NUM_USED = (
    "num_experts_per_tok", "num_experts_per_token", "experts_per_token", "top_k_experts",
    "moe_topk", "moe_top_k", "moe_k", "num_selected_experts",
)  # fmt: skip
_NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def is_routed(name: str) -> bool:
    """Return True for a tensor of experts of which a token uses a few."""
    return _EXPERT.search(name) is not None or _STACKED.search(name) is not None


def is_stacked(name: str, info: TensorInfo) -> bool:
    """Return True for the weights of several experts in one tensor, DBRX's one below another."""
    is_flat = _FLAT.search(name) is not None
    return is_flat or (_STACKED.search(name) is not None and len(info.shape) >= 3)


def has_experts(tensors: Iterable[str]) -> bool:
    """Return True where a model routes tokens to experts."""
    return any(map(is_routed, tensors))


def has_separate_experts(tensors: Iterable[str]) -> bool:
    """Return True where files hold the weights of each expert under a name of its own."""
    return any(_EXPERT.search(name) for name in tensors)


def largest_expert(tensors: Iterable[str]) -> int:
    """Return the largest number of an expert; -1 where none is numbered."""
    return max((int(found[1]) for name in tensors if (found := _EXPERT.search(name))), default=-1)


def num_experts(config: Mapping[str, Any]) -> int | None:
    """Return how many routed experts each layer has; None where the config does not say."""
    return _first_count(config, _NUM_EXPERTS)


def num_experts_per_token(config: Mapping[str, Any]) -> int | None:
    """Return how many routed experts a token uses; None where the config does not say."""
    return _first_count(config, _NUM_USED)


def tower_tensors(tensors: Iterable[str]) -> frozenset[str]:
    """Return the names of what reads pictures and sound, projectors included; often none."""
    names = list(tensors)
    if any(map(_LANGUAGE.search, names)):
        return frozenset(
            name for name in names if not _LANGUAGE.search(name) and not _OF_TEXT.fullmatch(name)
        )
    return frozenset(name for name in names if _TOWER.fullmatch(name))


def kept_modules(tensors: Mapping[str, TensorInfo]) -> Iterator[str]:
    """Yield the modules that stay in floats whatever the recipe: engines read them as such.

    Routers and gates of shared experts (a token sent to other experts is another token),
    convolutions, norms whose name does not end so, the small projections of recurrences and of
    DeepSeek's index of keys, whatever belongs to a tower, and output heads of other names than
    the others'.
    """
    heads = other_heads(tensors)
    towers, are_routed = tower_tensors(tensors), has_experts(tensors)
    for name, info in tensors.items():
        module, _, parameter = name.rpartition(".")
        if parameter != "weight" or module.endswith("norm"):
            continue
        is_convolution = len(info.shape) > 2 and not is_routed(name)
        is_router = are_routed and _ROUTER.fullmatch(module) is not None
        is_named = (
            _OF_RECURRENCE.fullmatch(module)
            or _OF_INDEX.fullmatch(module)
            or _OF_STREAMS.fullmatch(module)
            or module.rpartition(".")[2] in heads
        )
        is_vector = len(info.shape) < 2
        if is_vector or is_convolution or is_router or is_named or name in towers:
            yield module


def other_heads(tensors: Iterable[str]) -> frozenset[str]:
    """Return the names that the output head of this model may have, where it is no `lm_head`."""
    names = list(tensors)
    return frozenset(
        head for body, head in _OTHER_HEADS.items() if any(re.fullmatch(body, n) for n in names)
    )


def kept_patterns(tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Return patterns of `kept_modules`, for the `ignore` of a quantization config.

    They hold under any prefix, in every layer, and name a tower as a whole, and routers by all
    their names: transformers renames some when it loads them.
    """
    towers = tower_tensors(tensors)
    patterns = {rf"re:(.*\.)?{head}$": None for head in sorted(other_heads(tensors))}
    for module in kept_modules(tensors):
        if f"{module}.weight" in towers:
            first = module.removeprefix("model.").split(".")[0]
            end = "$" if module.removeprefix("model.") == first else r"\..*"  # one module, or many
            patterns[rf"re:(.*\.)?{re.escape(first)}{end}"] = None
        elif _ROUTER.fullmatch(module):
            patterns[f"re:{_ROUTER.pattern}$"] = None
        else:
            in_layer = re.split(r"\.\d+\.", module, maxsplit=1)
            tail = in_layer[1] if len(in_layer) > 1 else module.rpartition(".")[2]
            patterns[f"re:(.*\\.)?{re.escape(tail)}$"] = None
    return list(patterns)


def _first_count(config: Mapping[str, Any], keys: Iterable[str]) -> int | None:
    for holder in (config, config.get("ffn_config")):
        if isinstance(holder, Mapping):
            for key in keys:
                value = holder.get(key)
                if isinstance(value, list):  # a number for each layer
                    value = max(value, default=None)
                if isinstance(value, int) and value > 0:
                    return value
    return None
