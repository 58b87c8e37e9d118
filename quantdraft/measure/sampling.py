"""The distribution that tokens are drawn from, by its logits: the same for target and draft."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from quantdraft.traffic.traffic import Sampling


def processed_logprobs(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return log-probabilities after temperature, then top-k, then top-p, the order of engines.

    Greedy sampling leaves the distribution as it is: its log-probabilities are the plain
    log-softmax. Tokens that top-k or top-p exclude get -inf.

    logits:  (..., vocab), any float type
    returns: (..., vocab) float32
    """
    scores = logits.float().reshape(-1, logits.shape[-1])
    for warp in _warpers(sampling):
        scores = warp(None, scores)
    return scores.log_softmax(dim=-1).reshape(logits.shape)


def draw(logprobs: Tensor, uniform: Tensor) -> Tensor:
    """Draw one token a row by inverting its distribution at a uniform number in [0, 1).

    One number a row, made by the row's own generator, so a row's draw does not depend on which
    rows stand beside it, nor on the device.

    logprobs: (rows, vocab) float32
    uniform:  (rows,) float64
    returns:  (rows,) int64, token ids whose probability is above 0
    """
    # float32 sums over a large vocabulary err by more than a rare token's probability
    cumulative = logprobs.double().exp().cumsum(dim=-1)
    total = cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, uniform[:, None] * total, right=True)
    last = torch.searchsorted(cumulative, total.contiguous())  # the last token above 0
    return torch.minimum(drawn, last)[:, 0]


@lru_cache(maxsize=32)
def _warpers(sampling: Sampling) -> tuple[Callable[[Any, Tensor], Tensor], ...]:
    """Return the transformers library's own processors, those that change anything."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    if sampling.is_greedy:
        return ()
    warpers: list[Any] = []
    if sampling.temperature != 1.0:
        warpers.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k > 0:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    return tuple(warpers)
