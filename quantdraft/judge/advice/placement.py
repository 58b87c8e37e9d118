"""Diagnoses of where rejections fall: early or late, at which context, in which domain."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from quantdraft.judge.advice.commands import check_command, evaluate_command, milder_recipe
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
from quantdraft.record.analysis import Diagnosis, State
from quantdraft.record.wording import estimated

Owner = Literal["pair", "recipe", "unknown"]
BOTH = f"{PRACTITIONERS}; {OWN}"
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
        finding = "rejections fall early or late"
        return (_cannot_tell(evaluation, "early-rejections", finding, first, last),)
    early = state_if(ends, MIN_CONTRAST, "above")
    late = state_if(ends, -MIN_CONTRAST, "below")
    if early is None and late is None:
        return ()
    is_found = "found" in (early, late)
    return (_third(evaluation, ends, "found" if is_found else "cannot tell", bootstrap),)


def difference(
    one: Slice, other: Slice, bootstrap: Bootstrap, arm: Arm = "candidate"
) -> Interval | None:
    """Return one part's conditional acceptance minus the other's, with its interval."""
    return contrast([Term(1.0, one, arm), Term(-1.0, other, arm)], bootstrap)


def _third(evaluation: Evaluation, ends: Interval, state: State, bootstrap: Bootstrap) -> Diagnosis:
    """Return the diagnosis of early or late rejections, of the pair or of the recipe.

    ends: the last third's conditional acceptance minus the first's
    """
    first, last = evaluation.by_position[0], evaluation.by_position[-1]
    when, limit = ("early", MIN_CONTRAST) if ends.value > 0 else ("late", -MIN_CONTRAST)
    owner, words = blame(last, first, ends, bootstrap) if state == "found" else ("unknown", "")
    finding = f"rejections fall {when} in the response"
    command: str | None = None
    if state == "cannot tell":
        action = more_prompts(ends, limit, evaluation)
    elif owner == "recipe":
        finding = f"the recipe's {finding}; the baseline's do not"
        action, command = milder_recipe(evaluation)
    elif when == "early":
        finding += ", which points to tokenizer or prompt format"
        action = "compare special tokens, and the chat template that the draft was trained with"
        command = check_command(evaluation)
    else:
        finding += ", which points to lost coherence"
        action = "a draft with more depth or a longer context, or shorter responses; measure them"
    seen = f"{last.name} minus {first.name}: {_kept(ends)}{words}"
    code = f"{when}-rejections"
    line = _diagnosis(code, state, finding, seen, action, ends, threshold=limit)
    return replace(line, command=command)


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
    of_baseline = f"the baseline {estimated(baseline, 'difference')}"
    more = estimated(added, "difference")
    if is_in_both:
        also = f"; the recipe adds {more}" if is_added else ", not the recipe's"
        return "pair", f" ({of_baseline}: it is the pair's or the traffic's{also})"
    if is_added:
        return "recipe", f" ({of_baseline}: it is the recipe's, which adds {more})"
    return "unknown", f" ({of_baseline}: whether the recipe adds to it cannot be told, {more})"


def acceptance_by_context(evaluation: Evaluation, bootstrap: Bootstrap) -> tuple[Diagnosis, ...]:
    """Return whether acceptance falls from the shortest context to the longest."""
    parts = _resampled(evaluation.by_context)
    if len(parts) < 2:
        return ()
    code, finding = "context-falls", "acceptance falls with context"
    short, long = parts[0], parts[-1]
    ends = difference(short, long, bootstrap)
    if ends is None:
        return (_cannot_tell(evaluation, code, finding, short, long),)
    state = state_if(ends, MIN_CONTRAST, "above")
    if state is None:
        return ()
    seen = f"{short.name} minus {long.name}: {_kept(ends)}"
    if state == "found":
        seen += blame(short, long, ends, bootstrap)[1]
        action = "judge it on traffic as long as you serve, and time it there (--context-length)"
    else:
        action = more_prompts(ends, MIN_CONTRAST, evaluation)
    return (_diagnosis(code, state, finding, seen, action, ends),)


def loss_by_context(evaluation: Evaluation, bootstrap: Bootstrap) -> tuple[Diagnosis, ...]:
    """Return whether quantization costs more at the longest context than at the shortest."""
    parts = _resampled(evaluation.by_context)
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
    if ends is None or side(ends, MIN_CONTRAST) != "above":
        return ()
    return (
        _diagnosis(
            "context-costs",
            "found",
            "quantization costs more acceptance at long context",
            f"the loss at {long.name} minus that at {short.name}: {estimated(ends, 'difference')}",
            "a milder recipe, or keys and values in more bits, if you serve that context",
            ends,
            source=OWN,
        ),
    )


def weakest_domain(evaluation: Evaluation, bootstrap: Bootstrap) -> tuple[Diagnosis, ...]:
    """Return the domain of least acceptance, where the interval tells it from the best.

    Both are picked from many, so the interval is that of all pairs together (Bonferroni). No line
    where it cannot tell: some domain is always last.
    """
    rated = [
        (part.candidate_conditional_acceptance, part)
        for part in _resampled(evaluation.by_domain)
        if part.candidate_conditional_acceptance is not None
    ]
    if len(rated) < 2:
        return ()
    ordered = sorted(rated, key=lambda pair: pair[0])
    weak, strong = ordered[0][1], ordered[-1][1]
    num_pairs = len(rated) * (len(rated) - 1) // 2
    ends = difference(strong, weak, replace(bootstrap, confidence=1 - 0.05 / num_pairs))
    if ends is None or side(ends, MIN_CONTRAST) != "above":
        return ()
    asked = f"{estimated(ends, 'difference')} of the tokens asked for"
    return (
        _diagnosis(
            "weak-domain",
            "found",
            f"the draft is weakest on '{weak.name}'",
            f"'{strong.name}' minus '{weak.name}': {asked}",
            "another draft or no speculation there; weigh domains as you serve them",
            ends,
            source=OWN,
        ),
    )


def _resampled(parts: tuple[Slice, ...]) -> list[Slice]:
    """Return the parts with enough prompts to resample."""
    return [part for part in parts if part.num_prompts >= MIN_PROMPTS]


def _kept(ends: Interval) -> str:
    return f"{estimated(ends, 'difference')} of the tokens asked for are kept"


def _cannot_tell(
    evaluation: Evaluation, code: str, finding: str, one: Slice, other: Slice
) -> Diagnosis:
    is_old = not one.prompts or not other.prompts
    seen = f"{one.name} and {other.name}: {OLD_RECORD if is_old else FEW}"
    action = "evaluate again with this version" if is_old else "evaluate on more prompts"
    line = _diagnosis(code, "cannot tell", finding, seen, action, None)
    return replace(line, command=evaluate_command(evaluation, "--force") if is_old else None)


def _diagnosis(
    code: str,
    state: State,
    finding: str,
    seen: str,
    action: str,
    ends: Interval | None,
    *,
    source: str = BOTH,
    threshold: float = MIN_CONTRAST,
) -> Diagnosis:
    """Return a diagnosis of a contrast, held to the least one that is worth a line."""
    return Diagnosis(
        code=code,
        state=state,
        finding=finding,
        seen=seen,
        limit=f"over {100 * MIN_CONTRAST:.0f} points",
        source=source,
        action=action,
        observed=ends,
        threshold=threshold,
    )
