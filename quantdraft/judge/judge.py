"""From measurements to the record: comparison, speed, alarms, verdict. No model, no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantdraft.judge.acceptance import Replayed, replay_rounds
from quantdraft.judge.analysis import analyse
from quantdraft.judge.comparison.disagreements import Spell, find_disagreements
from quantdraft.judge.comparison.lengths import compare_acceptance
from quantdraft.judge.comparison.served import served_point, served_speed_undefined
from quantdraft.judge.comparison.slices import by_context, by_domain, by_position, slice_tokens
from quantdraft.judge.comparison.speeds import best_k, speed_point
from quantdraft.judge.comparison.times import timed_throughout
from quantdraft.judge.comparison.traces import trace_figures
from quantdraft.judge.comparison.traits import trait_cuts
from quantdraft.judge.conversations import Units, resampled_noun, units_of
from quantdraft.judge.speedup import project_speed
from quantdraft.judge.statistics.bootstrap import Bootstrap
from quantdraft.judge.verdict.alarms import (
    control_strays,
    measured_alarms,
    not_quantized,
    other_target,
    served_alarms,
)
from quantdraft.judge.verdict.checks import Evidence
from quantdraft.judge.verdict.decision import decide
from quantdraft.judge.verdict.policy import Policy
from quantdraft.judge.verdict.suspicion import suspicions
from quantdraft.record import (
    ARMS,
    EVALUATION_SCHEMA_VERSION,
    AcceptanceComparison,
    AcceptanceRule,
    Alarm,
    Arm,
    Disagreement,
    Evaluation,
    Latency,
    LiveCheck,
    PromptReplay,
    Served,
    Slice,
    SpeedPoint,
    Verdict,
)
from quantdraft.record.step_bytes import Ledger, ceiling, ledger_summary
from quantdraft.record.terms import compact, nearest_to_usual
from quantdraft.record.trace import TraceFigures
from quantdraft.traffic.trace import ServedTrace
from quantdraft.traffic.traffic import Traffic, token_counts

# "baseline", "candidate": of each prompt (num_response_tokens,).
AcceptanceProbabilities = Mapping[str, Sequence[NDArray[np.float64]]]


@dataclass(frozen=True, slots=True)
class Measurements:
    """Everything one evaluation measured, before anything is concluded from it."""

    name: str
    created: str
    rule: AcceptanceRule
    ks: tuple[int, ...]
    probabilities: AcceptanceProbabilities
    traffic: Traffic
    latency: Latency
    live: tuple[LiveCheck, ...]
    is_control: bool  # the candidate is the baseline's copy
    not_quantized: str | None  # why a claimed quantization is not there
    has_identical_logits: bool | None
    ledgers: tuple[Ledger, Ledger]  # of baseline and candidate
    provenance: dict[str, Any]
    seed: int
    grid: tuple[Latency, ...] = ()  # further points of batch and context
    served: Served | None = None  # what a serving engine did; None: the native engine measured
    spell: Spell | None = None  # the text of each token; None: no prompt is shown
    trace: ServedTrace | None = None  # whose batches and contexts the verdict is given on
    baseline_name: str = "full-precision draft"  # as the verdict's sentence calls it


class Slices(NamedTuple):
    """Acceptance on parts of the tokens, by what parts them."""

    by_position: tuple[Slice, ...]
    by_context: tuple[Slice, ...]
    by_domain: tuple[Slice, ...]
    by_trait: dict[str, tuple[Slice, ...]]


class Speeds(NamedTuple):
    """The speed of both arms at every k, and at the k of the verdict."""

    point: SpeedPoint  # each arm at its own best k, or at the served one
    equal_k: tuple[SpeedPoint, ...]
    best_k: dict[str, int | None]


def judged(measured: Measurements, policy: Policy) -> Evaluation:
    """Return the record: what was measured, the figures that follow, the verdict and its reasons.

    measured: both arms on the same traffic, and every time that was taken
    policy: the limits of the verdict
    """
    bootstrap = Bootstrap(seed=measured.seed, units=_units(measured))
    replayed = _replay(measured)
    resampled = {arm: each.of_conversations(bootstrap.units) for arm, each in replayed.items()}
    acceptance = {
        k: compare_acceptance(resampled["baseline"], resampled["candidate"], k, bootstrap)
        for k in measured.ks
    }
    replayed, resampled = _without_positions(replayed), _without_positions(resampled)
    speeds = _speeds(measured, resampled, bootstrap)
    trace = _trace(measured, resampled, bootstrap)
    verdict = decide(_evidence(measured, acceptance, speeds.point, trace, policy), policy)
    record = _record(measured, policy, acceptance, replayed, speeds, verdict, bootstrap)
    return analyse(replace(record, trace=trace))


def _units(measured: Measurements) -> Units | None:
    """Return the conversation of each response; None where each stands alone."""
    return units_of([response.conversation for response in measured.traffic.responses])


def _without_positions(replayed: Mapping[Arm, Replayed]) -> dict[Arm, Replayed]:
    """Return the same in less memory."""
    return {arm: each.without_positions() for arm, each in replayed.items()}


def _replay(measured: Measurements) -> dict[Arm, Replayed]:
    """Return the rounds of every prompt at every k, by arm."""
    ids = [response.prompt_id for response in measured.traffic.responses]
    return {arm: replay_rounds(ids, measured.probabilities[arm], measured.ks) for arm in ARMS}


def _speeds(
    measured: Measurements, replayed: Mapping[Arm, Replayed], bootstrap: Bootstrap
) -> Speeds:
    """Return speeds from the timed steps; at its k, those of a serving engine take their place."""
    equal_k = tuple(_point(replayed, measured.latency, k, k, bootstrap) for k in measured.ks)
    throughout = timed_throughout(measured.latency, measured.ks)
    best = best_k([p for p in equal_k if p.baseline_num_speculative_tokens in throughout])
    if measured.served is not None:
        point = served_point(measured.served, bootstrap, _conversations(measured))
        served_k = point.candidate_num_speculative_tokens
        others = zip(measured.ks, equal_k, strict=True)
        return Speeds(point, tuple(point if k == served_k else p for k, p in others), best)
    # Without latency there is no best k.
    fallback = nearest_to_usual(measured.ks)
    ks = best["baseline"] or fallback, best["candidate"] or fallback
    return Speeds(_point(replayed, measured.latency, *ks, bootstrap), equal_k, best)


def _trace(
    measured: Measurements, replayed: Mapping[Arm, Replayed], bootstrap: Bootstrap
) -> TraceFigures | None:
    """Return the given trace laid on every timed point."""
    if measured.trace is None:
        return None
    points = {(p.batch_size, p.context_length): p for p in (*measured.grid, measured.latency)}
    return trace_figures(measured.trace, tuple(points.values()), replayed, bootstrap)


def _evidence(
    measured: Measurements,
    acceptance: Mapping[int, AcceptanceComparison],
    point: SpeedPoint,
    trace: TraceFigures | None,
    policy: Policy,
) -> Evidence:
    """Return what the verdict rests on, alarms included."""
    at_its_k = acceptance[point.candidate_num_speculative_tokens]
    if trace is not None:
        return _over_trace(_evidence(measured, acceptance, point, None, policy), acceptance, trace)
    return Evidence(
        candidate_name=measured.name,
        baseline_name=measured.baseline_name,
        is_identity=measured.is_control,
        acceptance=at_its_k,
        shown=acceptance[nearest_to_usual(measured.ks)],
        speed=point,
        num_prompts=_num_prompts(measured),
        resampled=resampled_noun(_units(measured)),
        num_timings=_num_timings(measured.latency),
        timing_seconds=measured.latency.timing_seconds,
        alarms=_alarms(measured, at_its_k, point, policy),
        speed_undefined=_speed_undefined(measured),
    )


def _over_trace(
    evidence: Evidence, acceptance: Mapping[int, AcceptanceComparison], trace: TraceFigures
) -> Evidence:
    """Return the evidence with the speedups over a trace in place of the operating point's."""
    found = trace.speed
    if found is None:
        unknown = replace(
            evidence.speed, speedup_over_baseline=None, speedup_over_autoregressive=None
        )
        why = evidence.speed_undefined or trace.reason
        return replace(evidence, speed=unknown, speed_undefined=why)
    k = found.candidate_num_speculative_tokens
    speed = replace(
        evidence.speed,
        baseline_num_speculative_tokens=found.baseline_num_speculative_tokens,
        candidate_num_speculative_tokens=k,
        speedup_over_baseline=found.speedup_over_baseline,
        speedup_over_autoregressive=found.speedup_over_autoregressive,
    )
    where = f"over the trace '{Path(trace.path).name}'"
    return replace(evidence, acceptance=acceptance[k], speed=speed, where=where)


def _record(
    measured: Measurements,
    policy: Policy,
    acceptance: Mapping[int, AcceptanceComparison],
    replayed: Mapping[Arm, Replayed],
    speeds: Speeds,
    verdict: Verdict,
    bootstrap: Bootstrap,
) -> Evaluation:
    """Return the record without its analysis."""
    point, rates_k = speeds.point, nearest_to_usual(measured.ks)
    slices = _slices(measured, rates_k, bootstrap)
    bytes_ratio = ceiling(*measured.ledgers, measured.latency.context_length)
    at_its_k = acceptance[point.candidate_num_speculative_tokens]
    return Evaluation(
        schema_version=EVALUATION_SCHEMA_VERSION,
        name=measured.name,
        created=measured.created,
        acceptance_rule=measured.rule,
        num_speculative_tokens=measured.ks,
        operating_point=point,
        equal_k=speeds.equal_k,
        best_k=speeds.best_k,
        acceptance=tuple(acceptance.values()),
        prompts=_prompts(measured, replayed),
        by_position=slices.by_position,
        by_context=slices.by_context,
        by_domain=slices.by_domain,
        latency=measured.latency,
        live=measured.live,
        verdict=verdict,
        ledger=_ledger(measured, point, policy),
        provenance=measured.provenance | {"policy": policy.model_dump()},
        grid=measured.grid,
        served=measured.served,
        projection=project_speed(point, at_its_k, bytes_ratio),
        disagreements=_disagreements(measured, replayed, rates_k),
        slices_k=rates_k,
        by_trait=slices.by_trait,
    )


def _disagreements(
    measured: Measurements, replayed: Mapping[Arm, Replayed], k: int
) -> tuple[Disagreement, ...]:
    """Return the prompts to read; none where the text of the tokens is not known."""
    if measured.spell is None:
        return ()
    return find_disagreements(measured.traffic, measured.probabilities, replayed, k, measured.spell)


def _point(
    replayed: Mapping[Arm, Replayed],
    latency: Latency,
    baseline_k: int,
    candidate_k: int,
    bootstrap: Bootstrap,
) -> SpeedPoint:
    return speed_point(
        replayed["baseline"],
        replayed["candidate"],
        latency,
        baseline_k=baseline_k,
        candidate_k=candidate_k,
        bootstrap=bootstrap,
    )


def _slices(measured: Measurements, k: int, bootstrap: Bootstrap) -> Slices:
    """Return the slices by position, context and domain, and by what else the log tells apart."""
    responses = measured.traffic.responses
    traits = trait_cuts(responses)
    cuts = (
        by_position(),
        by_context(token_counts(responses).prompt.tolist()),
        by_domain([response.domain for response in responses]),
        *traits.values(),
    )
    baseline, candidate = (measured.probabilities[arm] for arm in ARMS)
    position, context, domain, *others = slice_tokens(baseline, candidate, k, cuts, bootstrap)
    return Slices(position, context, domain, dict(zip(traits, others, strict=True)))


def _alarms(
    measured: Measurements, acceptance: AcceptanceComparison, point: SpeedPoint, policy: Policy
) -> tuple[Alarm, ...]:
    timed = measured.latency.arms.get("candidate")
    false_claim = not_quantized(
        is_identity=measured.is_control,
        resident_bytes=None if timed is None else timed.quantized_bytes,
        promised_bytes=None if timed is None else timed.promised_bytes,
        has_identical_logits=measured.has_identical_logits,
        complaint=measured.not_quantized,
    )
    raised = (
        false_claim,
        *measured_alarms(acceptance, point.control_speedup, measured.live, policy),
        other_target(measured.provenance, measured.live, measured.served),
        control_strays(point.target_control_speedup, policy, "target"),
        *suspicions(measured.latency),
        *served_alarms(measured.served, policy, measured.provenance.get("compute_dtype")),
    )
    return tuple(alarm for alarm in raised if alarm is not None)


def _ledger(measured: Measurements, point: SpeedPoint, policy: Policy) -> dict[str, Any]:
    """Return the byte ledger at the measured k and c, where there is a c."""
    draft_ms, target_ms = point.baseline_draft_step_ms, point.autoregressive_step_ms
    is_timed = draft_ms is not None and target_ms is not None
    return ledger_summary(
        *measured.ledgers,
        context_length=measured.latency.context_length,
        num_speculative_tokens=point.baseline_num_speculative_tokens if is_timed else None,
        cost_ratio=draft_ms / target_ms if draft_ms and target_ms else None,
        min_speedup=policy.min_speedup_over_baseline,
    )


def _num_timings(latency: Latency) -> int:
    counts = [
        len(samples.samples_ms) for arm in latency.arms.values() for samples in arm.steps.values()
    ]
    return min(counts, default=0)


def _num_prompts(measured: Measurements) -> int:
    """Return the number of prompts, or conversations, that the intervals of the speed come from."""
    conversations, served = _conversations(measured), measured.served
    found = conversations if served is None else served.common_prompts
    units = units_of([conversations[name] for name in found])
    return len(found) if units is None else max(units) + 1


def _conversations(measured: Measurements) -> dict[str, str | None]:
    """Return the conversation of every prompt, by its id."""
    return {each.prompt_id: each.conversation for each in measured.traffic.responses}


def _speed_undefined(measured: Measurements) -> str | None:
    """Return why there is no speed: the candidate's reason first, it is the one that differs."""
    if measured.served is not None:
        return served_speed_undefined(measured.served)
    latency = measured.latency
    for arm in ("candidate", "target", "baseline"):
        if arm in latency.undefined:
            return latency.undefined[arm]
    return None


def _prompts(measured: Measurements, replayed: Mapping[Arm, Replayed]) -> tuple[PromptReplay, ...]:
    """Return one row for every prompt."""
    baseline, candidate = replayed["baseline"], replayed["candidate"]
    accepted = {
        arm: np.array([each.num_accepted(k) for k in measured.ks]) for arm, each in replayed.items()
    }
    return tuple(
        PromptReplay(
            prompt_id=response.prompt_id,
            domain=response.domain,
            num_prompt_tokens=len(response.prompt_token_ids),
            num_tokens=int(baseline.num_tokens[i]),
            baseline_num_drafts=compact(baseline.num_drafts[:, i].tolist()),
            candidate_num_drafts=compact(candidate.num_drafts[:, i].tolist()),
            baseline_num_accepted=compact(accepted["baseline"][:, i].tolist()),
            candidate_num_accepted=compact(accepted["candidate"][:, i].tolist()),
            conversation=response.conversation,
        )
        for i, response in enumerate(measured.traffic.responses)
    )
