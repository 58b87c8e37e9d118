"""Near-ties: tokens whose logits lie so close that another correct kernel may swap them.

Two kernels round differently, so their logits differ in the last places of the float type. What is
that close to the top decides nothing: neither about a text nor about a round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantdraft.checkpoints.formats import WeightFormat
from quantdraft.judge.acceptance import Floats, replay_rounds, rounds_between
from quantdraft.measure.replay import greedy_probabilities, response_logits
from quantdraft.traffic.responses import Response
from quantdraft.traffic.traffic import token_counts

TextStatus = Literal["identical", "near-tie", "divergent", "sampled", "own"]

# Bits of a float type after its leading one: a number's last place is its power of two times
# 2^-bits.
FRACTION_BITS = {"float32": 23, "float16": 10, "bfloat16": 7}
# How many last places two correct kernels may put between two logits that are equal. In float32 a
# logit is a sum of n products, rounded n times at random: sqrt(n) places, 64 at n = 4096. In 16
# bits the sum is made in float32 and rounded once: a place for each of two logits in each of two
# runs, 4. The roundings of the layers before are of the same size: measured on models of 4 and 30
# layers, one pass against single steps moved a gap by 23 places at most in float32 (1,536 tokens);
# in bfloat16, of 2,304 tokens of vLLM 0.32, 26 were not this library's first choice: 22 by one
# place or less, 3 by two, one by three.
NUM_PLACES = {"float32": 64, "float16": 4, "bfloat16": 4}
# Step to which a draft rounds the inputs of its products, as a share of a usual value: INT8 2^-7 of
# the largest one, which is about 4 usual ones; FP8 has 3 bits after the leading one, FP4 one.
INPUT_STEPS = {"int8": 2.0**-5, "float8": 2.0**-3, "float4": 2.0**-1}
INPUT_STEPS |= {"float16": 2.0**-10, "bfloat16": 2.0**-7}


class GreedyAcceptance(NamedTuple):
    """The tokens that a greedy draft proposes of one response: (num_response_tokens,) each."""

    probabilities: Floats  # 1 where the draft proposes the token, else 0
    is_near_tie: NDArray[np.bool_]  # another correct kernel may find the opposite


def near_tie_limit(dtype: str, size: float, input_step: float = 0.0) -> float:
    """Return by how much two logits may differ and still be a tie.

    dtype: in which they were computed; of a type that is not known, as in bfloat16
    size: of the largest logit, by magnitude: rounding errors go with what is summed, and that is
        the most of it which shows
    input_step: one of INPUT_STEPS where the model rounds the inputs of its products. Inputs that
        differ by a last place u then fall on two sides of a step s in u/s of all cases, and differ
        by s: a spread of sqrt(u s) where it was u
    """
    bits = FRACTION_BITS.get(dtype, FRACTION_BITS["bfloat16"])
    exponent = math.frexp(size)[1] - 1
    wider = max(1.0, math.sqrt(input_step * 2.0**bits))
    return NUM_PLACES.get(dtype, NUM_PLACES["bfloat16"]) * wider * 2.0 ** (exponent - bits)


def input_step(formats: Iterable[WeightFormat]) -> float:
    """Return the widest step to which any of the formats rounds its inputs; 0.0: none does."""
    return widest_step(fmt.activations for fmt in formats if fmt.activations)


def widest_step(types: Iterable[str]) -> float:
    """Return the widest step of the types to which inputs are rounded; 0.0 without any."""
    return max((INPUT_STEPS[name] for name in types), default=0.0)


def coarsest(*dtypes: str | None) -> str:
    """Return the float type with the fewest bits of those that are known."""
    known = [dtype for dtype in dtypes if dtype in FRACTION_BITS]
    return min(known, key=FRACTION_BITS.__getitem__, default="bfloat16")


def text_status(
    wanted: Sequence[int],
    found: Sequence[int],
    logits_before: Callable[[int], Tensor],
    dtype: str,
) -> TextStatus:
    """Return what a greedy text is against the target's: where they part, is it a near-tie?

    Both tokens must lie at the top: two that the target likes equally little are no tie.

    logits_before: of a place in the wanted text, the target's logits for the token there, (vocab,)
    dtype: the coarsest float type that either text, or these logits, were computed in
    """
    if tuple(found) == tuple(wanted):
        return "identical"
    at = next((i for i, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b), None)
    if at is None:  # one text is the other's beginning: an end-of-sequence rule differs
        return "divergent"
    logits = logits_before(at).float()
    gap = float(logits.max() - torch.minimum(logits[wanted[at]], logits[found[at]]))
    is_tie = gap <= near_tie_limit(dtype, float(logits.abs().max()))
    return "near-tie" if is_tie else "divergent"


def greedy_acceptance(
    draft: Any, responses: Sequence[Response], dtype: str, input_step: float = 0.0
) -> list[GreedyAcceptance]:
    """Return which tokens of the responses a greedy draft proposes, and which it might as well not.

    A token is a near-tie where it leads the next best by no more than the limit, or lacks no more.

    dtype, input_step: see `near_tie_limit`
    """
    lengths = token_counts(responses).response.tolist()
    found = [GreedyAcceptance(np.empty(n), np.zeros(n, np.bool_)) for n in lengths]
    for span in response_logits(draft, responses):
        first, last = span.first_token, span.first_token + len(span.logits)
        ids = torch.tensor(span.response.response_token_ids[first:last], device=span.logits.device)
        probabilities, is_near_tie = found[span.prompt]
        probabilities[first:last] = greedy_probabilities(span.logits, ids)
        is_near_tie[first:last] = _are_near_ties(span.logits, ids, dtype, input_step)
    return found


class RoundBounds(NamedTuple):
    """The rounds of each text under one draft, and the fewest and the most by near-ties."""

    replayed: tuple[float, ...]
    low: tuple[float, ...] = ()  # () where the arithmetic is exact
    high: tuple[float, ...] = ()


def bounded_rounds(
    draft: Any, responses: Sequence[Response], k: int, dtype: str, input_step: float
) -> RoundBounds:
    """Return the rounds of every response under a greedy draft, and what near-ties allow.

    dtype, input_step: see `near_tie_limit`
    """
    found = greedy_acceptance(draft, responses, dtype, input_step)
    ids = [response.prompt_id for response in responses]
    probabilities = [each.probabilities for each in found]
    is_near_tie = [each.is_near_tie for each in found]
    replayed = replay_rounds(ids, probabilities, [k]).num_drafts[0].tolist()
    return RoundBounds(tuple(replayed), *rounds_between(ids, probabilities, is_near_tie, k))


def _are_near_ties(logits: Tensor, ids: Tensor, dtype: str, input_step: float) -> NDArray[np.bool_]:
    """Return, (tokens,), whether each token is within the limit of the best other one."""
    own = logits.gather(-1, ids[:, None])[:, 0]
    others = logits.scatter(-1, ids[:, None], -torch.inf).max(-1).values
    gaps = (own - others).abs().tolist()
    sizes = logits.abs().max(-1).values.nan_to_num(0.0, 0.0).tolist()
    return np.array(
        [
            gap <= near_tie_limit(dtype, size, input_step)
            for gap, size in zip(gaps, sizes, strict=True)
        ]
    )
