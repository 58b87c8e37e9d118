"""What must hold between the parts of a whole evaluation or bench."""

from __future__ import annotations

from collections.abc import Iterator

from quantdraft.record.consistency.acceptance import check_prompt
from quantdraft.record.consistency.judgement import check_fates
from quantdraft.record.consistency.rules import Problem, is_near
from quantdraft.record.consistency.serving import check_served_k
from quantdraft.record.consistency.timing import check_timed
from quantdraft.record.consistency.tracing import check_trace
from quantdraft.record.evaluation import Bench, Evaluation
from quantdraft.record.free_form import LEDGER, PROVENANCE
from quantdraft.record.terms import ARMS


def check_evaluation(made: Evaluation) -> Iterator[Problem]:
    """Yield what contradicts between the parts of a whole evaluation."""
    ks = made.num_speculative_tokens
    if not ks or list(ks) != sorted(set(ks)):
        yield "num_speculative_tokens", "it lists each k once, the lowest first, and one at least"
        return
    if not made.prompts or not any(prompt.num_tokens for prompt in made.prompts):
        yield "prompts", "no prompt has a token"
    for prompt_at, prompt in enumerate(made.prompts):
        yield from check_prompt(f"prompts.{prompt_at}", prompt, ks)
    yield from _of_every_k(made)
    yield from _totals(made)
    slices = {name: getattr(made, name) for name in ("by_position", "by_context", "by_domain")}
    slices |= {f"by_trait.{name}": parts for name, parts in made.by_trait.items()}
    for name, parts in slices.items():
        for place, part in enumerate(parts):
            if max(part.prompts, default=-1) >= len(made.prompts):
                yield f"{name}.{place}.prompts", f"there are {len(made.prompts)} prompts"
    if made.analysis is not None:
        yield from check_fates(made.analysis, made.disagreements)
        names = [f"{p.batch_size}, {p.context_length}" for p in made.analysis.grid]
        if len(set(names)) < len(names):
            yield "analysis.grid", "a batch and context stands there twice"
    if made.trace is not None:
        yield from check_trace(made.trace, ks)
    yield from check_served_k(made)
    yield from check_timed(made)
    for name, known in (("ledger", LEDGER), ("provenance", PROVENANCE)):
        yield from known.problems(getattr(made, name), name)


def _of_every_k(made: Evaluation) -> Iterator[Problem]:
    """Yield what is not there once for every k, and k that were not replayed."""
    ks = made.num_speculative_tokens
    if [at.num_speculative_tokens for at in made.acceptance] != list(ks):
        yield "acceptance", f"it has an entry for each k of {list(ks)}, in this order"
    for place, point in enumerate(made.equal_k):
        pair = point.baseline_num_speculative_tokens, point.candidate_num_speculative_tokens
        if pair[0] != pair[1] or pair[0] not in ks:
            yield f"equal_k.{place}", f"k = {pair[0]} and {pair[1]}: both are one of {list(ks)}"
    if sorted(point.candidate_num_speculative_tokens for point in made.equal_k) != sorted(ks):
        yield "equal_k", f"it has one point for each k of {list(ks)}"
    for arm in ARMS:
        if arm not in made.best_k:
            yield f"best_k.{arm}", "it is missing"
        elif made.best_k[arm] is not None and made.best_k[arm] not in ks:
            yield f"best_k.{arm}", f"{made.best_k[arm]} is none of {list(ks)}"
        k = made.operating_point.of(arm).num_speculative_tokens
        if k not in ks:
            name = f"operating_point.{arm}_num_speculative_tokens"
            yield name, f"{k} is none of {list(ks)}"
    if made.known_slices_k not in ks:
        yield "slices_k", f"{made.known_slices_k} is none of {list(ks)}"


def _totals(made: Evaluation) -> Iterator[Problem]:
    """Yield counts over all prompts that are far from the sums of the prompts' own.

    Twice as many or half are let pass: the earliest records count other prompts in both places.
    """
    num_tokens = sum(prompt.num_tokens for prompt in made.prompts)
    for place, at in enumerate(made.acceptance):
        for arm in ARMS:
            counts = at.of(arm).counts
            rounds = sum(prompt.of(arm).num_drafts[place] for prompt in made.prompts)
            where = f"acceptance.{place}.{arm}"
            if not is_near(counts.num_tokens, num_tokens):
                yield f"{where}.num_tokens", f"{counts.num_tokens}; the prompts have {num_tokens}"
            if not is_near(counts.num_drafts, rounds):
                yield f"{where}.num_drafts", f"{counts.num_drafts:g}; the prompts have {rounds:g}"


def check_bench(made: Bench) -> Iterator[Problem]:
    """Yield places that were timed twice, or none."""
    if not made.points:
        yield "points", "it is empty: nothing was timed"
    places = [(point.batch_size, point.context_length) for point in made.points]
    if len(set(places)) < len(places):
        yield "points", "a batch and context stands there twice"
    yield from PROVENANCE.problems(made.provenance, "provenance")
