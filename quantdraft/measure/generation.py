"""A model answers prompts, in batches, with the log-probability of every token it says.

Every prompt draws from its own generator, so an answer does not depend on which prompts share its
batch, save where two tokens are within a rounding of each other. Only temperature, top-k and top-p
are applied; penalties that a generation config may hold are not.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quantdraft.checkpoints.checkpoint import end_token_ids
from quantdraft.engines.native.caches import KEYS, cache_name
from quantdraft.errors import UndefinedMetricError
from quantdraft.measure.sampling import draw, processed_logprobs
from quantdraft.traffic.traffic import Sampling


@dataclass(frozen=True, slots=True)
class GeneratedTokens:
    """The answer to one prompt: token ids, and the log-probability of each."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@torch.inference_mode()
def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    max_new_tokens: int,
    seeds: Sequence[int],
) -> list[GeneratedTokens]:
    """Continue a batch of prompts, each to its end-of-sequence token or the length limit.

    prompts: token ids, of any lengths; none is empty
    seeds: one for each prompt; the same seed draws the same answer in any batch
    Raises UndefinedMetricError where the logits are not finite.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    ends = end_token_ids(model)
    tokens, mask = _left_padded(prompts, model.device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    is_done = torch.zeros(len(prompts), dtype=torch.bool, device=model.device)
    cache: Any = None
    drawn: list[Tensor] = []
    scores: list[Tensor] = []
    for _ in range(max_new_tokens):
        logits, cache = _forward(model, tokens, mask, positions, cache)
        require_finite(logits[~is_done], len(drawn))
        chosen, logprobs = choose(logits, sampling, generators)
        tokens = chosen[:, None]
        drawn.append(tokens)
        scores.append(logprobs[:, None])
        is_done |= torch.isin(tokens[:, 0], torch.tensor(ends, device=model.device))
        if is_done.all():
            break
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
        positions = positions[:, -1:] + 1
    rows = zip(torch.cat(drawn, dim=1).tolist(), torch.cat(scores, dim=1).tolist(), strict=True)
    return [_cut(token_ids, logprobs, ends) for token_ids, logprobs in rows]


def _forward(
    model: Any, tokens: Tensor, mask: Tensor | None, positions: Tensor, cache: Any
) -> tuple[Tensor, Any]:
    """Return the logits after the last token, (rows, vocab), and the cache with all tokens."""
    optional = {"position_ids": positions, "logits_to_keep": 1}
    known = inspect.signature(model.forward).parameters
    name = cache_name(model)
    if name != KEYS and cache is not None:
        mask = None  # Mamba masks the tokens that it reads, and these are no padding
    output = model(
        input_ids=tokens,
        attention_mask=mask,
        use_cache=True,
        **{name: cache},
        **{name: value for name, value in optional.items() if name in known},
    )
    return output.logits[:, -1], output[name]


def require_finite(logits: Tensor, num_tokens: int) -> None:
    """Raise UndefinedMetricError for NaN and where no token is possible."""
    if not bool(logits.amax(dim=-1).isfinite().all()):  # amax hands a NaN on
        raise UndefinedMetricError(
            f"the target's logits are not finite after {num_tokens} tokens of a response: NaN or "
            "infinite. Its numbers overflow in this float type (try --dtype float32), or its "
            "weights are damaged."
        )


def choose(
    logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """Return each row's next token, the most probable one or a draw, and its log-probability.

    logits: (rows, vocab)
    generators: one for each row; read where tokens are drawn
    returns: (rows,) int64 and (rows,) float32
    """
    logprobs = processed_logprobs(logits, sampling)
    if sampling.is_greedy:
        tokens = logits.argmax(dim=-1)
    else:
        uniform = [torch.rand(1, generator=each, dtype=torch.float64) for each in generators]
        tokens = draw(logprobs, torch.cat(uniform).to(logprobs.device))
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, both (rows, longest prompt) int64, ends aligned."""
    longest = max(len(prompt) for prompt in prompts)
    tokens = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return tokens.to(device), mask.to(device)


def _cut(token_ids: list[int], logprobs: list[float], ends: Sequence[int]) -> GeneratedTokens:
    """Return the answer up to its first end token: a finished row still runs in its batch."""
    lengths = (at + 1 for at, token in enumerate(token_ids) if token in ends)
    length = next(lengths, len(token_ids))
    return GeneratedTokens(tuple(token_ids[:length]), rounded(logprobs[:length]))


def rounded(logprobs: Sequence[float]) -> tuple[float, ...]:
    """Return log-probabilities to six decimals: finer than two kernels agree, and readable."""
    return tuple(round(logprob, 6) for logprob in logprobs)
