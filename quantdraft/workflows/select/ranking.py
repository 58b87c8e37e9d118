"""Rank drafts and recipes by their speed over the target alone. No model, no I/O.

What concerns one row (its speed, acceptance, step) is the run's own record; only what compares two
rows is computed here. All were replayed on the same tokens, so acceptance is paired by prompt.
Each run timed the target in the blocks of its own drafts, so a speed is the target's over the
draft's in the same block, and runs of different hours can be compared by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from quantdraft.errors import OptionError
from quantdraft.judge import speedup
from quantdraft.judge.acceptance import Floats, Replayed
from quantdraft.judge.comparison.lengths import (
    compare_acceptance,
    draw_lengths,
    num_prompts_with_rounds,
)
from quantdraft.judge.comparison.points import replayed_of
from quantdraft.judge.comparison.speeds import step_ratio
from quantdraft.judge.comparison.times import time_ratio, timed_rounds, timed_steps
from quantdraft.judge.statistics.bootstrap import Bootstrap, interval_of
from quantdraft.record import Arm, Evaluation, Interval
from quantdraft.record.acceptance import ArmAcceptance
from quantdraft.record.timing import ArmSpeed
from quantdraft.workflows.select.record import Basis, DomainRate, Ranked
from quantdraft.workflows.select.traits import Traits

NUM_RESAMPLES = 10_000  # corrected intervals reach further into the tails than 2,000 can


@dataclass(frozen=True, slots=True)
class Contender:
    """One draft under one recipe, and the run that replayed it. Bytes are of one step."""

    draft: str
    recipe: str  # "none": the draft as it is
    arm: Arm  # of the run
    run: Evaluation
    step_bytes: int
    target_step_bytes: int
    traits: Traits
    size_ratio: float  # the target's parameters over the draft's, before any recipe

    @property
    def name(self) -> str:
        """`draft` or `draft + recipe`."""
        return self.draft if self.recipe == "none" else f"{self.draft} + {self.recipe}"

    @property
    def draft_cost(self) -> float:
        """c by the bytes: what it would be if memory were the only limit."""
        return self.step_bytes / self.target_step_bytes

    @property
    def replayed(self) -> Replayed:
        """Its rounds on the run's prompts, by conversation."""
        return replayed_of(self.run, self.arm)

    def acceptance_at(self, k: int) -> ArmAcceptance:
        """Return its acceptance at one k, from the run's record."""
        found = self.run.acceptance_at(k)
        assert found is not None
        return found.of(self.arm)

    def speed_at(self, k: int) -> ArmSpeed:
        """Return its measured speed at one k, from the run's record."""
        found = self.run.point_at(k)
        assert found is not None
        return found.of(self.arm)

    def measured_speed(self, k: int) -> Interval | None:
        """Return the measured speedup over the target alone."""
        return self.speed_at(k).speedup_over_autoregressive

    def predicted_speed(self, k: int) -> Interval:
        """Return the speedup over the target alone if memory were the only limit."""
        steps, length = speedup.round_ms(k, self.draft_cost, 1.0), self.acceptance_at(k).length
        return Interval(length.value / steps, length.low / steps, length.high / steps)

    def step_cost(self, bootstrap: Bootstrap) -> Interval | None:
        """Return c as it was measured; None where one of the steps was not timed."""
        arms = self.run.latency.arms
        if self.arm not in arms or "target" not in arms:
            return None
        step, alone = arms[self.arm].steps[1], arms["target"].steps[1]
        return step_ratio(step, alone, self.run.latency, bootstrap)


@dataclass(frozen=True, slots=True)
class _Speed:
    """One contender at its best k."""

    contender: Contender
    k: int
    speed: Interval
    loads: Bootstrap | None  # how its loads are drawn; None where the speed is no measurement

    @property
    def length(self) -> float:
        return self.contender.acceptance_at(self.k).length.value

    @property
    def round_steps(self) -> float:
        """The time of a round in steps of the target."""
        return self.length / self.speed.value

    def draw_round_steps(self, confidence: float) -> Floats | float:
        """Return `round_steps` in every resample, as wide as this confidence needs."""
        if self.loads is None:
            return self.round_steps
        latency, loads = self.contender.run.latency, replace(self.loads, confidence=confidence)
        rounds = timed_rounds(latency, self.contender.arm, self.k)
        ratio = time_ratio(rounds, timed_steps(latency, "target", 1), latency, loads)
        assert ratio is not None
        return ratio.draws


def rank(contenders: Sequence[Contender], common_k: int, seed: int = 0) -> tuple[Ranked, ...]:
    """Return the rows, fastest first: by measured speed where all have one, else by predicted.

    Intervals of differences hold together over all of them with 95 % confidence (Bonferroni).
    Raises OptionError where there is nothing to rank.
    """
    if not contenders:
        raise OptionError("there is no draft to choose from: every one was refused or failed.")
    basis = basis_of(contenders)
    speeds = [_best(each, basis, _draw_own_loads(contenders, each, seed)) for each in contenders]
    ordered = sorted(speeds, key=lambda each: (-each.speed.value, each.contender.name))
    return tuple(_rank_one(each, ordered, basis, common_k, seed) for each in ordered)


def basis_of(contenders: Sequence[Contender]) -> Basis:
    """Return "measured" where all were timed: a measured and a predicted speed do not compare."""
    are_timed = all(
        any(each.measured_speed(k) for k in each.run.num_speculative_tokens) for each in contenders
    )
    return "measured" if are_timed else "predicted"


def _draw_own_loads(contenders: Sequence[Contender], one: Contender, seed: int) -> Bootstrap:
    """Return how the loads of a run are drawn: two arms of one run share their resamples."""
    runs = list({id(each.run): each.run for each in contenders}.values())
    number = next(at for at, run in enumerate(runs) if run is one.run)
    return Bootstrap(NUM_RESAMPLES, seed + 1000 * (number + 1))


def _best(contender: Contender, basis: Basis, loads: Bootstrap | None) -> _Speed:
    """Return the k of the highest speedup over the target alone, of equal ones the smallest."""
    speed_at = contender.measured_speed if basis == "measured" else contender.predicted_speed
    found = {k: speed for k in contender.run.num_speculative_tokens if (speed := speed_at(k))}
    k = max(found, key=lambda k: (found[k].value, -k))
    return _Speed(contender, k, found[k], loads if basis == "measured" else None)


def _rank_one(
    one: _Speed, ordered: Sequence[_Speed], basis: Basis, common_k: int, seed: int
) -> Ranked:
    best, contender = ordered[0], one.contender
    is_first, is_recipe = one is best, contender.recipe != "none"
    own = Bootstrap(NUM_RESAMPLES, seed)
    family = Bootstrap(NUM_RESAMPLES, seed, 1 - 0.05 / max(len(ordered) - 1, 1))
    verdict = contender.run.verdict
    return Ranked(
        draft=contender.draft,
        recipe=contender.recipe,
        num_speculative_tokens=one.k,
        measured=one.speed if basis == "measured" else None,
        predicted=_best(contender, "predicted", None).speed,
        acceptance_rate=contender.acceptance_at(common_k).rate,
        mean_acceptance_length=one.length,
        draft_step_ms=contender.speed_at(one.k).draft_step_ms,
        step_bytes=contender.step_bytes,
        draft_cost=contender.draft_cost,
        size_ratio=contender.size_ratio,
        speed_ratio=None if is_first else _speed_ratio(one, best, family),
        acceptance_gap=None if is_first else _acceptance_gap(one, best, common_k, family),
        length_ratio=one.length / best.length,
        round_ratio=one.round_steps / best.round_steps,
        traits=contender.traits,
        decision=verdict.decision if is_recipe else None,
        alarms=tuple(alarm.code for alarm in verdict.alarms) if is_recipe else (),
        step_cost=contender.step_cost(own),
        by_domain=_domain_rates(contender, common_k, own),
    )


def _speed_ratio(one: _Speed, best: _Speed, bootstrap: Bootstrap) -> Interval:
    here, there = one.contender.replayed, best.contender.replayed
    lengths_there, lengths = draw_lengths(there, here, best.k, one.k, bootstrap)
    rounds, rounds_there = (each.draw_round_steps(bootstrap.confidence) for each in (one, best))
    draws = (lengths.length / rounds) / (lengths_there.length / rounds_there)
    size = min(num_prompts_with_rounds(each) for each in (here, there))
    return interval_of(one.speed.value / best.speed.value, np.asarray(draws), size, bootstrap)


def _acceptance_gap(one: _Speed, best: _Speed, k: int, bootstrap: Bootstrap) -> Interval:
    """Return this row's acceptance rate minus the first's, paired by prompt, both at one k."""
    here, there = one.contender.replayed, best.contender.replayed
    return compare_acceptance(here, there, k, bootstrap).acceptance_rate_loss


def _domain_rates(contender: Contender, k: int, bootstrap: Bootstrap) -> tuple[DomainRate, ...]:
    """Return one for each domain that has a round, by name."""
    prompts, found = contender.run.prompts, []
    for name in sorted({prompt.domain for prompt in prompts}):
        inside = tuple(p for p in prompts if p.domain == name and p.num_tokens > 0)
        if inside:
            part = replayed_of(replace(contender.run, prompts=inside), contender.arm)
            rate = compare_acceptance(part, part, k, bootstrap).baseline_rate
            found.append(DomainRate(name, len(inside), rate))
    return tuple(found)
