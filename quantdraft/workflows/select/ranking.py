"""Drafts and recipes in the order of their speed over the target alone. No model, no I/O.

All were replayed on the same tokens, so acceptance is paired by prompt. Each run timed the target
in the blocks of its own drafts, so a speed is the target's over the draft's in the same block, and
runs of different hours can be compared by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from quantdraft.errors import OptionError
from quantdraft.judge import speedup
from quantdraft.judge.acceptance import Floats, Replayed
from quantdraft.judge.comparison import Bootstrap
from quantdraft.judge.comparison.lengths import draw_lengths, num_prompts_with_rounds
from quantdraft.judge.comparison.points import replayed_of
from quantdraft.judge.comparison.times import TimeRatio, time_ratio, timed_rounds, timed_steps
from quantdraft.judge.statistics.bootstrap import interval_of
from quantdraft.judge.statistics.studentized import draw_alone
from quantdraft.record import Evaluation, Interval
from quantdraft.workflows.select.rates import DomainRate, rate_gap, rate_of, rates_by_domain
from quantdraft.workflows.select.traits import Traits

Basis = Literal["measured", "predicted"]
NUM_RESAMPLES = 10_000  # corrected intervals reach further into the tails than 2,000 can


@dataclass(frozen=True, slots=True)
class Contender:
    """One draft under one recipe, and the run that replayed it. Bytes are of one step."""

    draft: str
    recipe: str  # "none": the draft as it is
    arm: Literal["baseline", "candidate"]  # of the run
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


@dataclass(frozen=True, slots=True)
class Ranked:
    """One row of the answer. Speedups are over the target alone, at the row's own best k."""

    draft: str
    recipe: str
    num_speculative_tokens: int  # its best k, by the speed that the ranking goes by
    measured: Interval | None
    predicted: Interval  # by bytes: a bound, and labelled as one
    acceptance_rate: Interval  # at the common k
    mean_acceptance_length: float  # at its own k
    draft_step_ms: float | None
    step_bytes: int
    draft_cost: float  # by the bytes
    size_ratio: float
    # Against the first row, in the same resamples; None in the first row itself.
    speed_ratio: Interval | None
    acceptance_gap: Interval | None
    length_ratio: float  # tokens a round over the first row's
    round_ratio: float  # time of a round over the first row's, in steps of the target
    traits: Traits
    decision: str | None  # the verdict on the recipe; None for a draft as it is
    alarms: tuple[str, ...]
    # A draft step over a step of the target, of the same block; None where one was not timed.
    step_cost: Interval | None = None
    by_domain: tuple[DomainRate, ...] = ()  # at the common k

    @property
    def is_slower(self) -> bool | None:
        """Than the first row; None where the interval cannot tell, or in the first row."""
        if self.speed_ratio is None or self.speed_ratio.high >= 1:
            return None
        return True


@dataclass(frozen=True, slots=True)
class _Speed:
    """One contender at its best k."""

    contender: Contender
    k: int
    value: float
    round_steps: float  # time of a round in steps of the target
    loads: Bootstrap | None  # how its loads are drawn; None where the speed is no measurement

    def round_draws(self, confidence: float) -> Floats | float:
        """`round_steps` in every resample, as wide as an interval of this confidence needs."""
        if self.loads is None:
            return self.round_steps
        measured = _round_ratio(self.contender, self.k, replace(self.loads, confidence=confidence))
        assert measured is not None
        return measured.draws


def rank(contenders: Sequence[Contender], common_k: int, seed: int = 0) -> tuple[Ranked, ...]:
    """Fastest first: by measured speed where every contender has one, else by predicted speed.

    Intervals of differences hold together over all of them with 95 % confidence (Bonferroni).
    Raises OptionError where there is nothing to rank.
    """
    if not contenders:
        raise OptionError("there is no draft to choose from: every one was refused or failed.")
    basis = basis_of(contenders)
    speeds = [_best(each, basis, _own(contenders, each, seed)) for each in contenders]
    ordered = sorted(speeds, key=lambda speed: (-speed.value, speed.contender.name))
    return tuple(
        _ranked(speed, ordered[0], len(ordered), basis, common_k, seed) for speed in ordered
    )


def basis_of(contenders: Sequence[Contender]) -> Basis:
    """Measured where all were timed: a measured and a predicted speed do not compare."""
    are_timed = all(_timed_ks(each) for each in contenders)
    return "measured" if are_timed else "predicted"


def _own(contenders: Sequence[Contender], one: Contender, seed: int) -> Bootstrap:
    """Loads are those of a run: two arms of one run share their resamples."""
    runs = list({id(each.run): each.run for each in contenders}.values())
    number = next(at for at, run in enumerate(runs) if run is one.run)
    return Bootstrap(NUM_RESAMPLES, seed + 1000 * (number + 1))


def _timed_ks(contender: Contender) -> list[int]:
    ks = contender.run.num_speculative_tokens
    return [k for k in ks if _round_ratio(contender, k, Bootstrap(num_resamples=1)) is not None]


def _round_ratio(contender: Contender, k: int, loads: Bootstrap) -> TimeRatio | None:
    """A round over a step of the target in the same blocks; None where one was not timed."""
    latency = contender.run.latency
    rounds, alone = timed_rounds(latency, contender.arm, k), timed_steps(latency, "target", 1)
    return time_ratio(rounds, alone, latency, loads)


def _best(contender: Contender, basis: Basis, loads: Bootstrap) -> _Speed:
    """The k of the highest speedup over the target alone."""
    replayed = replayed_of(contender.run, contender.arm)
    ks = _timed_ks(contender) if basis == "measured" else list(replayed.ks)
    candidates = [_speed(contender, replayed, k, basis, loads) for k in ks]
    return max(candidates, key=lambda speed: (speed.value, -speed.k))


def _speed(
    contender: Contender, replayed: Replayed, k: int, basis: Basis, loads: Bootstrap
) -> _Speed:
    length = replayed.counts(k).mean_acceptance_length
    one = replace(loads, num_resamples=1)  # the value alone
    ratio = _round_ratio(contender, k, one) if basis == "measured" else None
    if ratio is None:
        steps = speedup.round_ms(k, contender.draft_cost, 1.0)
        return _Speed(contender, k, length / steps, steps, None)
    return _Speed(contender, k, length / ratio.value, ratio.value, loads)


def _ranked(
    speed: _Speed, best: _Speed, num_rows: int, basis: Basis, common_k: int, seed: int
) -> Ranked:
    one, run = speed.contender, speed.contender.run
    family = Bootstrap(NUM_RESAMPLES, seed, 1 - 0.05 / max(num_rows - 1, 1))
    is_first = speed is best
    own = Bootstrap(NUM_RESAMPLES, seed)
    replayed = replayed_of(run, one.arm)
    length = replayed.counts(speed.k).mean_acceptance_length
    best_length = _replayed(best).counts(best.k).mean_acceptance_length
    step = run.latency.arms.get(one.arm)
    predicted = _best(one, "predicted", own)
    return Ranked(
        draft=one.draft,
        recipe=one.recipe,
        num_speculative_tokens=speed.k,
        measured=_speed_interval(speed, own) if basis == "measured" else None,
        predicted=_speed_interval(predicted, own),
        acceptance_rate=rate_of(replayed, common_k, own),
        mean_acceptance_length=length,
        draft_step_ms=None if step is None else float(np.median(step.steps[1].samples_ms)),
        step_bytes=one.step_bytes,
        draft_cost=one.draft_cost,
        size_ratio=one.size_ratio,
        speed_ratio=None if is_first else _speed_ratio(speed, best, family),
        acceptance_gap=None if is_first else rate_gap(_replayed(best), replayed, common_k, family),
        length_ratio=length / best_length,
        round_ratio=speed.round_steps / best.round_steps,
        traits=one.traits,
        decision=None if one.recipe == "none" else run.verdict.decision,
        alarms=tuple(alarm.code for alarm in run.verdict.alarms) if one.recipe != "none" else (),
        step_cost=_step_cost(one, own),
        by_domain=rates_by_domain(
            replayed, [prompt.domain for prompt in run.prompts], common_k, own
        ),
    )


def _step_cost(contender: Contender, bootstrap: Bootstrap) -> Interval | None:
    """c as it was measured, with the interval of resampled loads."""
    latency = contender.run.latency
    steps, alone = timed_steps(latency, contender.arm, 1), timed_steps(latency, "target", 1)
    cost = time_ratio(steps, alone, latency, bootstrap)
    return None if cost is None else cost.interval(bootstrap)


def _replayed(speed: _Speed) -> Replayed:
    return replayed_of(speed.contender.run, speed.contender.arm)


def _speed_interval(speed: _Speed, bootstrap: Bootstrap) -> Interval:
    length = draw_alone(_replayed(speed), speed.k, bootstrap).length
    draws = np.asarray(length / speed.round_draws(bootstrap.confidence))
    return interval_of(speed.value, draws, None, bootstrap)


def _speed_ratio(speed: _Speed, best: _Speed, bootstrap: Bootstrap) -> Interval:
    drawn_best, drawn = draw_lengths(_replayed(best), _replayed(speed), best.k, speed.k, bootstrap)
    rounds, best_rounds = (each.round_draws(bootstrap.confidence) for each in (speed, best))
    draws = (drawn.length / rounds) / (drawn_best.length / best_rounds)
    size = min(num_prompts_with_rounds(_replayed(each)) for each in (speed, best))
    return interval_of(speed.value / best.value, np.asarray(draws), size, bootstrap)
