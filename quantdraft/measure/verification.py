"""One round's verification: which of the proposed tokens are kept, and which token follows them.

Tensor functions of a whole batch, without models: every row keeps a prefix of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from quantdraft.measure.sampling import draw, processed_logprobs
from quantdraft.record import AcceptanceRule
from quantdraft.traffic.traffic import Sampling


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """The plan of a round: how many tokens are proposed, and by which rule they are kept."""

    num_speculative_tokens: int  # 0: the target alone
    rule: AcceptanceRule
    sampling: Sampling

    @property
    def draft_draws(self) -> bool:
        """Whether the draft samples instead of taking its argmax."""
        return self.rule in ("rejection", "exact_match") and not self.sampling.is_greedy

    @property
    def is_drawn(self) -> bool:
        """Whether a round needs random numbers at all."""
        return not self.sampling.is_greedy


class Verification(NamedTuple):
    """The tokens that a round emits in every row.

    emitted:      (batch, k + 1) int64; the kept tokens, then the target's own; the rest is void
    num_accepted: (batch,) int64, how many of the proposed tokens were kept
    """

    emitted: Tensor
    num_accepted: Tensor


def verify(
    proposed: Tensor,
    draft_logprobs: Tensor | None,
    target_logits: Tensor,
    plan: RoundPlan,
    uniforms: Tensor,
) -> Verification:
    """Keep a prefix of each row's proposal, then take the one token that follows it.

    proposed:       (batch, k) int64
    draft_logprobs: (batch, k, vocab) float32, processed, for `rejection` with drawn tokens
    target_logits:  (batch, k + 1, vocab), one position more for the bonus token
    uniforms:       (batch, k + 1) float64 in [0, 1)
    """
    if plan.rule == "rejection" and plan.is_drawn:
        assert draft_logprobs is not None
        target_probs = processed_logprobs(target_logits, plan.sampling).exp()
        return _verify_by_rejection(proposed, draft_logprobs.exp(), target_probs, uniforms)
    # The other rules keep a token when it equals the target's own choice at that position.
    own = pick(target_logits, uniforms, plan)
    num_accepted = _prefix_length(own[:, :-1] == proposed)
    return Verification(own, num_accepted)


def _verify_by_rejection(
    proposed: Tensor, draft_probs: Tensor, target_probs: Tensor, uniforms: Tensor
) -> Verification:
    """Verify by speculative sampling (arXiv:2211.17192, Algorithm 1): the text is the target's."""
    batch, k = proposed.shape
    at = proposed[:, :, None]
    ratio = target_probs[:, :k].gather(2, at).double() / draft_probs.gather(2, at).double()
    num_accepted = _prefix_length(uniforms[:, :k] < ratio[:, :, 0])

    # After the first rejection the rest of the target's probability; after none, all of it.
    draft_probs = torch.cat([draft_probs, torch.zeros_like(target_probs[:, :1])], dim=1)
    row = num_accepted[:, None, None].expand(-1, 1, target_probs.shape[-1])
    weights = (target_probs.gather(1, row) - draft_probs.gather(1, row))[:, 0].clamp(min=0)
    following = draw(weights.log(), uniforms[:, k])
    padded = torch.cat([proposed, proposed.new_zeros(batch, 1)], dim=1)
    return Verification(padded.scatter(1, num_accepted[:, None], following[:, None]), num_accepted)


def _prefix_length(keep: Tensor) -> Tensor:
    """Return how many are kept before the first that is not: (batch, k) bool, (batch,) int64."""
    return keep.long().cumprod(dim=1).sum(dim=1)


def pick(logits: Tensor, uniforms: Tensor, plan: RoundPlan) -> Tensor:
    """Return the target's own choices, (batch, n): its argmax at temperature 0, else draws."""
    if not plan.is_drawn:
        return logits.argmax(-1)
    logprobs = processed_logprobs(logits, plan.sampling)
    return draw(logprobs.flatten(0, 1), uniforms.flatten()).view(logits.shape[:2])
