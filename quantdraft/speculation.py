"""The live loop: a draft proposes, the target verifies, a prefix is kept.

It is the proof behind replay: on the same text both count the same rounds. One prompt at a time,
with the counting convention of the engines: the first response token comes from the prefill and
belongs to no round; every round proposes k tokens, and a last round may be cut by the limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quantdraft.cache import rewind, rewindable_cache
from quantdraft.results import AcceptanceRule
from quantdraft.sampling import processed_logprobs
from quantdraft.traffic import Sampling


class Verification(NamedTuple):
    """How many proposed tokens are kept, and the token that follows them."""

    num_accepted: int
    next_token: int


@dataclass(frozen=True, slots=True)
class LiveRun:
    """What one prompt's live loop emitted and counted."""

    token_ids: tuple[int, ...]
    num_drafts: int
    num_accepted_tokens_per_pos: tuple[int, ...]  # (k,), cut at the length limit


class Decoder:
    """A causal model with its KV cache: feed tokens, read logits, step back after a rejection."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.cache = rewindable_cache(model)
        self.num_cached = 0

    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """(len(token_ids), vocab) float32: row i predicts the token after token_ids[i]."""
        ids = torch.tensor([list(token_ids)], device=self.model.device)
        out = self.model(input_ids=ids, past_key_values=self.cache, use_cache=True)
        self.num_cached += len(token_ids)
        logits: Tensor = out.logits[0].float()
        return logits

    def keep(self, num_tokens: int) -> None:
        """Forget everything after the first `num_tokens` tokens."""
        rewind(self.cache, self.num_cached - num_tokens)
        self.num_cached = min(self.num_cached, num_tokens)


@torch.inference_mode()
def speculate(
    target: Any,
    draft: Any,
    prompt_token_ids: Sequence[int],
    *,
    num_speculative_tokens: int,
    rule: AcceptanceRule,
    sampling: Sampling,
    max_new_tokens: int,
    eos_token_ids: frozenset[int],
    generator: torch.Generator,
) -> LiveRun:
    """Decode one prompt by speculative decoding; at temperature 0 the text is the target's own."""
    k = num_speculative_tokens
    tokens = list(prompt_token_ids)
    num_prompt = len(tokens)
    proposer, verifier = Decoder(draft), Decoder(target)

    tokens.append(_pick(verifier.logits(tokens)[-1], sampling, generator))
    num_drafts, accepted_per_pos = 0, [0] * k
    while len(tokens) - num_prompt < max_new_tokens and tokens[-1] not in eos_token_ids:
        # 1. The draft proposes k tokens, one pass each, from where its cache ends.
        proposed, draft_logprobs = _propose(proposer, tokens, k, rule, sampling, generator)
        # 2. The target reads them all in one pass: k + 1 distributions.
        target_logits = verifier.logits([*tokens[verifier.num_cached :], *proposed])[-k - 1 :]
        # 3. A prefix is kept, and one token of the target's follows it.
        verification = verify(proposed, draft_logprobs, target_logits, rule, sampling, generator)
        kept = proposed[: verification.num_accepted]
        emitted = _cut([*kept, verification.next_token], eos_token_ids)
        emitted = emitted[: max_new_tokens - (len(tokens) - num_prompt)]
        for position in range(min(len(kept), len(emitted))):
            accepted_per_pos[position] += 1
        num_drafts += 1
        tokens += emitted
        # 4. Both caches step back to what was kept; the newest token is not in them yet.
        proposer.keep(len(tokens) - 1)
        verifier.keep(len(tokens) - 1)
    return LiveRun(tuple(tokens[num_prompt:]), num_drafts, tuple(accepted_per_pos))


def verify(
    proposed: Sequence[int],
    draft_logprobs: Tensor,
    target_logits: Tensor,
    rule: AcceptanceRule,
    sampling: Sampling,
    generator: torch.Generator,
) -> Verification:
    """Keep a prefix of the proposal, then take the one token that follows it.

    draft_logprobs: (k, vocab) float32, processed, what was proposed from (used by `rejection`)
    target_logits:  (k + 1, vocab) float32, one row more for the bonus position
    """
    if rule == "rejection":
        target_probs = processed_logprobs(target_logits, sampling).exp()
        return _verify_by_rejection(proposed, draft_logprobs.exp(), target_probs, generator)
    # The other rules keep a token when it equals the target's own choice at that position.
    for position, token in enumerate(proposed):
        own = _pick(target_logits[position], sampling, generator)
        if own != token:
            return Verification(position, own)
    return Verification(len(proposed), _pick(target_logits[-1], sampling, generator))


def _verify_by_rejection(
    proposed: Sequence[int], draft_probs: Tensor, target_probs: Tensor, generator: torch.Generator
) -> Verification:
    """Speculative sampling (arXiv:2211.17192, Algorithm 1): the text is the target's, exactly."""
    k = len(proposed)
    at = torch.arange(k), torch.tensor(proposed)
    ratio = (target_probs[:k].cpu()[at] / draft_probs.cpu()[at]).double()
    keep = torch.rand(k, generator=generator, dtype=torch.float64) < ratio
    num_accepted = int(keep.long().cumprod(0).sum())  # stops at the first rejection

    weights = target_probs[num_accepted]
    if num_accepted < k:
        weights = (weights - draft_probs[num_accepted]).clamp(min=0)
    return Verification(num_accepted, _draw(weights, generator))


def _propose(
    proposer: Decoder,
    tokens: Sequence[int],
    k: int,
    rule: AcceptanceRule,
    sampling: Sampling,
    generator: torch.Generator,
) -> tuple[list[int], Tensor]:
    """k tokens, and the processed log-probabilities (k, vocab) they were chosen from."""
    is_sampled = rule in ("rejection", "exact_match")
    fed = list(tokens[proposer.num_cached :])
    proposed: list[int] = []
    rows: list[Tensor] = []
    for _ in range(k):
        logits = proposer.logits(fed)[-1]
        rows.append(processed_logprobs(logits, sampling) if is_sampled else logits)
        token = _draw(rows[-1].exp(), generator) if is_sampled else int(logits.argmax())
        proposed.append(token)
        fed = [token]
    return proposed, torch.stack(rows)


def _pick(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The target's own choice: its argmax at temperature 0, else a draw."""
    if sampling.is_greedy:
        return int(logits.argmax())
    return _draw(processed_logprobs(logits, sampling).exp(), generator)


def _draw(weights: Tensor, generator: torch.Generator) -> int:
    return int(torch.multinomial(weights.double().cpu(), 1, generator=generator))


def _cut(emitted: list[int], eos_token_ids: frozenset[int]) -> list[int]:
    """Tokens after an end-of-sequence token do not exist."""
    for position, token in enumerate(emitted):
        if token in eos_token_ids:
            return emitted[: position + 1]
    return emitted


@torch.inference_mode()
def logit_gap(target: Any, prefix_token_ids: Sequence[int], token: int, other: int) -> float:
    """By how much the target prefers `token` to `other` after the prefix, in logits.

    The near-tie oracle: two kernels may part where this is within their rounding error.
    """
    ids = torch.tensor([list(prefix_token_ids)], device=target.device)
    logits = target(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1].float()
    return float(logits[token] - logits[other])
