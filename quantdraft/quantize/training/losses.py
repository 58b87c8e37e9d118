"""How far a draft's distributions are from the target's, of which the likeliest tokens are kept.

The rest of the vocabulary counts as one token: what is compared is exact where all tokens are kept,
and else a lower bound (merging tokens brings two distributions no further apart).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LEAST = 1e-6  # the least rest of a draft's mass whose logarithm is taken: float32 sums stop there


class TargetRows(NamedTuple):
    """The target's distribution at some positions.

    ids:   (rows, kept) int64, the most probable tokens
    probs: (rows, kept) float32; what lacks to 1 is the rest's
    """

    ids: Tensor
    probs: Tensor

    @property
    def rest(self) -> Tensor:
        """(rows,): the probability of all other tokens."""
        return (1 - self.probs.sum(-1)).clamp(min=0)


class Pieces(NamedTuple):
    """Both distributions over the kept tokens and the rest: (rows, kept + 1) each."""

    target_probs: Tensor
    draft_logprobs: Tensor


def pieces(logits: Tensor, rows: TargetRows, temperature: float = 1.0) -> Pieces:
    """Return both distributions over the same pieces. logits: (rows, vocab), the draft's."""
    scaled = logits.float() / temperature
    kept = scaled.gather(-1, rows.ids) - scaled.logsumexp(-1, keepdim=True)
    if rows.ids.shape[-1] == logits.shape[-1]:
        return Pieces(rows.probs, kept)
    left = (1 - kept.exp().sum(-1, keepdim=True)).clamp(min=LEAST).log()
    return Pieces(torch.cat([rows.probs, rows.rest[:, None]], -1), torch.cat([kept, left], -1))


def kl(both: Pieces) -> Tensor:
    """Return Σ target · log(target / draft) of every row, (rows,)."""
    target = both.target_probs
    return (torch.xlogy(target, target) - target * both.draft_logprobs).sum(-1)


def tv(both: Pieces) -> Tensor:
    """Return ½ Σ |target − draft| of every row, (rows,): 1 − the chance that a proposal is kept."""
    return (both.target_probs - both.draft_logprobs.exp()).abs().sum(-1) / 2


def lk(both: Pieces) -> Tensor:
    """Return −log Σ min(target, draft) of every row, (rows,) (arXiv 2602.23881)."""
    kept = torch.minimum(both.target_probs, both.draft_logprobs.exp()).sum(-1)
    return -kept.clamp(min=LEAST).log()


DISTANCES: dict[str, Callable[[Pieces], Tensor]] = {
    "kl": kl,
    "tv": tv,
    "lk": lk,
    "rounds": tv,
    "rounds-kl": kl,
}


def token_logprobs(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the draft's log-probability of one token a row, (rows,). ids: (rows,) int64."""
    scaled = logits.float() / temperature
    return scaled.gather(-1, ids[:, None])[:, 0] - scaled.logsumexp(-1)
