"""Alarms, which stop a verdict: each a function from numbers to an alarm or none.

An alarm says that the numbers beside it are not what they seem; its code is stable, its message
says what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quantdraft.judge.verdict.policy import Policy
from quantdraft.record import (
    MIN_PROMPTS,
    AcceptanceComparison,
    Alarm,
    Interval,
    LiveCheck,
    Served,
    ServedArm,
    ServedRequest,
)
from quantdraft.record.wording import valued

ACCEPTANCE_COLLAPSED = "acceptance_collapsed"
NOT_QUANTIZED = "not_quantized"
CONTROL_STRAYS = "control_strays"
LIVE_DIVERGENT = "live_divergent"
OTHER_TARGET = "other_target"
REPLAY_DISAGREES = "replay_disagrees"
DTYPE_MISMATCH = "dtype_mismatch"
ENGINE_DISAGREES = "engine_disagrees"

# Of the quantized layers alone, in one packing. A kernel pads rows, and holds scales in 32 bits: in
# groups of 32, 0.625 bytes a 4-bit weight where the file has 0.5625. What was not quantized has at
# least twice the bytes: 8-bit weights in bfloat16, 4-bit ones in 8 bits.
MAX_EXCESS_BYTES = 0.5
# Of records that do not hold what near-ties allow: one that falls the other way moves a prompt's
# rounds by one or two.
MAX_FLIPS = 2.0


def measured_alarms(
    acceptance: AcceptanceComparison,
    control_speedup: Interval | None,
    live: Sequence[LiveCheck],
    policy: Policy,
) -> tuple[Alarm, ...]:
    """Return the alarms that follow from an evaluation's own numbers."""
    raised = (
        acceptance_collapsed(acceptance, policy),
        control_strays(control_speedup, policy),
        live_divergent(live),
        replay_disagrees(live, policy),
    )
    return tuple(alarm for alarm in raised if alarm is not None)


def acceptance_collapsed(acceptance: AcceptanceComparison, policy: Policy) -> Alarm | None:
    """Return an alarm where the candidate is hardly ever right, or far less than the baseline."""
    if all(found.value >= limit for found, limit in collapse_limits(acceptance, policy)):
        return None
    length, baseline = acceptance.candidate_length.value, acceptance.baseline_length.value
    ratio, k = acceptance.length_ratio, acceptance.num_speculative_tokens
    seen = f"mean acceptance length {length:.2f} at k = {k}, baseline {baseline:.2f}"
    if baseline < policy.min_acceptance_length:  # then it is not the quantization
        return Alarm(
            ACCEPTANCE_COLLAPSED,
            f"acceptance collapsed, and the baseline's too: {seen} (limit "
            f"{policy.min_acceptance_length:.2f}). It is the pair or the traffic, not the "
            "quantization: this draft hardly ever proposes what these responses say. Check that "
            "this target wrote the traffic, and that draft and target fit (`quantdraft check`).",
        )
    if length < policy.min_acceptance_length:
        why = "The quantized weights or scales are probably wrong; apply the recipe again or take "
    else:
        why = "Its rounding is too coarse for this model, or its weights or scales are wrong: take "
    return Alarm(
        ACCEPTANCE_COLLAPSED,
        f"acceptance collapsed: {seen} (ratio {ratio.value:.2f}, 95 % interval {ratio.low:.2f} to "
        f"{ratio.high:.2f}, limit {policy.min_length_ratio:.2f}). {why}a milder one.",
    )


def has_surely_collapsed(acceptance: AcceptanceComparison, policy: Policy) -> bool:
    """Return True where the whole interval says so: of too few prompts it never does."""
    return any(found.high < limit for found, limit in collapse_limits(acceptance, policy))


def collapse_limits(
    acceptance: AcceptanceComparison, policy: Policy
) -> tuple[tuple[Interval, float], ...]:
    """Return both limits under which acceptance has collapsed, each after what was found."""
    return (
        (acceptance.candidate_length, policy.min_acceptance_length),
        (acceptance.length_ratio, policy.min_length_ratio),
    )


def not_quantized(
    *,
    is_identity: bool,
    resident_bytes: int | None = None,
    promised_bytes: int | None = None,
    has_identical_logits: bool | None = None,
    complaint: str | None = None,
) -> Alarm | None:
    """Return an alarm where a checkpoint claims a format that was not loaded. None: not looked at.

    resident_bytes: of the candidate's quantized layers where it was timed, in one packing
    promised_bytes: what its scheme makes of these layers
    has_identical_logits: equal to the baseline's to the last bit
    complaint: what else found the checkpoint not to be quantized
    """
    if is_identity:
        return None
    found = complaint
    resident, promised = resident_bytes or 0, promised_bytes
    if promised is not None and resident > (1 + MAX_EXCESS_BYTES) * promised:
        found = (
            f"its quantized layers take {resident:,} bytes where it was timed, and its scheme "
            f"has {promised:,}"
        )
    if has_identical_logits:
        found = "its logits equal the baseline's to the last bit"
    if found is None:
        return None
    return Alarm(
        NOT_QUANTIZED,
        f"the candidate is not really quantized: {found}. Apply the recipe again, and check that "
        "the engine has a kernel for the format.",
    )


def control_strays(
    control_speedup: Interval | None, policy: Policy, arm: str = "baseline"
) -> Alarm | None:
    """Return an alarm where a model timed against its copy differs from it."""
    if control_speedup is None or control_speedup.low <= 1.0 <= control_speedup.high:
        return None
    if abs(control_speedup.value - 1.0) <= policy.max_control_deviation:
        return None
    return Alarm(
        CONTROL_STRAYS,
        f"the control strays: the {arm} against itself is {valued(control_speedup, 'speedup')}, "
        "which should be 1. Time again on a quiet machine, with more blocks.",
    )


def live_divergent(live: Sequence[LiveCheck]) -> Alarm | None:
    """Return an alarm where the live loop left the target's text, and not at a near-tie."""
    for check in live:
        if check.num_divergent:
            return Alarm(
                LIVE_DIVERGENT,
                f"the live loop of the {check.arm} left the target's text on "
                f"{check.num_divergent} of {check.num_texts} prompts: the text was "
                "not made by this target at this precision, or the loop is wrong. Capture "
                "the traffic again with the target you serve.",
            )
    return None


def other_target(
    provenance: Mapping[str, Any], live: Sequence[LiveCheck], served: Served | None
) -> Alarm | None:
    """Return an alarm where other weights made the traffic, and no text of the target was compared.

    Where the live loop or a server wrote the same texts, the weights are the same in other files.
    """
    traffic, target = provenance.get("traffic") or {}, provenance.get("target") or {}
    num_compared = sum(c.num_identical_texts + c.num_near_ties + c.num_divergent for c in live)
    if traffic.get("is_of_target") is not False or num_compared or served is not None:
        return None
    made_by = traffic.get("target") or {}
    return Alarm(
        OTHER_TARGET,
        f"the traffic was made by other weights than those of the target {target.get('name')}: it "
        f"names {made_by.get('name')} with sha256 {str(made_by.get('weights_sha256'))[:12]}…, and "
        "no text of the target was compared with it. Capture the traffic again with the target "
        "you serve, or check the texts with --live-prompts.",
    )


def replay_disagrees(live: Sequence[LiveCheck], policy: Policy) -> Alarm | None:
    """Return an alarm where rounds counted live differ from rounds replayed.

    Where the arithmetic is exact every prompt must agree. Otherwise near-ties of the draft may fall
    either way: each prompt has its fewest and its most rounds, and what lies outside may be
    `max_replay_disagreement` of all rounds. Expectations (sampling rules) agree in the mean, within
    4 standard errors.
    """
    for check in live:
        if _agrees(check, policy):
            continue
        counted, replayed = sum(check.num_drafts_live), sum(check.num_drafts_replayed)
        return Alarm(
            REPLAY_DISAGREES,
            f"{check.arm}, k = {check.num_speculative_tokens}: {counted:.0f} rounds counted "
            f"live, {replayed:.1f} replayed on the same {len(check.prompt_ids)} prompts. "
            "Replay or engine is wrong; check the engine's version, precision and sampling.",
        )
    return None


def dtype_mismatch(draft_dtype: str, target_dtype: str, is_forced: bool) -> Alarm | None:
    """Return an alarm where an engine forces another float type on the draft than was measured."""
    if not is_forced or draft_dtype == target_dtype:
        return None
    return Alarm(
        DTYPE_MISMATCH,
        f"the draft was measured in {draft_dtype}, but this engine will run it in the target's "
        f"{target_dtype}. Measure with --dtype {target_dtype}.",
    )


def forced_dtype(measured: str | None, served: Served | None) -> Alarm | None:
    """Return an alarm where the engine served in another float type than was measured.

    vLLM gives the draft the target's. Servers of the user's own do not tell theirs.
    """
    if measured is None or served is None or served.known_dtype is None:
        return None
    return dtype_mismatch(measured, served.known_dtype, is_forced=bool(served.arms))


def served_alarms(
    served: Served | None, policy: Policy, measured_dtype: str | None = None
) -> tuple[Alarm, ...]:
    """Return the alarms that follow from what a serving engine did.

    measured_dtype: the float type in which acceptance was measured; None: it is not known
    """
    if served is None:
        return ()
    raised = (
        engine_disagrees(served, policy),
        served_divergent(served),
        forced_dtype(measured_dtype, served),
    )
    return tuple(alarm for alarm in raised if alarm is not None)


def engine_disagrees(served: Served, policy: Policy) -> Alarm | None:
    """Return an alarm where the engine's counters differ from replay of the text that it wrote.

    Rules as for `replay_disagrees`: equal prompt by prompt where the arithmetic is exact, else
    within what near-ties of the draft allow, and in the mean under sampling rules.
    """
    for arm in served.arms.values():
        replayed = arm.replayed
        if not replayed or _engine_agrees(arm, replayed, served.is_expectation, policy):
            continue
        counted = sum(request.num_drafts for request in replayed)
        num_accepted = sum(sum(request.num_accepted_tokens_per_pos) for request in replayed)
        expected, low, high = arm.replayed_rounds
        between = f", {low:.0f} to {high:.0f} with its near-ties" if low < high else ""
        nothing = "It accepted no proposed token at all. " if not num_accepted else ""
        return Alarm(
            ENGINE_DISAGREES,
            f"the engine does not do what the checkpoint says: {arm.name}, k = "
            f"{served.num_speculative_tokens}: {served.engine} {served.version} counted "
            f"{counted} rounds for text that takes {expected:.1f} by this draft{between}. {nothing}"
            "Check the engine's version, its float type, and how it samples.",
        )
    return None


def served_divergent(served: Served) -> Alarm | None:
    """Return an alarm where a server wrote other text than the target's, and not at a near-tie."""
    for arm in served.arms.values():
        divergent = {r.prompt_id for r in arm.requests if r.text == "divergent"}
        if divergent:
            prompts = {request.prompt_id for request in arm.requests}
            return Alarm(
                LIVE_DIVERGENT,
                f"{served.engine} ({arm.name}) left the target's text on {len(divergent)} of "
                f"{len(prompts)} prompts: the traffic was not made by this target at this "
                "precision, or the engine is wrong. Capture the traffic again with the target you "
                "serve.",
            )
    return None


def _engine_agrees(
    arm: ServedArm, requests: Sequence[ServedRequest], is_expectation: bool, policy: Policy
) -> bool:
    if not arm.is_exact or is_expectation:
        # A prompt that comes again gives the same text: it is no further evidence.
        requests = list({request.prompt_id: request for request in requests}.values())
    counted = LiveCheck(
        num_speculative_tokens=len(requests[0].num_accepted_tokens_per_pos),
        arm=arm.name,
        prompt_ids=tuple(request.prompt_id for request in requests),
        num_drafts_live=tuple(float(request.num_drafts) for request in requests),
        num_drafts_replayed=tuple(request.num_drafts_replayed or 0.0 for request in requests),
        num_identical_texts=0,
        num_near_ties=0,
        num_divergent=0,
        is_expectation=is_expectation,
        is_exact=arm.is_exact,
        num_drafts_low=tuple(r.num_drafts_low for r in requests if r.num_drafts_low is not None),
        num_drafts_high=tuple(r.num_drafts_high for r in requests if r.num_drafts_high is not None),
    )
    return _agrees(counted, policy)


def _agrees(check: LiveCheck, policy: Policy) -> bool:
    live, replayed = np.array(check.num_drafts_live), np.array(check.num_drafts_replayed)
    differences = live - replayed
    if not differences.any():
        return True
    if check.is_expectation:
        if len(live) < MIN_PROMPTS:  # too few to know the spread
            return True
        error = differences.std(ddof=1) / np.sqrt(len(live))
        return bool(abs(differences.mean()) <= 4 * error)
    if check.is_exact:
        return False
    low, high = np.array(check.num_drafts_low), np.array(check.num_drafts_high)
    if len(low) == len(high) == len(live):
        outside = np.maximum(low - live, 0) + np.maximum(live - high, 0)
        return bool(outside.sum() <= policy.max_replay_disagreement * replayed.sum())
    allowed = max(MAX_FLIPS, policy.max_replay_disagreement * replayed.sum())
    return bool(abs(differences.sum()) <= allowed)
