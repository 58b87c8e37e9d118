"""Conditional acceptance (kept / asked) of both arms on parts of the tokens, and its loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from quantdraft.acceptance import Floats, Ints, TokenAcceptance
from quantdraft.comparison.resampling import (
    DEFAULT,
    MIN_PROMPTS,
    Bootstrap,
    interval_of,
    prompt_weights,
)
from quantdraft.results import Interval, Slice

Arm = Sequence[TokenAcceptance]  # one per prompt, in the order of the traffic


def slice_by_position(
    baseline: Arm, candidate: Arm, bootstrap: Bootstrap = DEFAULT
) -> tuple[Slice, ...]:
    """Each third of the response that a token belongs to, so that long and short ones align."""
    thirds = [3 * np.arange(len(t.asked)) // max(len(t.asked), 1) for t in baseline]
    names = {0: "first third", 1: "middle third", 2: "last third"}
    return _slices(baseline, candidate, thirds, names, bootstrap)


def slice_by_context(
    baseline: Arm,
    candidate: Arm,
    num_prompt_tokens: Sequence[int],
    bootstrap: Bootstrap = DEFAULT,
) -> tuple[Slice, ...]:
    """By the number of tokens before a token, prompt included, in doublings."""
    doublings = [
        np.log2(np.maximum(before + np.arange(len(tokens.asked)), 1)).astype(np.int64)
        for tokens, before in zip(baseline, num_prompt_tokens, strict=True)
    ]
    present = sorted({int(doubling) for each in doublings for doubling in each})
    names = {d: f"{2**d}-{2 ** (d + 1) - 1} tokens" for d in present}
    return _slices(baseline, candidate, doublings, names, bootstrap)


def slice_by_domain(
    baseline: Arm, candidate: Arm, domains: Sequence[str], bootstrap: Bootstrap = DEFAULT
) -> tuple[Slice, ...]:
    """By the domain of the prompt, sorted by name."""
    names = dict(enumerate(sorted(set(domains))))
    number = {name: index for index, name in names.items()}
    labels = [
        np.full(len(tokens.asked), number[domain])
        for tokens, domain in zip(baseline, domains, strict=True)
    ]
    return _slices(baseline, candidate, labels, names, bootstrap)


def _slices(
    baseline: Arm,
    candidate: Arm,
    labels: Sequence[Ints],
    names: Mapping[int, str],
    bootstrap: Bootstrap,
) -> tuple[Slice, ...]:
    """One Slice per name that has tokens; labels: (response tokens,) per prompt."""
    size = max(names) + 1 if names else 0
    num_tokens = np.array([np.bincount(each, minlength=size) for each in labels])
    before, after = (_sums(arm, labels, size) for arm in (baseline, candidate))
    return tuple(
        _slice(name, num_tokens[:, label], before[label], after[label], bootstrap)
        for label, name in names.items()
        if num_tokens[:, label].any()
    )


def _slice(
    name: str, num_tokens: Ints, before: Floats, after: Floats, bootstrap: Bootstrap
) -> Slice:
    """num_tokens: (prompts,) under the label; before, after: (prompts, 2), kept and asked."""
    has_tokens = num_tokens > 0
    before, after = before[has_tokens], after[has_tokens]
    return Slice(
        name=name,
        num_prompts=int(has_tokens.sum()),
        num_tokens=int(num_tokens.sum()),
        baseline_conditional_acceptance=_ratio(before.sum(axis=0)),
        candidate_conditional_acceptance=_ratio(after.sum(axis=0)),
        conditional_acceptance_loss=_loss(before, after, bootstrap),
        prompts=tuple(np.flatnonzero(has_tokens).tolist()),
        baseline_asked=tuple(before[:, 1].tolist()),
        baseline_kept=tuple(before[:, 0].tolist()),
        candidate_asked=tuple(after[:, 1].tolist()),
        candidate_kept=tuple(after[:, 0].tolist()),
    )


def _sums(arm: Arm, labels: Sequence[Ints], size: int) -> Floats:
    """(labels, prompts, 2): kept and asked of each prompt's tokens under each label."""
    per_prompt = [
        [np.bincount(label, weights=what, minlength=size) for what in (tokens.kept, tokens.asked)]
        for tokens, label in zip(arm, labels, strict=True)
    ]
    return np.array(per_prompt).transpose(2, 0, 1)


def _ratio(kept_and_asked: Floats) -> float | None:
    kept, asked = kept_and_asked
    return float(kept / asked) if asked > 0 else None


def _loss(baseline: Floats, candidate: Floats, bootstrap: Bootstrap) -> Interval | None:
    """Baseline minus candidate of (prompts, 2) sums; None where too few prompts were asked."""
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
