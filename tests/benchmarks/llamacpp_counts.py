"""Compute what llama-server counts for a text, from what a draft would have kept of it.

Its convention differs from DESIGN's in the last rounds alone: it never proposes more tokens than
are still wanted less one, so that no accepted token is lost, and with one token left it takes a
plain step that is no round. Proposed tokens are therefore fewer than k a round. As everywhere, the
first token comes from the prompt's pass. Holds with --spec-draft-p-min 0 and --spec-draft-n-min 0
(else it stops proposing where the draft is in doubt, and drops short proposals), and for answers
that end by their length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Counts(NamedTuple):
    """Rounds, proposed and accepted tokens of one answer."""

    rounds: int
    proposed: int
    accepted: int


def predicted_counts(is_kept: Sequence[bool], num_speculative_tokens: int) -> Counts:
    """The counters of one greedy answer.

    is_kept: (num_response_tokens,) whether the draft's argmax is that token; that of the first
        token is never asked
    """
    rounds = proposed = accepted = 0
    emitted, wanted = 1, len(is_kept)
    while emitted < wanted:
        num_proposed = min(num_speculative_tokens, wanted - emitted - 1)
        if num_proposed == 0:
            break  # a plain step for the last token
        kept = _leading(is_kept[emitted : emitted + num_proposed])
        rounds, proposed, accepted = rounds + 1, proposed + num_proposed, accepted + kept
        emitted += kept + 1
    return Counts(rounds, proposed, accepted)


def _leading(is_kept: Sequence[bool]) -> int:
    return next((at for at, kept in enumerate(is_kept) if not kept), len(is_kept))
