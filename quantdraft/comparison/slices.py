"""Conditional acceptance (kept / asked) of both arms on parts of the tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from quantdraft.acceptance import Floats, Ints, TokenAcceptance
from quantdraft.results import Slice

Arm = Sequence[TokenAcceptance]  # one per prompt, in the order of the traffic


def slice_by_position(baseline: Arm, candidate: Arm) -> tuple[Slice, ...]:
    """Each third of the response that a token belongs to, so that long and short ones align."""
    thirds = [3 * np.arange(len(t.asked)) // max(len(t.asked), 1) for t in baseline]
    names = {0: "first third", 1: "middle third", 2: "last third"}
    return _slices(baseline, candidate, thirds, names)


def slice_by_context(
    baseline: Arm, candidate: Arm, num_prompt_tokens: Sequence[int]
) -> tuple[Slice, ...]:
    """By the number of tokens before a token, prompt included, in doublings."""
    doublings = [
        np.log2(np.maximum(before + np.arange(len(tokens.asked)), 1)).astype(np.int64)
        for tokens, before in zip(baseline, num_prompt_tokens, strict=True)
    ]
    present = sorted({int(doubling) for each in doublings for doubling in each})
    names = {d: f"{2**d}-{2 ** (d + 1) - 1} tokens" for d in present}
    return _slices(baseline, candidate, doublings, names)


def slice_by_domain(baseline: Arm, candidate: Arm, domains: Sequence[str]) -> tuple[Slice, ...]:
    """By the domain of the prompt, sorted by name."""
    names = dict(enumerate(sorted(set(domains))))
    number = {name: index for index, name in names.items()}
    labels = [
        np.full(len(tokens.asked), number[domain])
        for tokens, domain in zip(baseline, domains, strict=True)
    ]
    return _slices(baseline, candidate, labels, names)


def _slices(
    baseline: Arm, candidate: Arm, labels: Sequence[Ints], names: Mapping[int, str]
) -> tuple[Slice, ...]:
    """One Slice per name that has tokens; labels: (response tokens,) per prompt."""
    per_token = np.concatenate(labels)
    size = max(names) + 1 if names else 0
    num_tokens = np.bincount(per_token, minlength=size)
    num_prompts = np.bincount(np.concatenate([np.unique(each) for each in labels]), minlength=size)
    base, cand = (_conditional(arm, per_token, size) for arm in (baseline, candidate))
    return tuple(
        Slice(name, int(num_prompts[label]), int(num_tokens[label]), base[label], cand[label])
        for label, name in names.items()
        if num_tokens[label]
    )


def _conditional(arm: Arm, per_token: Ints, size: int) -> list[float | None]:
    """Kept / asked per label; None where nothing was asked."""
    asked = _sum([tokens.asked for tokens in arm], per_token, size)
    kept = _sum([tokens.kept for tokens in arm], per_token, size)
    return [float(k / a) if a > 0 else None for k, a in zip(kept, asked, strict=True)]


def _sum(values: Sequence[Floats], per_token: Ints, size: int) -> Floats:
    total = np.bincount(per_token, weights=np.concatenate(values), minlength=size)
    return np.asarray(total, np.float64)
