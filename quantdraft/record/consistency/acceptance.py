"""Counts, rates and lists of acceptance that belong together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from quantdraft.record.acceptance import (
    AcceptanceComparison,
    AcceptanceCounts,
    Disagreement,
    PromptReplay,
    Slice,
)
from quantdraft.record.consistency.rules import (
    Problem,
    check_length,
    check_same,
    check_within,
    falls,
    is_at_most,
)
from quantdraft.record.terms import ARMS, Interval


def check_interval(ends: Interval) -> Iterator[Problem]:
    """Yield an interval whose ends stand in the wrong order."""
    if ends.low > ends.high:
        yield "low", f"{ends.low:g} lies above the high end, {ends.high:g}"


def check_counts(counts: AcceptanceCounts) -> Iterator[Problem]:
    """Yield counters of rounds and tokens that cannot come from one another."""
    k, per_pos = counts.num_speculative_tokens, counts.num_accepted_tokens_per_pos
    yield from check_length("num_accepted_tokens_per_pos", per_pos, k, "k")
    if not falls((counts.num_drafts, *per_pos)):
        yield "num_accepted_tokens_per_pos", "more are kept at a position than came to it"
    if not is_at_most(counts.num_drafts, counts.num_tokens):
        yield "num_drafts", f"{counts.num_drafts:g} rounds gave {counts.num_tokens} tokens"
    if not is_at_most(counts.num_tokens, (k + 1) * counts.num_drafts):
        rounds = f"{counts.num_drafts:g} rounds of k = {k}"
        yield "num_tokens", f"{counts.num_tokens} tokens cannot come from {rounds}"


def check_part(part: Slice) -> Iterator[Problem]:
    """Yield lists of a slice that are not one entry for each of its prompts."""
    for arm in ARMS:
        found = part.of(arm)
        for what, values in (("asked", found.asked), ("kept", found.kept)):
            if part.prompts or values:
                yield from check_length(
                    f"{arm}_{what}", values, len(part.prompts), "of the prompts"
                )
        if any(not is_at_most(k, a) for k, a in zip(found.kept, found.asked, strict=False)):
            yield f"{arm}_kept", "more tokens were kept than asked for"
    if part.prompts and len(part.prompts) > part.num_prompts:
        yield "prompts", f"it lists {len(part.prompts)} of {part.num_prompts} prompts"
    if part.conditional_acceptance_loss is not None:
        yield from check_within(
            "conditional_acceptance_loss", part.conditional_acceptance_loss, -1, 1
        )


def check_comparison(at: AcceptanceComparison) -> Iterator[Problem]:
    """Yield rates and lengths at one k that are not those of the counts beside them."""
    k = at.num_speculative_tokens
    for arm in ARMS:
        counts, rate, length = at.of(arm)
        if counts.num_speculative_tokens != k:
            yield f"{arm}.num_speculative_tokens", f"{counts.num_speculative_tokens} is not k = {k}"
        yield from check_within(f"{arm}_rate", rate, 0, 1)
        yield from check_within(f"{arm}_length", length, 1, k + 1)
        if counts.num_drafts:
            yield from check_same(f"{arm}_rate.value", rate.value, counts.acceptance_rate)
            yield from check_same(
                f"{arm}_length.value", length.value, counts.mean_acceptance_length
            )
    if at.baseline.num_tokens != at.candidate.num_tokens:
        other = f"{at.baseline.num_tokens} of the baseline"
        yield "candidate.num_tokens", f"{at.candidate.num_tokens} are not the {other}"
    yield from check_within("acceptance_rate_loss", at.acceptance_rate_loss, -1, 1)
    lost = at.baseline_rate.value - at.candidate_rate.value
    yield from check_same("acceptance_rate_loss.value", at.acceptance_rate_loss.value, lost)
    ratio = at.candidate_length.value / at.baseline_length.value
    yield from check_same("length_ratio.value", at.length_ratio.value, ratio)
    if at.acceptance_loss_per_pos:
        yield from check_length("acceptance_loss_per_pos", at.acceptance_loss_per_pos, k, "k")
    for place, loss in enumerate(at.acceptance_loss_per_pos):
        yield from check_within(f"acceptance_loss_per_pos.{place}", loss, -1, 1)


def check_disagreement(each: Disagreement) -> Iterator[Problem]:
    """Yield marks that are not one for each token."""
    for arm in ARMS:
        yield from check_length(f"{arm}_keep", each.keep(arm), len(each.tokens), "of the tokens")


def check_prompt(path: str, prompt: PromptReplay, ks: Sequence[int]) -> Iterator[Problem]:
    """Yield a prompt's rounds and kept tokens that its number of tokens does not allow."""
    for arm in ARMS:
        rounds, accepted = prompt.of(arm)
        yield from check_length(f"{path}.{arm}_num_drafts", rounds, len(ks), "of the k")
        yield from check_length(f"{path}.{arm}_num_accepted", accepted, len(ks), "of the k")
        for k, drafts, kept in zip(ks, rounds, accepted, strict=False):
            if not is_at_most(drafts, prompt.num_tokens) or not (drafts or not prompt.num_tokens):
                wrong = f"{drafts:g} rounds at k = {k} gave {prompt.num_tokens} tokens"
                yield f"{path}.{arm}_num_drafts", wrong
            if not is_at_most(kept, prompt.num_tokens):
                wrong = f"{kept:g} tokens were kept at k = {k}, of {prompt.num_tokens}"
                yield f"{path}.{arm}_num_accepted", wrong
