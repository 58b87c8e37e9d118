"""What one token more or less in acceptance is worth: the derivative of the expected rounds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantdraft.judge.acceptance import Floats


def rounds_saved(keep: NDArray[np.floating], k: int) -> Floats:
    """Return how many expected rounds each token saves per unit of its keep probability.

    That is −∂R(k)/∂keep of `replay_rounds`: how often the draft is asked for the token, times what
    its rejection costs the rounds that follow. It is never below 0, and 0 for the first token,
    which belongs to no round.

    keep: (num_response_tokens,), the probability that each token came from the draft
    """
    values = np.asarray(keep, np.float64)
    offsets = _offsets_before(values[1:], k)
    saved = np.zeros(len(values))
    later = np.zeros(k + 1)  # expected rounds from the next token on, by the offset that it has
    for token in range(len(values) - 1, 0, -1):
        asked = offsets[token - 1, :k]
        saved[token] = asked @ (later[0] - later[1:])
        now = np.empty(k + 1)
        now[:k] = values[token] * later[1:] + (1 - values[token]) * later[0]
        now[k] = later[0]
        now[0] += 1
        later = now
    return saved


def _offsets_before(keep: Floats, k: int) -> Floats:
    """Return the probability of each offset at each token, (tokens, k + 1)."""
    offsets = np.zeros((len(keep), k + 1))
    now = np.zeros(k + 1)
    now[0] = 1.0
    for token, value in enumerate(keep):
        offsets[token] = now
        kept = value * now[:k]
        now[1:] = kept
        now[0] = 1 - kept.sum()
    return offsets
