"""Is the draft right often enough? Judged per token asked for, which does not depend on k.

Accepted / proposed, the acceptance rate, falls with k whatever the draft: at k = 8 a draft that is
right 80 times in 100 has a rate of 0.42. So the bands of the practitioners' rule are held against
α, the independent acceptance per token that gives the measured length (Leviathan et al.). The
verdict's checks hold the acceptance rate itself; every line here says which of the two it shows.
"""

from __future__ import annotations

from quantdraft.acceptance import alpha_from_length
from quantdraft.advice.diagnosis import Diagnosis
from quantdraft.advice.limits import HIGH_ALPHA, PRACTITIONERS
from quantdraft.advice.sides import more_prompts, side, state_if
from quantdraft.advice.wording import evaluate_command, model, percent_of, times_of, traffic
from quantdraft.comparison.plane import acceptance_at
from quantdraft.results import AcceptanceComparison, Evaluation, Interval
from quantdraft.verdict.policy import Policy


def alpha_of(lengths: Interval, k: int) -> Interval:
    """The acceptance per token that gives each end of a mean acceptance length.

    Lengths are cut to [1, k + 1], where alone there is one: a cut last round may leave them a
    little outside.
    """
    ends = (min(max(end, 1.0), k + 1.0) for end in (lengths.value, lengths.low, lengths.high))
    return Interval(*(alpha_from_length(end, k) for end in ends))


def measured_acceptance(evaluation: Evaluation) -> AcceptanceComparison | None:
    """At the candidate's k of the operating point."""
    k = evaluation.operating_point.candidate_num_speculative_tokens
    return acceptance_at(evaluation, k)


def low_acceptance(evaluation: Evaluation, policy: Policy) -> tuple[Diagnosis, ...]:
    """Below one limit divergence, below the other probably the wrong draft; the lower one first."""
    acceptance = measured_acceptance(evaluation)
    if acceptance is None:
        return ()
    alpha = alpha_of(acceptance.candidate_length, acceptance.num_speculative_tokens)
    diverged = _below(
        evaluation, acceptance, alpha, policy.min_acceptance_rate, "diverged", _DIVERGED
    )
    wrong = _below(
        evaluation, acceptance, alpha, policy.warn_acceptance_rate, "wrong-draft", _WRONG
    )
    if diverged is not None and diverged.state == "found":
        return (diverged,)
    return tuple(found for found in (wrong, diverged) if found is not None)


_DIVERGED = "draft and target diverge"
_WRONG = "this is probably the wrong draft"


def _below(
    evaluation: Evaluation,
    acceptance: AcceptanceComparison,
    alpha: Interval,
    limit: float,
    code: str,
    finding: str,
) -> Diagnosis | None:
    state = state_if(alpha, limit, "below")
    if state is None:
        return None
    k = acceptance.num_speculative_tokens
    baseline = alpha_of(acceptance.baseline_length, k)
    is_recipe = side(baseline, limit) == "above"
    if state == "cannot tell":
        action, command = more_prompts(alpha, limit, len(evaluation.prompts)), None
    elif is_recipe:
        action, command = _milder_recipe(evaluation)
    else:
        action, command = _another_draft(evaluation, code)
    return Diagnosis(
        code=code,
        state=state,
        finding=finding,
        seen=(
            f"α = {percent_of(alpha)} at k = {k}, the baseline's {percent_of(baseline)} "
            f"({_not_the_rate(acceptance)})"
        ),
        limit=f"α below {100 * limit:.0f} %",
        source=PRACTITIONERS,
        action=action,
        command=command,
        observed=alpha,
        threshold=limit,
    )


def _not_the_rate(acceptance: AcceptanceComparison) -> str:
    """α and the rate of the verdict's checks are two numbers; a reader sees which is which."""
    return (
        "α: acceptance per token asked for; accepted / proposed is "
        f"{100 * acceptance.candidate_rate.value:.1f} %"
    )


def _milder_recipe(evaluation: Evaluation) -> tuple[str, str]:
    command = f"quantdraft apply --recipe int8 --draft {model(evaluation, 'baseline')}"
    return "the baseline is above the limit, so it is the recipe: try a milder one", command


def _another_draft(evaluation: Evaluation, code: str) -> tuple[str, str]:
    target, draft = model(evaluation, "target"), model(evaluation, "baseline")
    if code == "diverged":
        return (
            "compare tokens, special tokens and families of the pair",
            f"quantdraft check --target {target} --draft {draft}",
        )
    return (
        "hold other drafts against the same traffic",
        f"quantdraft select --target {target} --draft {draft} --draft OTHER "
        f"--traffic {traffic(evaluation)}",
    )


def draft_too_dear(evaluation: Evaluation, policy: Policy) -> tuple[Diagnosis, ...]:
    """Acceptance is high and speculation still does not pay: the draft's pass costs too much."""
    acceptance = measured_acceptance(evaluation)
    speedup = evaluation.operating_point.speedup_over_autoregressive
    if acceptance is None or speedup is None:
        return ()
    k = acceptance.num_speculative_tokens
    alpha, limit = alpha_of(acceptance.candidate_length, k), policy.min_speedup_over_autoregressive
    sides = {state_if(alpha, HIGH_ALPHA, "above"), state_if(speedup, limit, "below")}
    if None in sides:
        return ()
    found = sides == {"found"}
    command = evaluate_k(evaluation, k)
    return (
        Diagnosis(
            code="draft-too-dear",
            state="found" if found else "cannot tell",
            finding="the draft's pass is too dear",
            seen=(
                f"α = {percent_of(alpha)} at k = {k} ({_not_the_rate(acceptance)}), and "
                f"{times_of(speedup)} the target's own speed{_share(evaluation, k)}"
            ),
            limit=f"α above {100 * HIGH_ALPHA:.0f} % without a speedup over {limit:.2f} ×",
            source=PRACTITIONERS,
            action="a smaller draft, fewer bits or a lower k; better acceptance can hardly help"
            if found
            else "time longer, and replay more prompts",
            command=command if found else None,
            observed=alpha,
            threshold=HIGH_ALPHA,
        ),
    )


def evaluate_k(evaluation: Evaluation, k: int) -> str | None:
    """The command that tries every lower k, where they were not all tried."""
    tried = set(evaluation.num_speculative_tokens)
    return None if set(range(1, k + 1)) <= tried else evaluate_command(evaluation, f"-k 1-{k}")


def _share(evaluation: Evaluation, k: int) -> str:
    """How much of a round the draft's steps take, where both were timed."""
    point = evaluation.operating_point
    step_ms, verify_ms = point.candidate_draft_step_ms, point.candidate_verify_step_ms
    if step_ms is None or verify_ms is None:
        return ""
    share = k * step_ms / (k * step_ms + verify_ms)
    return f"; its {k} steps take {100 * share:.0f} % of a round"
