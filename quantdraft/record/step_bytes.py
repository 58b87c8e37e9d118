"""Bytes that a draft step reads, by part, and what reading fewer of them can gain at most.

Plain numbers, no checkpoint: the ledger counts them. Where memory is the limit, time goes as bytes,
so `baseline / candidate` is a ceiling on what quantization can gain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from quantdraft.record.verdict import MIN_SPEEDUP
from quantdraft.record.wording import num_bytes, percent, times

OPTIONAL_PARTS = ("windowed_kv_bytes_per_context_token", "window", "state_bytes")
EXPERT_COUNTS = ("expert_bytes", "num_experts", "num_experts_per_token")
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
    kv_bytes_per_context_token: int  # of layers that see the whole context
    windowed_kv_bytes_per_context_token: int = 0  # of layers that see its last tokens
    window: int = 0  # how many tokens these see
    state_bytes: int = 0  # of recurrent layers, whatever the context
    expert_bytes: int = 0  # of the routed experts that one token uses; counted in `mlp_bytes`
    num_experts: int = 0  # of a layer, the routed ones; 0: there are none
    num_experts_per_token: int = 0

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

    def cache_bytes(self, context_length: int) -> int:
        """Return the bytes of the keys and values that a step reads, and of recurrent states."""
        seen = min(context_length, self.window)
        keys_and_values = context_length * self.kv_bytes_per_context_token
        windowed = seen * self.windowed_kv_bytes_per_context_token
        return keys_and_values + windowed + self.state_bytes

    def step_bytes(self, context_length: int = 0, num_tokens: int = 1) -> int:
        """Return the bytes of one step with `context_length` tokens in the cache.

        num_tokens: new tokens of the step; several use more experts than one
        """
        more = self.expected_experts(num_tokens) / max(1, self.num_experts_per_token) - 1
        experts = int(self.expert_bytes * more) if self.num_experts else 0
        return self.weight_bytes + experts + self.cache_bytes(context_length)

    def expected_experts(self, num_tokens: int) -> float:
        """Return how many routed experts of a layer are read by that many tokens.

        Each token is taken to choose its experts at random, and apart from the others: of E
        experts, k a token, m tokens use E·(1 − (1 − k/E)^m). Tokens of one text share more.
        """
        if not self.num_experts:
            return 0.0
        share = self.num_experts_per_token / self.num_experts
        return float(self.num_experts * (1 - (1 - share) ** num_tokens))


@dataclass(frozen=True, slots=True)
class HeadOption:
    """One value of a recipe's `lm_head`, with the bytes it gives."""

    lever: str  # keep, 8-bit, 4-bit: a recipe's `lm_head`
    head_bytes: int
    step_bytes: int
    has_one_group: bool  # several config groups are refused by vLLM's draft_model loader


def ceiling(baseline: Ledger, candidate: Ledger, context_length: int = 0) -> float:
    """Return baseline bytes / candidate bytes of a step: no draft step gets faster by more."""
    return baseline.step_bytes(context_length) / candidate.step_bytes(context_length)


def largest_speedup(
    ceiling: float, num_speculative_tokens: int, cost_ratio: float, verify_ratio: float = 1.0
) -> float:
    """Return the speedup over the baseline draft if its step were `ceiling` times faster.

    At equal acceptance, (k·t_d + t_v) / (k·t_d/ceiling + t_v); `cost_ratio` is t_d / t_v(1) and
    `verify_ratio` is t_v(k + 1) / t_v(1), which is 1 where memory is the limit.
    """
    drafting = num_speculative_tokens * cost_ratio
    return (drafting + verify_ratio) / (drafting / ceiling + verify_ratio)


def estimated_cost_ratio(draft: Ledger, target: Ledger, context_length: int = 0) -> float:
    """Return draft bytes / target bytes of a step: what c is where memory is the only limit."""
    return draft.step_bytes(context_length) / target.step_bytes(context_length)


def verify_bytes_ratio(target: Ledger, num_speculative_tokens: int) -> float:
    """Return a verification's bytes / those of one token: above 1 where experts are routed."""
    return target.step_bytes(num_tokens=num_speculative_tokens + 1) / target.step_bytes()


def experts_sentence(target: Ledger, num_speculative_tokens: int) -> str | None:
    """Return what a verification of several tokens reads of a target's experts, in one sentence."""
    if not target.num_experts:
        return None
    num_tokens, used = num_speculative_tokens + 1, target.num_experts_per_token
    found = target.expected_experts(num_tokens)
    one, all_bytes = target.step_bytes(), target.step_bytes(num_tokens=num_tokens)
    return (
        f"Experts: one token reads {used} of {target.num_experts} in each layer of the target; "
        f"verifying {num_tokens} tokens reads about {found:.1f} of them (if each token chose at "
        f"random), {num_bytes(all_bytes)} in place of {num_bytes(one)}, "
        f"so a verification takes about {times(all_bytes / one)} the time of one token."
    )


def head_advice(options: tuple[HeadOption, ...]) -> str:
    """Return one sentence: which head is worth it by bytes alone, with each option's bytes."""
    keep = options[0]
    listed = ", ".join(f"{o.lever} {num_bytes(o.head_bytes)}" for o in options)
    savings = {o.lever: 1 - o.step_bytes / keep.step_bytes for o in options}
    if savings.get("8-bit", 0.0) < MIN_HEAD_SAVING:
        least = percent(MIN_HEAD_SAVING, 0)
        return f"Head: keep it ({listed}; 8 bits save under {least} of a step)."
    share = percent(keep.head_bytes / keep.step_bytes, 0)
    by_8, by_4 = (percent(savings[lever], 0) for lever in ("8-bit", "4-bit"))
    advice = (
        f"Head: {share} of a step if kept ({listed}); 8 bits save {by_8} of a step, 4 bits {by_4}: "
        "worth trying."
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
    verify_ratio: float = 1.0,
    head: tuple[HeadOption, ...] = (),
    min_speedup: float = MIN_SPEEDUP,
) -> dict[str, Any]:
    """Return both ledgers, the ceiling and what it could give, as plain JSON values.

    verify_ratio: t_v(k + 1) / t_v(1); 1 where memory is the limit and no expert is routed
    min_speedup: what the policy asks of a go
    `largest_speedup` is None where k or c (t_d / t_v(1)) is not known; `can_pay` is then judged
    by the ceiling itself, which no k and no c exceed.
    """
    bound = ceiling(baseline, candidate, context_length)
    largest = None
    if num_speculative_tokens is not None and cost_ratio is not None:
        largest = largest_speedup(bound, num_speculative_tokens, cost_ratio, verify_ratio)
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
    text = (
        f"A draft step reads {num_bytes(before)} → {num_bytes(after)}: at most {times(bound)} as "
        "fast."
    )
    if largest is not None:
        k, cost_ratio = summary["num_speculative_tokens"], summary["cost_ratio"]
        text += f" At k = {k} and c = {cost_ratio:.3f} that is at most {times(largest)} overall."
    if not summary["can_pay"]:
        needed = times(summary["min_speedup"])
        text += f" It cannot pay: a go needs {needed}, even at equal acceptance."
    return text


def _plain(ledger: Ledger, context_length: int) -> dict[str, int]:
    """Return the parts of a step and their sums; what a model does not have is left out."""
    totals = {"weight_bytes": ledger.weight_bytes, "step_bytes": ledger.step_bytes(context_length)}
    parts = {k: v for k, v in asdict(ledger).items() if v or k not in OPTIONAL_PARTS}
    return {k: v for k, v in parts.items() if k not in EXPERT_COUNTS} | totals
