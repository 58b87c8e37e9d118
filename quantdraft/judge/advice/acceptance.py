"""Diagnoses of acceptance: whether the draft is right often enough for what it costs.

Accepted / proposed, the acceptance rate, falls with k whatever the draft: at k = 8 a draft that is
right 80 times in 100 has a rate of 0.42. So the bands of the practitioners' rule are held against
α, the independent acceptance per token that gives the measured length (Leviathan et al.). The
verdict's checks hold the acceptance rate itself; every line here says which of the two it shows.
"""

from __future__ import annotations

from quantdraft.judge.acceptance import alpha_from_length
from quantdraft.judge.advice.commands import (
    check_command,
    evaluate_command,
    milder_recipe,
    model,
    traffic,
)
from quantdraft.judge.advice.limits import (
    HIGH_ALPHA,
    MAX_DRAFT_SHARE,
    MEASURED,
    PRACTITIONERS,
    more_prompts,
    side,
    state_if,
)
from quantdraft.judge.verdict.policy import Policy
from quantdraft.record import ARMS, AcceptanceComparison, Evaluation, Interval
from quantdraft.record.analysis import Diagnosis
from quantdraft.record.wording import counted, estimated, times


def alpha_of(lengths: Interval, k: int) -> Interval:
    """Return the acceptance per token that gives each end of a mean acceptance length.

    Lengths are cut to [1, k + 1], where alone there is one: a cut last round may leave them a
    little outside.
    """
    ends = (min(max(end, 1.0), k + 1.0) for end in (lengths.value, lengths.low, lengths.high))
    return Interval(*(alpha_from_length(end, k) for end in ends))


def low_acceptance(evaluation: Evaluation, policy: Policy) -> tuple[Diagnosis, ...]:
    """Return a diagnosis where acceptance lies below one of the two limits, the lower one first."""
    acceptance = evaluation.acceptance_at(evaluation.shown_k)
    if acceptance is None:
        return ()
    diverged = _below(evaluation, acceptance, policy.min_acceptance_rate, "diverged")
    wrong = _below(evaluation, acceptance, policy.warn_acceptance_rate, "wrong-draft")
    if diverged is not None and diverged.state == "found":
        return (diverged,)
    return tuple(found for found in (wrong, diverged) if found is not None)


FINDINGS = {
    "diverged": "draft and target diverge",
    "wrong-draft": "this is probably the wrong draft",
}


def _below(
    evaluation: Evaluation, acceptance: AcceptanceComparison, limit: float, code: str
) -> Diagnosis | None:
    k = acceptance.num_speculative_tokens
    alpha, baseline = (alpha_of(acceptance.of(arm).length, k) for arm in ARMS[::-1])
    state = state_if(alpha, limit, "below")
    if state is None:
        return None
    command: str | None = None
    if state == "cannot tell":
        action = more_prompts(alpha, limit, evaluation)
    elif side(baseline, limit) == "above":
        action, command = milder_recipe(evaluation)
    elif code == "diverged":
        action = "compare tokens, special tokens and families of the pair"
        command = check_command(evaluation)
    else:
        action = "hold other drafts against the same traffic"
        target, draft = model(evaluation, "target"), model(evaluation, "baseline")
        command = (
            f"quantdraft select --target {target} --draft {draft} --draft OTHER "
            f"--traffic {traffic(evaluation)}"
        )
    return Diagnosis(
        code=code,
        state=state,
        finding=FINDINGS[code],
        seen=(
            f"α = {estimated(alpha, 'rate')} at k = {k}, the baseline's "
            f"{estimated(baseline, 'rate')} ({_not_the_rate(acceptance)})"
        ),
        limit=f"α below {100 * limit:.0f} %",
        source=PRACTITIONERS,
        action=action,
        command=command,
        observed=alpha,
        threshold=limit,
    )


def _not_the_rate(acceptance: AcceptanceComparison) -> str:
    """Return words that tell α from the acceptance rate, which the verdict's checks hold."""
    return (
        "α: acceptance per token asked for; accepted / proposed is "
        f"{100 * acceptance.candidate_rate.value:.1f} %"
    )


WHAT_HELPS = {
    "draft-too-dear": (
        "the draft's pass is too dear",
        "a smaller draft, fewer bits or a lower k; better acceptance can hardly help",
    ),
    "draft-too-wrong": (
        "the draft is too often wrong for what it costs",
        "a better draft, or a milder recipe; a cheaper one can hardly help",
    ),
}


def draft_too_dear(evaluation: Evaluation, policy: Policy) -> tuple[Diagnosis, ...]:
    """Return why speculation does not pay: the draft takes too long, or it is too often wrong.

    Too dear: acceptance is high already, or the draft's steps take most of a round. Else the target
    passes are most of it, and more accepted tokens would spread them further.
    """
    acceptance = evaluation.acceptance_at_its_k
    speedup = evaluation.operating_point.speedup_over_autoregressive
    if acceptance is None or speedup is None:
        return ()
    is_slow = state_if(speedup, policy.min_speedup_over_autoregressive, "below")
    if is_slow is None:
        return ()
    k, state = acceptance.num_speculative_tokens, is_slow
    share = draft_share(evaluation, k)
    alpha = alpha_of(acceptance.candidate_length, k)
    is_high = state_if(alpha, HIGH_ALPHA, "above")
    code = "draft-too-dear"
    if share is not None and share > MAX_DRAFT_SHARE:
        why = f"drafting over {100 * MAX_DRAFT_SHARE:.0f} % of a round"
    elif is_high is not None:
        state = "found" if is_high == is_slow == "found" else "cannot tell"
        why = f"α above {100 * HIGH_ALPHA:.0f} %"
    elif share is not None:
        code, why = "draft-too-wrong", f"α under {100 * HIGH_ALPHA:.0f} %"
    else:
        return ()
    finding, helps = WHAT_HELPS[code]
    is_found = state == "found"
    return (
        Diagnosis(
            code=code,
            state=state,
            finding=finding,
            seen=(
                f"α = {estimated(alpha, 'rate')} at k = {k} ({_not_the_rate(acceptance)}), and "
                f"{estimated(speedup, 'speedup')} the target's own speed{_share(share, k)}"
            ),
            limit=f"{why} without a speedup over {times(policy.min_speedup_over_autoregressive)}",
            source=PRACTITIONERS,
            action=helps if is_found else "time longer, and replay more prompts",
            command=evaluate_k(evaluation, k) if is_found and code == "draft-too-dear" else None,
            observed=alpha,
            threshold=HIGH_ALPHA,
        ),
    )


def slower_than_baseline(evaluation: Evaluation) -> tuple[Diagnosis, ...]:
    """Return what acceptance a candidate would need that is surely slower than the baseline."""
    point, acceptance = evaluation.operating_point, evaluation.acceptance_at_its_k
    speedup, needed = point.speedup_over_baseline, point.break_even_length
    if speedup is None or needed is None or acceptance is None or speedup.high >= 1:
        return ()
    k = acceptance.num_speculative_tokens
    most = f"; {k + 1} is the most there is, so no acceptance is enough" if needed > k + 1 else ""
    return (
        Diagnosis(
            code="slower-than-baseline",
            state="found",
            finding="the candidate is slower than the baseline draft",
            seen=(
                f"{estimated(speedup, 'speedup')} the baseline's speed; it emits "
                f"{acceptance.candidate_length.value:.2f} tokens a round at k = {k}"
            ),
            limit=f"to be as fast it must emit {needed:.2f} tokens a round at k = {k}{most}",
            source=MEASURED,
            action=_what_slows(point.draft_latency_saving),
            observed=speedup,
            threshold=1.0,
        ),
    )


def _what_slows(saving: Interval | None) -> str:
    if saving is not None and saving.value < 0:
        return (
            f"its draft step takes {1 - saving.value:.2f} times as long as the baseline's: another "
            "format, or a device with a faster kernel for this one"
        )
    return "its draft step is shorter, but it loses more by acceptance: a milder recipe"


def evaluate_k(evaluation: Evaluation, k: int) -> str | None:
    """Return the command that tries every lower k, where they were not all tried."""
    tried = set(evaluation.num_speculative_tokens)
    return None if set(range(1, k + 1)) <= tried else evaluate_command(evaluation, f"-k 1-{k}")


def draft_share(evaluation: Evaluation, k: int) -> float | None:
    """Return the share of a round that the draft's steps take; None where one was not timed."""
    point = evaluation.operating_point
    step_ms, verify_ms = point.candidate_draft_step_ms, point.candidate_verify_step_ms
    if step_ms is None or verify_ms is None:
        return None
    return k * step_ms / (k * step_ms + verify_ms)


def _share(share: float | None, k: int) -> str:
    if share is None:
        return ""
    takes = "takes" if k == 1 else "take"
    return f"; its {counted(k, 'step')} {takes} {100 * share:.0f} % of a round"
