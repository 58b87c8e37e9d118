"""Diagnoses of where rejections fall: early or late, at which context, in which domain."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from quantdraft.judge.advice.commands import evaluate_command, milder_recipe, model
from quantdraft.judge.advice.limits import (
    MIN_CONTRAST,
    OWN,
    PRACTITIONERS,
    more_prompts,
    side,
    state_if,
)
from quantdraft.judge.comparison.slices import Term, contrast
from quantdraft.judge.statistics.bootstrap import Bootstrap
from quantdraft.record import MIN_PROMPTS, Arm, Evaluation, Interval, Slice
from quantdraft.record.analysis import Diagnosis
from quantdraft.record.wording import estimated

Owner = Literal["pair", "recipe", "unknown"]
FALLS = "acceptance falls with context"
OLD_RECORD = "the record does not say what each prompt kept"
FEW = f"under {MIN_PROMPTS} prompts have tokens in one of them"


def rejections_early_or_late(evaluation: Evaluation, bootstrap: Bootstrap) -> tuple[Diagnosis, ...]:
    """Return whether rejections fall early or late: the first third against the last."""
    thirds = evaluation.by_position
    if len(thirds) < 2:
        return ()
    first, last = thirds[0], thirds[-1]
    ends = difference(last, first, bootstrap)
    if ends is None:
        return (
            _cannot_tell(
                "early-rejections", "rejections fall early or late", first, last, evaluation
            ),
        )
    early = state_if(ends, MIN_CONTRAST, "above")
    late = state_if(ends, -MIN_CONTRAST, "below")
    found = [_early(evaluation, ends, bootstrap)] if early == "found" else []
    found += [_late(evaluation, ends, bootstrap)] if late == "found" else []
    if found or (early is None and late is None):
        return tuple(found)
    nearest = MIN_CONTRAST if ends.value > 0 else -MIN_CONTRAST
    return (_unsure_third(evaluation, ends, nearest),)


def difference(
    one: Slice, other: Slice, bootstrap: Bootstrap, arm: Arm = "candidate"
) -> Interval | None:
    """Return one part's conditional acceptance minus the other's, with its interval."""
    return contrast([Term(1.0, one, arm), Term(-1.0, other, arm)], bootstrap)


def _early(evaluation: Evaluation, ends: Interval, bootstrap: Bootstrap) -> Diagnosis:
    target, draft = model(evaluation, "target"), model(evaluation, "baseline")
    return _third(
        evaluation,
        ends,
        bootstrap,
        code="early-rejections",
        when="early",
        points_to="which points to tokenizer or prompt format",
        action="compare special tokens, and the chat template that the draft was trained with",
        command=f"quantdraft check --target {target} --draft {draft}",
    )


def _late(evaluation: Evaluation, ends: Interval, bootstrap: Bootstrap) -> Diagnosis:
    return _third(
        evaluation,
        ends,
        bootstrap,
        code="late-rejections",
        when="late",
        points_to="which points to lost coherence",
        action="a draft with more depth or a longer context, or shorter responses; measure them",
        command=None,
    )


def _third(
    evaluation: Evaluation,
    ends: Interval,
    bootstrap: Bootstrap,
    *,
    code: str,
    when: str,
    points_to: str,
    action: str,
    command: str | None,
) -> Diagnosis:
    """Return the diagnosis of early or late rejections, of the pair or of the recipe.

    points_to, action, command: of a pair that shows it already in full precision
    """
    first, last = evaluation.by_position[0], evaluation.by_position[-1]
    owner, words = blame(last, first, ends, bootstrap)
    finding = f"rejections fall {when} in the response, {points_to}"
    if owner == "recipe":
        finding = f"the recipe's rejections fall {when} in the response; the baseline's do not"
        action, command = milder_recipe(evaluation)
    return Diagnosis(
        code=code,
        state="found",
        finding=finding,
        seen=(
            f"{last.name} minus {first.name}: {estimated(ends, 'difference')} of the tokens "
            "asked for are kept"
            f"{words}"
        ),
        limit=f"over {100 * MIN_CONTRAST:.0f} points",
        source=f"{PRACTITIONERS}; {OWN}",
        action=action,
        command=command,
        observed=ends,
        threshold=MIN_CONTRAST if ends.value > 0 else -MIN_CONTRAST,
    )


def blame(one: Slice, other: Slice, ends: Interval, bootstrap: Bootstrap) -> tuple[Owner, str]:
    """Return whose a contrast of the candidate is, and the words that say so.

    Held against the baseline's own contrast, prompt by prompt: the recipe's is only the part in
    which the two differ. ends: one's conditional acceptance minus the other's, of the candidate
    """
    baseline = difference(one, other, bootstrap, "baseline")
    terms: list[Term] = []
    for sign, part in ((1.0, one), (-1.0, other)):
        terms += [Term(sign, part, "candidate"), Term(-sign, part, "baseline")]
    added = contrast(terms, bootstrap)
    if baseline is None or added is None:
        return "unknown", ""
    limit, beyond = (MIN_CONTRAST, "above") if ends.value > 0 else (-MIN_CONTRAST, "below")
    is_in_both, is_added = side(baseline, limit) == beyond, side(added, 0.0) == beyond
    of_baseline, more = (
        f"the baseline {estimated(baseline, 'difference')}",
        estimated(added, "difference"),
    )
    if is_in_both:
        also = f"; the recipe adds {more}" if is_added else ", not the recipe's"
        return "pair", f" ({of_baseline}: it is the pair's or the traffic's{also})"
    if is_added:
        return "recipe", f" ({of_baseline}: it is the recipe's, which adds {more})"
    return "unknown", f" ({of_baseline}: whether the recipe adds to it cannot be told, {more})"


def _unsure_third(evaluation: Evaluation, ends: Interval, limit: float) -> Diagnosis:
    first, last = evaluation.by_position[0], evaluation.by_position[-1]
    return Diagnosis(
        code="early-rejections" if ends.value > 0 else "late-rejections",
        state="cannot tell",
        finding=f"rejections fall {'early' if ends.value > 0 else 'late'} in the response",
        seen=(
            f"{last.name} minus {first.name}: {estimated(ends, 'difference')} of the tokens "
            "asked for are kept"
        ),
        limit=f"over {100 * MIN_CONTRAST:.0f} points",
        source=f"{PRACTITIONERS}; {OWN}",
        action=more_prompts(ends, limit, len(evaluation.prompts)),
        observed=ends,
        threshold=limit,
    )


def acceptance_by_context(evaluation: Evaluation, bootstrap: Bootstrap) -> tuple[Diagnosis, ...]:
    """Return whether acceptance falls from the shortest context to the longest."""
    parts = [p for p in evaluation.by_context if p.num_prompts >= MIN_PROMPTS]
    if len(parts) < 2:
        return ()
    short, long = parts[0], parts[-1]
    ends = difference(short, long, bootstrap)
    if ends is None:
        return (_cannot_tell("context-falls", FALLS, short, long, evaluation),)
    state = state_if(ends, MIN_CONTRAST, "above")
    if state is None:
        return ()
    return (
        Diagnosis(
            code="context-falls",
            state=state,
            finding=FALLS,
            seen=(
                f"{short.name} minus {long.name}: {estimated(ends, 'difference')} of the tokens "
                "asked for are "
                f"kept{blame(short, long, ends, bootstrap)[1] if state == 'found' else ''}"
            ),
            limit=f"over {100 * MIN_CONTRAST:.0f} points",
            source=f"{PRACTITIONERS}; {OWN}",
            action="judge it on traffic as long as you serve, and time it there (--context-length)"
            if state == "found"
            else more_prompts(ends, MIN_CONTRAST, len(evaluation.prompts)),
            observed=ends,
            threshold=MIN_CONTRAST,
        ),
    )


def loss_by_context(evaluation: Evaluation, bootstrap: Bootstrap) -> tuple[Diagnosis, ...]:
    """Return whether quantization costs more at the longest context than at the shortest."""
    parts = [p for p in evaluation.by_context if p.num_prompts >= MIN_PROMPTS]
    if len(parts) < 2:
        return ()
    short, long = parts[0], parts[-1]
    terms = [
        Term(1.0, long, "baseline"),
        Term(-1.0, long, "candidate"),
        Term(-1.0, short, "baseline"),
        Term(1.0, short, "candidate"),
    ]
    ends = contrast(terms, bootstrap)
    if ends is None or state_if(ends, MIN_CONTRAST, "above") != "found":
        return ()
    return (
        Diagnosis(
            code="context-costs",
            state="found",
            finding="quantization costs more acceptance at long context",
            seen=(
                f"the loss at {long.name} minus that at {short.name}: "
                f"{estimated(ends, 'difference')}"
            ),
            limit=f"over {100 * MIN_CONTRAST:.0f} points",
            source=OWN,
            action="a milder recipe, or keys and values in more bits, if you serve that context",
            observed=ends,
            threshold=MIN_CONTRAST,
        ),
    )


def weakest_domain(evaluation: Evaluation, bootstrap: Bootstrap) -> tuple[Diagnosis, ...]:
    """Return the domain of least acceptance, where the interval tells it from the best.

    Both are picked from many, so the interval is that of all pairs together (Bonferroni). No line
    where it cannot tell: some domain is always last.
    """
    rated = [
        (part.candidate_conditional_acceptance, part)
        for part in evaluation.by_domain
        if part.candidate_conditional_acceptance is not None and part.num_prompts >= MIN_PROMPTS
    ]
    if len(rated) < 2:
        return ()
    ordered = sorted(rated, key=lambda pair: pair[0])
    weak, strong = ordered[0][1], ordered[-1][1]
    num_pairs = len(rated) * (len(rated) - 1) // 2
    ends = difference(strong, weak, replace(bootstrap, confidence=1 - 0.05 / num_pairs))
    if ends is None or state_if(ends, MIN_CONTRAST, "above") != "found":
        return ()
    return (
        Diagnosis(
            code="weak-domain",
            state="found",
            finding=f"the draft is weakest on '{weak.name}'",
            seen=(
                f"'{strong.name}' minus '{weak.name}': {estimated(ends, 'difference')} of the "
                "tokens asked for"
            ),
            limit=f"over {100 * MIN_CONTRAST:.0f} points",
            source=OWN,
            action="another draft or no speculation there; weigh domains as you serve them",
            observed=ends,
            threshold=MIN_CONTRAST,
        ),
    )


def _cannot_tell(
    code: str, finding: str, one: Slice, other: Slice, evaluation: Evaluation
) -> Diagnosis:
    is_old = not one.prompts or not other.prompts
    return Diagnosis(
        code=code,
        state="cannot tell",
        finding=finding,
        seen=f"{one.name} and {other.name}: {OLD_RECORD if is_old else FEW}",
        limit=f"over {100 * MIN_CONTRAST:.0f} points",
        source=f"{PRACTITIONERS}; {OWN}",
        action="evaluate again with this version" if is_old else "evaluate on more prompts",
        command=evaluate_command(evaluation, "--force") if is_old else None,
        threshold=MIN_CONTRAST,
    )
