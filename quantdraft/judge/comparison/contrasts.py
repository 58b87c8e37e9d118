"""Differences of conditional acceptance between parts of the tokens, prompts resampled.

A difference of two parts is paired: every resample draws the same prompts for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from quantdraft.judge.acceptance import Floats
from quantdraft.judge.statistics.bootstrap import (
    DEFAULT,
    Bootstrap,
    interval_of,
    prompt_weights,
)
from quantdraft.record import MIN_PROMPTS, Arm, Interval, Slice


class Term(NamedTuple):
    """Conditional acceptance (kept / asked) of one arm on one part, times `sign`."""

    sign: float
    part: Slice
    arm: Arm


def contrast(terms: Sequence[Term], bootstrap: Bootstrap = DEFAULT) -> Interval | None:
    """The sum of the terms, e.g. first third minus last third of the candidate's responses.

    None where the record does not say what each prompt kept, or where some part was asked of fewer
    than MIN_PROMPTS prompts.
    """
    prompts = sorted({prompt for term in terms for prompt in term.part.prompts})
    counts = [_asked_and_kept(term, prompts) for term in terms]
    if any((asked > 0).sum() < MIN_PROMPTS for asked, _ in counts):
        return None
    weights = prompt_weights(len(prompts), bootstrap)
    signs = [term.sign for term in terms]
    pairs = list(zip(signs, counts, strict=True))
    value = sum(sign * kept.sum() / asked.sum() for sign, (asked, kept) in pairs)
    with np.errstate(invalid="ignore"):
        draws = sum(sign * (weights @ kept) / (weights @ asked) for sign, (asked, kept) in pairs)
    # A part that few prompts reach is missing from some resamples: they say nothing of it.
    known = np.asarray(draws)[np.isfinite(draws)]
    smallest = min(int((asked > 0).sum()) for asked, _ in counts)
    return interval_of(float(value), known, smallest, bootstrap)


def _asked_and_kept(term: Term, prompts: Sequence[int]) -> tuple[Floats, Floats]:
    """(prompts,) each, zero where a prompt has no token in the part."""
    place = {prompt: at for at, prompt in enumerate(prompts)}
    asked, kept = np.zeros(len(prompts)), np.zeros(len(prompts))
    rows = [place[prompt] for prompt in term.part.prompts]
    asked[rows], kept[rows] = term.part.of(term.arm).asked, term.part.of(term.arm).kept
    return asked, kept
