"""Every diagnosis of one evaluation."""

from __future__ import annotations

from dataclasses import replace

from quantdraft.judge.advice.acceptance import draft_too_dear, low_acceptance, slower_than_baseline
from quantdraft.judge.advice.batches import skip_speculation
from quantdraft.judge.advice.placement import (
    acceptance_by_context,
    loss_by_context,
    rejections_early_or_late,
    weakest_domain,
)
from quantdraft.judge.advice.rounds import k_too_high_or_low
from quantdraft.judge.comparison.points import units_in
from quantdraft.judge.statistics.bootstrap import Bootstrap
from quantdraft.judge.verdict.policy import Policy
from quantdraft.record import Evaluation
from quantdraft.record.analysis import Diagnosis

DEFAULT = Policy()


def diagnoses(evaluation: Evaluation, policy: Policy = DEFAULT) -> tuple[Diagnosis, ...]:
    """Return what was found first, then what cannot be told; within each, the gravest first.

    An alarm that stops the verdict stops nothing here: what is wrong may be what it points to.
    """
    bootstrap = Bootstrap(seed=_seed(evaluation), units=units_in(evaluation))
    lines = (
        *skip_speculation(evaluation, policy, bootstrap),
        *_causes(evaluation, policy),
        *k_too_high_or_low(evaluation, policy, bootstrap),
        *rejections_early_or_late(evaluation, bootstrap),
        *acceptance_by_context(evaluation, bootstrap),
        *loss_by_context(evaluation, bootstrap),
        *weakest_domain(evaluation, bootstrap),
    )
    return tuple(sorted(lines, key=lambda line: line.state != "found"))


def _causes(evaluation: Evaluation, policy: Policy) -> tuple[Diagnosis, ...]:
    return (
        *low_acceptance(evaluation, policy),
        *draft_too_dear(evaluation, policy),
        *slower_than_baseline(evaluation),
    )


def explaining(evaluation: Evaluation, policy: Policy = DEFAULT) -> tuple[Diagnosis, ...]:
    """Return the diagnoses that a verdict other than a go rests on."""
    if evaluation.verdict.decision == "go":
        return ()
    return tuple(line for line in _causes(evaluation, policy) if line.state == "found")


def explained(evaluation: Evaluation, policy: Policy) -> Evaluation:
    """Return the same record whose verdict names the diagnoses it rests on."""
    found = explaining(evaluation, policy)
    verdict = replace(
        evaluation.verdict,
        advice=tuple(line.sentence for line in found),
        rests_on=tuple(line.code for line in found),
    )
    return replace(evaluation, verdict=verdict)


def _seed(evaluation: Evaluation) -> int:
    """Return the run's own seed, so that the same record always gives the same intervals."""
    seeds = evaluation.provenance.get("seeds")
    return int(seeds.get("bootstrap", 0)) if isinstance(seeds, dict) else 0
