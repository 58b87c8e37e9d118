"""What to do next, each line with the numbers it rests on."""

from __future__ import annotations

from collections.abc import Sequence

from quantdraft.acceptance import alpha_from_length
from quantdraft.comparison import best_k
from quantdraft.errors import UndefinedMetricError
from quantdraft.results import Slice, SpeedPoint
from quantdraft.verdict.evidence import Evidence
from quantdraft.verdict.policy import Policy
from quantdraft.verdict.wording import percent, signed

# A difference between slices worth a line; below it, noise of a few hundred tokens.
MIN_CONTRAST = 0.03
# Acceptance above which more of it cannot be what is missing.
HIGH_ALPHA = 0.85
# Practitioners' rule, a claim to be tested: used only where speed was not measured.
K_BY_ALPHA = ((0.90, "8 or more"), (0.85, "6 to 8"), (0.75, "4 to 6"), (0.60, "3 or 4"))


def all_advice(evidence: Evidence, policy: Policy) -> tuple[str, ...]:
    """Every line that applies."""
    lines = (
        _other_k(evidence),
        _k_from_acceptance(evidence),
        _break_even(evidence),
        _too_dear_or_too_wrong(evidence, policy),
        _skip_speculation(evidence, policy),
        _low_acceptance(evidence, policy),
        _early_or_late(evidence.by_position),
        _by_context(evidence.by_context),
        _worst_domain(evidence.by_domain),
    )
    return tuple(line for line in lines if line is not None)


def _other_k(evidence: Evidence) -> str | None:
    """The k at which the candidate is fastest, if it is another one."""
    best = best_k(evidence.equal_k)["candidate"]
    measured = evidence.speed.candidate_num_speculative_tokens
    now_ms = evidence.speed.candidate_ms_per_token
    if best is None or best == measured or now_ms is None:
        return None
    best_ms = _candidate_ms(evidence.equal_k, best)
    if best_ms is None or best_ms >= now_ms:
        return None
    return (
        f"serve the candidate with k = {best}: {best_ms:.3g} ms per token, where k = {measured} "
        f"takes {now_ms:.3g} ({percent(now_ms / best_ms - 1)} more)"
    )


def _candidate_ms(points: Sequence[SpeedPoint], k: int) -> float | None:
    return next(
        (p.candidate_ms_per_token for p in points if p.candidate_num_speculative_tokens == k), None
    )


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


def _skip_speculation(evidence: Evidence, policy: Policy) -> str | None:
    """When even the baseline draft is slower than no draft."""
    baseline = evidence.speed.baseline_speedup_over_autoregressive
    if baseline is None or baseline.high > policy.min_speedup_over_autoregressive:
        return None
    return (
        f"the baseline draft is no faster than the target alone either ({baseline.value:.2f} ×): "
        "serve without speculation at this operating point"
    )


def _low_acceptance(evidence: Evidence, policy: Policy) -> str | None:
    rate = evidence.acceptance.candidate_rate.value
    if rate >= policy.warn_acceptance_rate:
        return None
    k = evidence.acceptance.num_speculative_tokens
    baseline = evidence.acceptance.baseline_rate.value
    blame = "the pair" if baseline < policy.warn_acceptance_rate else "the recipe"
    return (
        f"acceptance rate {percent(rate)} at k = {k} is under "
        f"{percent(policy.warn_acceptance_rate)} (baseline {percent(baseline)}): "
        f"look at {blame}, or lower k"
    )


def _early_or_late(thirds: Sequence[Slice]) -> str | None:
    rates = [s.candidate_conditional_acceptance for s in thirds]
    if len(rates) < 2 or rates[0] is None or rates[-1] is None:
        return None
    if abs(rates[0] - rates[-1]) < MIN_CONTRAST:
        return None
    where = "early" if rates[0] < rates[-1] else "late"
    return (
        f"rejections fall {where} in the response: of the tokens asked for, "
        f"{percent(rates[0])} are kept in the {thirds[0].name}, {percent(rates[-1])} in the "
        f"{thirds[-1].name}"
    )


def _by_context(buckets: Sequence[Slice]) -> str | None:
    """The context at which quantization costs most, if it costs more there than elsewhere."""
    losses = [(loss, s) for s in buckets if (loss := _loss(s)) is not None]
    if len(losses) < 2:
        return None
    worst, least = max(losses, key=_first), min(losses, key=_first)
    if worst[0] - least[0] < MIN_CONTRAST:
        return None
    return (
        f"quantization costs most at a context of {worst[1].name}: {signed(-worst[0])} points of "
        f"conditional acceptance, {signed(-least[0])} at {least[1].name}"
    )


def _worst_domain(domains: Sequence[Slice]) -> str | None:
    known = [
        (s.candidate_conditional_acceptance, s)
        for s in domains
        if s.candidate_conditional_acceptance is not None
    ]
    if len(known) < 2:
        return None
    worst, best = min(known, key=_first), max(known, key=_first)
    if best[0] - worst[0] < MIN_CONTRAST:
        return None
    return (
        f"the draft is weakest on '{worst[1].name}': {percent(worst[0])} of the tokens asked for "
        f"are kept, {percent(best[0])} on '{best[1].name}'"
    )


def _loss(part: Slice) -> float | None:
    base, cand = part.baseline_conditional_acceptance, part.candidate_conditional_acceptance
    return None if base is None or cand is None else base - cand


def _first(pair: tuple[float, Slice]) -> float:
    return pair[0]


def _alpha(evidence: Evidence) -> float | None:
    """Acceptance per token that would give the measured length, were it independent."""
    acceptance = evidence.acceptance
    try:
        return alpha_from_length(
            acceptance.candidate_length.value, acceptance.num_speculative_tokens
        )
    except UndefinedMetricError:
        return None
