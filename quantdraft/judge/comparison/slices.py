"""Conditional acceptance (kept / asked) of both arms on parts of the tokens, and its loss."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from quantdraft.judge.acceptance import Floats, Ints, TokenAcceptance, token_acceptance
from quantdraft.judge.conversations import sum_units
from quantdraft.judge.statistics.bootstrap import (
    DEFAULT,
    Bootstrap,
    interval_of,
    prompt_weights,
)
from quantdraft.record import MIN_PROMPTS, Arm, Interval, Slice
from quantdraft.record.terms import compact


class Cut(NamedTuple):
    """A way to part the tokens: every response token has a label, and labels have names."""

    labels: Callable[[int, int], Ints]  # of prompt number i with n response tokens: (n,)
    name: Callable[[int], str]


def by_position() -> Cut:
    """Return the cut into thirds of the response, so that long and short ones align."""

    def labels(prompt: int, num_tokens: int) -> Ints:
        return 3 * np.arange(num_tokens) // num_tokens

    return Cut(labels, ("first third", "middle third", "last third").__getitem__)


def by_context(num_prompt_tokens: Sequence[int]) -> Cut:
    """Return the cut by the number of tokens before a token, prompt included, in doublings."""

    def labels(prompt: int, num_tokens: int) -> Ints:
        num_before = num_prompt_tokens[prompt] + np.arange(num_tokens)
        return np.asarray(np.log2(np.maximum(num_before, 1)), np.int64)

    return Cut(labels, lambda doubling: f"{2**doubling}-{2 ** (doubling + 1) - 1} tokens")


def by_domain(domains: Sequence[str]) -> Cut:
    """Return the cut by the domain of the prompt, sorted by name."""
    names = sorted(set(domains))
    number = {name: index for index, name in enumerate(names)}
    return Cut(
        lambda prompt, num_tokens: np.full(num_tokens, number[domains[prompt]]), names.__getitem__
    )


def slice_tokens(
    baseline: Sequence[Floats],
    candidate: Sequence[Floats],
    k: int,
    cuts: Sequence[Cut],
    bootstrap: Bootstrap = DEFAULT,
) -> tuple[tuple[Slice, ...], ...]:
    """Return for each cut a Slice for every label that has tokens, in the order of the labels.

    baseline, candidate: acceptance probabilities as for `replay_rounds`, of the same responses

    Memory holds sums, a few numbers a prompt and label, not the tokens.
    """
    parts: list[dict[int, _Part]] = [{} for _ in cuts]
    for prompt, before, after in _side_by_side(baseline, candidate, k):
        num_tokens = len(before.asked)
        for cut, found in zip(cuts, parts, strict=True):
            _add(found, prompt, cut.labels(prompt, num_tokens), before, after)
    return tuple(
        tuple(_slice(cut.name(label), found[label], bootstrap) for label in sorted(found))
        for cut, found in zip(cuts, parts, strict=True)
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """Sums of the prompts that have tokens under one label, one of each for every prompt."""

    prompts: array[int] = field(default_factory=lambda: array("q"))
    num_tokens: array[int] = field(default_factory=lambda: array("q"))
    sums: array[float] = field(default_factory=lambda: array("d"))  # kept, asked; of both arms


def _side_by_side(
    baseline: Sequence[Floats], candidate: Sequence[Floats], k: int
) -> Iterator[tuple[int, TokenAcceptance, TokenAcceptance]]:
    """Yield each prompt with both arms: responses of one length come in one order."""
    arms = token_acceptance(baseline, k), token_acceptance(candidate, k)
    for (prompt, before), (_, after) in zip(*arms, strict=True):
        yield prompt, before, after


def _add(
    found: dict[int, _Part],
    prompt: int,
    labels: Ints,
    before: TokenAcceptance,
    after: TokenAcceptance,
) -> None:
    num_tokens = np.bincount(labels)
    values = before.kept, before.asked, after.kept, after.asked
    sums = [np.bincount(labels, weights=each) for each in values]
    for label in np.flatnonzero(num_tokens).tolist():
        part = found.setdefault(label, _Part())
        part.prompts.append(prompt)
        part.num_tokens.append(int(num_tokens[label]))
        part.sums.extend(float(each[label]) for each in sums)


def _slice(name: str, part: _Part, bootstrap: Bootstrap) -> Slice:
    prompts = np.array(part.prompts, np.int64)
    order = np.argsort(prompts)
    sums = np.array(part.sums).reshape(-1, 4)[order]
    before, after = sums[:, :2], sums[:, 2:]
    units = bootstrap.units_at(prompts[order])
    return Slice(
        name=name,
        num_prompts=len(prompts),
        num_tokens=sum(part.num_tokens),
        baseline_conditional_acceptance=_ratio(before.sum(axis=0)),
        candidate_conditional_acceptance=_ratio(after.sum(axis=0)),
        conditional_acceptance_loss=_loss(
            sum_units(before, units), sum_units(after, units), bootstrap
        ),
        prompts=tuple(prompts[order].tolist()),
        baseline_asked=compact(before[:, 1].tolist()),
        baseline_kept=compact(before[:, 0].tolist()),
        candidate_asked=compact(after[:, 1].tolist()),
        candidate_kept=compact(after[:, 0].tolist()),
    )


def _ratio(kept_and_asked: Floats) -> float | None:
    kept, asked = kept_and_asked
    return float(kept / asked) if asked > 0 else None


def _loss(baseline: Floats, candidate: Floats, bootstrap: Bootstrap) -> Interval | None:
    """Return baseline minus candidate of (units, 2) sums; None where too few were asked."""
    is_asked = (baseline[:, 1] > 0) & (candidate[:, 1] > 0)
    num_prompts = int(is_asked.sum())
    if num_prompts < MIN_PROMPTS:
        return None
    weights = prompt_weights(num_prompts, bootstrap)
    before, after = weights @ baseline[is_asked], weights @ candidate[is_asked]
    draws = before[:, 0] / before[:, 1] - after[:, 0] / after[:, 1]
    totals = baseline[is_asked].sum(axis=0), candidate[is_asked].sum(axis=0)
    value = totals[0][0] / totals[0][1] - totals[1][0] / totals[1][1]
    return interval_of(value, draws, num_prompts, bootstrap)


class Term(NamedTuple):
    """Conditional acceptance (kept / asked) of one arm on one part, times `sign`."""

    sign: float
    part: Slice
    arm: Arm


def contrast(terms: Sequence[Term], bootstrap: Bootstrap = DEFAULT) -> Interval | None:
    """Return the sum of the terms, e.g. first third minus last third of the candidate's responses.

    None where the record does not say what each prompt kept, or where some part was asked of fewer
    than MIN_PROMPTS prompts; of conversations, where these are resampled.
    """
    prompts = sorted({prompt for term in terms for prompt in term.part.prompts})
    units = bootstrap.units_at(np.array(prompts, np.int64))
    counts = [
        (sum_units(asked, units), sum_units(kept, units))
        for asked, kept in (_asked_and_kept(term, prompts) for term in terms)
    ]
    if any((asked > 0).sum() < MIN_PROMPTS for asked, _ in counts):
        return None
    weights = prompt_weights(len(counts[0][0]), bootstrap)
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
    """Return (prompts,) each, zero where a prompt has no token in the part."""
    place = {prompt: at for at, prompt in enumerate(prompts)}
    asked, kept = np.zeros(len(prompts)), np.zeros(len(prompts))
    rows = [place[prompt] for prompt in term.part.prompts]
    asked[rows], kept[rows] = term.part.of(term.arm).asked, term.part.of(term.arm).kept
    return asked, kept
