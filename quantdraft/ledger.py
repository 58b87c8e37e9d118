"""The byte ledger: what a draft step reads, by part, before and after a recipe; no model is run.

A draft step at batch 1 reads every weight once, one row of the embedding table, and the keys and
values of the context. Where memory is the limit, time goes as these bytes, so
`baseline / candidate` is a ceiling on what quantization can gain.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from quantdraft.checkpoint import Checkpoint
from quantdraft.errors import UndefinedMetricError
from quantdraft.formats import BOOKKEEPING_SUFFIXES
from quantdraft.heads import draft_head
from quantdraft.recipe import HeadLever, Recipe
from quantdraft.recipe_formats import formats_by_module, has_one_group
from quantdraft.schemes import EMBEDDINGS, HEAD, kv_scales
from quantdraft.weights import ELEMENT_BYTES, TensorInfo

Part = Literal["attention", "mlp", "head", "embedding", "norms", "other"]
MIN_SPEEDUP = 1.02  # what the verdict asks of a go; see the policy
LONG_CONTEXT = 4096  # tokens at which a recipe for the cache is judged: at none it saves nothing
MIN_HEAD_SAVING = 0.05  # share of a step's bytes from which a quantized head is worth its risk


@dataclass(frozen=True, slots=True)
class Ledger:
    """Bytes that one draft step reads at batch 1, scales included."""

    attention_bytes: int
    mlp_bytes: int
    head_bytes: int
    embedding_row_bytes: int
    norms_bytes: int
    other_bytes: int
    kv_bytes_per_context_token: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights a step reads, whatever the context."""
        return (
            self.attention_bytes
            + self.mlp_bytes
            + self.head_bytes
            + self.embedding_row_bytes
            + self.norms_bytes
            + self.other_bytes
        )

    def step_bytes(self, context_length: int = 0) -> int:
        """Bytes of one step with `context_length` tokens in the cache."""
        return self.weight_bytes + context_length * self.kv_bytes_per_context_token


@dataclass(frozen=True, slots=True)
class HeadOption:
    """One position of the lm_head lever under a recipe."""

    lever: HeadLever
    head_bytes: int
    step_bytes: int
    has_one_group: bool  # several config groups are refused by vLLM's draft_model loader


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


def ceiling(baseline: Ledger, candidate: Ledger, context_length: int = 0) -> float:
    """Baseline bytes / candidate bytes of a step: no draft step gets faster by more than this."""
    return baseline.step_bytes(context_length) / candidate.step_bytes(context_length)


def largest_speedup(
    ceiling: float, num_speculative_tokens: int, cost_ratio: float, verify_ratio: float = 1.0
) -> float:
    """The speedup over the baseline draft if its step were `ceiling` times faster.

    At equal acceptance, (k·t_d + t_v) / (k·t_d/ceiling + t_v); `cost_ratio` is t_d / t_v(1) and
    `verify_ratio` is t_v(k + 1) / t_v(1), which is 1 where memory is the limit.
    """
    drafting = num_speculative_tokens * cost_ratio
    return (drafting + verify_ratio) / (drafting / ceiling + verify_ratio)


def estimated_cost_ratio(draft: Ledger, target: Ledger, context_length: int = 0) -> float:
    """Draft bytes / target bytes of a step: what c would be if memory were the only limit."""
    return draft.step_bytes(context_length) / target.step_bytes(context_length)


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


def head_advice(options: tuple[HeadOption, ...]) -> str:
    """One sentence: which head is worth it by bytes alone, with each option's bytes."""
    keep = options[0]
    listed = ", ".join(f"{o.lever} {_mb(o.head_bytes)}" for o in options)
    savings = {o.lever: 1 - o.step_bytes / keep.step_bytes for o in options}
    if savings.get("8-bit", 0.0) < MIN_HEAD_SAVING:
        return f"Head: keep it ({listed}; 8 bits save under {MIN_HEAD_SAVING:.0%} of a step)."
    advice = (
        f"Head: {keep.head_bytes / keep.step_bytes:.0%} of a step if kept ({listed}); 8 bits save "
        f"{savings['8-bit']:.0%} of a step, 4 bits {savings['4-bit']:.0%}: worth trying."
    )
    for option in options:
        if not option.has_one_group:  # at most one: the other width is the body's own
            advice += f" {option.lever} needs a second group, which vLLM's draft_model refuses."
    return advice


def ledger_summary(
    baseline: Ledger,
    candidate: Ledger,
    *,
    context_length: int = 0,
    num_speculative_tokens: int | None = None,
    cost_ratio: float | None = None,
    head: tuple[HeadOption, ...] = (),
    min_speedup: float = MIN_SPEEDUP,
) -> dict[str, Any]:
    """Both ledgers, the ceiling and what it could give, as plain JSON values.

    `largest_speedup` is None where k or c (t_d / t_v(1)) is not known; `can_pay` is then judged
    by the ceiling itself, which no k and no c exceed.
    """
    bound = ceiling(baseline, candidate, context_length)
    largest = None
    if num_speculative_tokens is not None and cost_ratio is not None:
        largest = largest_speedup(bound, num_speculative_tokens, cost_ratio)
    can_pay = (bound if largest is None else largest) >= min_speedup
    summary: dict[str, Any] = {
        "context_length": context_length,
        "baseline": _plain(baseline, context_length),
        "candidate": _plain(candidate, context_length),
        "ceiling": bound,
        "num_speculative_tokens": num_speculative_tokens,
        "cost_ratio": cost_ratio,
        "largest_speedup": largest,
        "min_speedup": min_speedup,
        "can_pay": can_pay,
        "head_options": [asdict(option) for option in head],
        "head_advice": head_advice(head) if head else None,
    }
    return summary | {"sentence": _sentence(summary)}


def _sentence(summary: Mapping[str, Any]) -> str:
    before, after = summary["baseline"]["step_bytes"], summary["candidate"]["step_bytes"]
    bound, largest = summary["ceiling"], summary["largest_speedup"]
    text = f"A draft step reads {_mb(before)} → {_mb(after)}: at most {bound:.2f}x as fast."
    if largest is not None:
        k, cost_ratio = summary["num_speculative_tokens"], summary["cost_ratio"]
        text += f" At k = {k} and c = {cost_ratio:.3f} that is at most {largest:.2f}x overall."
    if not summary["can_pay"]:
        text += (
            f" It cannot pay: a go needs {summary['min_speedup']:.2f}x, even at equal acceptance."
        )
    return text


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


def _plain(ledger: Ledger, context_length: int) -> dict[str, int]:
    totals = {"weight_bytes": ledger.weight_bytes, "step_bytes": ledger.step_bytes(context_length)}
    return asdict(ledger) | totals


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.2f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:,.2f} GB"
