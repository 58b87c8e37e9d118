"""What would change the answer, each line with the numbers it rests on.

What the numbers point to beyond that (acceptance, k, batches, where rejections fall) is diagnosed
from the whole record, with intervals: `quantdraft.advice`.
"""

from __future__ import annotations

from quantdraft.acceptance import alpha_from_length
from quantdraft.errors import UndefinedMetricError
from quantdraft.verdict.evidence import Evidence
from quantdraft.verdict.policy import Policy
from quantdraft.verdict.wording import percent

# Acceptance above which more of it cannot be what is missing.
HIGH_ALPHA = 0.85
# Practitioners' rule, a claim to be tested: used only where speed was not measured.
K_BY_ALPHA = ((0.90, "8 or more"), (0.85, "6 to 8"), (0.75, "4 to 6"), (0.60, "3 or 4"))


def all_advice(evidence: Evidence, policy: Policy) -> tuple[str, ...]:
    """Every line that applies."""
    lines = (
        _k_from_acceptance(evidence),
        _break_even(evidence),
        _too_dear_or_too_wrong(evidence, policy),
    )
    return tuple(line for line in lines if line is not None)


def _k_from_acceptance(evidence: Evidence) -> str | None:
    if evidence.is_speed_measured:
        return None
    alpha = _alpha(evidence)
    range_of_k = next((k for least, k in K_BY_ALPHA if alpha is not None and alpha >= least), None)
    if alpha is None or range_of_k is None:
        return None
    return (
        f"without timings, a rule of thumb for {percent(alpha)} acceptance per token is "
        f"k = {range_of_k}; measure latency to know"
    )


def _break_even(evidence: Evidence) -> str | None:
    """What acceptance the candidate would need, where it is slower than the baseline."""
    speed, lengths = evidence.speed, evidence.acceptance.candidate_length
    speedup, needed = speed.speedup_over_baseline, speed.break_even_length
    if speedup is None or needed is None or speedup.value >= 1:
        return None
    k = speed.candidate_num_speculative_tokens
    if needed > k + 1:
        return (
            f"no acceptance makes this candidate pay at k = {k}: it would have to emit "
            f"{needed:.2f} tokens a round, and {k + 1} is the most there is"
        )
    return (
        f"to be as fast as the baseline the candidate must emit {needed:.2f} tokens a round; "
        f"it emits {lengths.value:.2f}"
    )


def _too_dear_or_too_wrong(evidence: Evidence, policy: Policy) -> str | None:
    """Where speculation does not clearly pay: is drafting too slow, or too often rejected?"""
    over_target, step_ms = (
        evidence.speed.speedup_over_autoregressive,
        evidence.speed.candidate_draft_step_ms,
    )
    verify_ms, alpha = evidence.speed.candidate_verify_step_ms, _alpha(evidence)
    if over_target is None or step_ms is None or verify_ms is None or alpha is None:
        return None
    if over_target.low > policy.min_speedup_over_autoregressive:
        return None
    k = evidence.speed.candidate_num_speculative_tokens
    share = k * step_ms / (k * step_ms + verify_ms)
    if alpha >= HIGH_ALPHA or share > 0.5:
        return (
            f"the draft is too dear: its {k} steps take {percent(share)} of a round, with "
            f"{percent(alpha)} accepted per token asked for; a smaller or faster draft, or a "
            "lower k, helps; better acceptance hardly can"
        )
    return (
        f"the draft is too often wrong: {percent(alpha)} accepted per token asked for, and its "
        f"{k} steps are only {percent(share)} of a round; a better draft or a milder recipe helps"
    )


def _alpha(evidence: Evidence) -> float | None:
    """Acceptance per token that would give the measured length, were it independent."""
    acceptance = evidence.acceptance
    try:
        return alpha_from_length(
            acceptance.candidate_length.value, acceptance.num_speculative_tokens
        )
    except UndefinedMetricError:
        return None
