"""A trace laid on the timed points of batch and context, and the speed over all its tokens.

How many requests are in flight follows from the trace's arrivals and lengths and from the baseline
draft's own time per token at each timed batch: it is what serves today. Every token is then decoded
at one batch and context, and counts at the timed point nearest to it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from quantdraft.judge.acceptance import Replayed
from quantdraft.judge.comparison.times import (
    Timed,
    TimeRatio,
    time_ratio,
    timed_rounds,
    timed_steps,
)
from quantdraft.judge.statistics.bootstrap import Bootstrap, interval_of
from quantdraft.judge.statistics.studentized import draw_alone, draw_length_ratio
from quantdraft.record import ARMS, Arm, Evaluation, Latency
from quantdraft.record.trace import TraceCell, TraceFigures, TraceSpeed
from quantdraft.record.wording import percent
from quantdraft.traffic.trace import InFlight, Pace, ServedTrace, in_flight

MAX_FACTOR = 2.0  # between a token's batch or context and those of the point that stands for it
MAX_UNCOVERED = 0.01  # of the tokens


class WeighedPoint(NamedTuple):
    """A timed point and the share of the covered tokens that it stands for."""

    latency: Latency
    share: float


class TracedArm(NamedTuple):
    """An arm's time per token at one k, and its rounds in every cell."""

    ms_per_token: float
    k: int
    timed: tuple[Timed, ...]


def trace_figures(
    served: ServedTrace,
    latencies: Sequence[Latency],
    replayed: Mapping[Arm, Replayed],
    bootstrap: Bootstrap,
) -> TraceFigures:
    """Return what a trace asks of the timed points, and both arms' speed over it.

    latencies: every timed point, the operating point among them
    """
    trace = served.trace
    by_batch = _pace_by_batch(served, latencies, replayed["baseline"])
    spans = in_flight(trace, nearest_pace(by_batch), served.num_servers) if by_batch else ()
    tokens, uncovered = _laid_on(spans, latencies)
    cells = [
        TraceCell(latencies[at].batch_size, latencies[at].context_length, number)
        for at, number in tokens.items()
    ]
    num_all = sum(span.num_tokens for span in spans)
    covered = num_all - sum(uncovered.values())
    found = [WeighedPoint(latencies[at], number / covered) for at, number in tokens.items()]
    speed = None
    reason = _uncovered_words(trace.path.name, uncovered, num_all)
    if reason and (not_timed := _not_timed(latencies)):
        reason = f"{reason}; {not_timed}"
    if not spans:
        reason = "the baseline draft's rounds were not timed"
    elif not reason:
        speed = _speed(found, replayed, bootstrap)
        reason = "" if speed else "a step that it needs was not timed"
    return TraceFigures(
        path=str(trace.path),
        sha256=trace.sha256,
        reading=trace.reading.as_record(),
        num_servers=served.num_servers,
        num_requests=len(trace.arrivals_ms),
        num_tokens=int(trace.num_tokens.sum()),
        ms_per_token=by_batch,
        is_pace_given=served.ms_per_token is not None,
        mean_in_flight=sum(s.num_requests * s.num_tokens for s in spans) / num_all if spans else 0,
        max_in_flight=max((span.num_requests for span in spans), default=0),
        cells=tuple(sorted(cells, key=lambda each: (each.batch_size, each.context_length))),
        num_uncovered_tokens=sum(uncovered.values()),
        speed=speed,
        reason=reason,
    )


def nearest_pace(by_batch: Mapping[int, float]) -> Pace:
    """Return the time per token by the number in flight: that of the nearest batch of a table."""

    @cache
    def pace(number: int) -> float:
        return by_batch[min(by_batch, key=lambda batch: (abs(math.log(batch / number)), -batch))]

    return pace


def _pace_by_batch(
    served: ServedTrace, latencies: Sequence[Latency], baseline: Replayed
) -> dict[int, float]:
    """Return the baseline's time per token at its best k, by batch, near the trace's own context.

    Every request of a batch gets a token in it.
    """
    if served.ms_per_token is not None:
        return {1: served.ms_per_token}
    (middle,) = served.trace.context_quantiles((0.5,))
    nearest: dict[int, tuple[float, float]] = {}
    for latency in latencies:
        paces = [
            float(np.median(rounds.ms)) / baseline.counts(k).mean_acceptance_length
            for k in baseline.ks
            if (rounds := timed_rounds(latency, "baseline", k)) is not None
        ]
        if paces:
            far = abs(math.log(max(1, latency.context_length) / max(1, middle)))
            nearest.setdefault(latency.batch_size, (far, min(paces)))
            nearest[latency.batch_size] = min(nearest[latency.batch_size], (far, min(paces)))
    return {batch: pace for batch, (_, pace) in sorted(nearest.items())}


def _laid_on(
    spans: Sequence[InFlight], latencies: Sequence[Latency]
) -> tuple[dict[int, float], dict[tuple[int, int], float]]:
    """Return tokens by the timed point nearest to them, and those that no point is near to.

    The latter by the powers of two of batch and context that would be. A point of which nothing
    was timed stands for none.
    """
    tokens: dict[int, float] = defaultdict(float)
    uncovered: dict[tuple[int, int], float] = defaultdict(float)
    points = [(at, each) for at, each in enumerate(latencies) if each.arms]
    limit = math.log(MAX_FACTOR) + math.log(2) / 8  # and half of a bin of contexts
    for span in spans:
        far = {
            at: (
                abs(math.log(each.batch_size / span.num_requests)),
                abs(math.log(max(1, each.context_length) / span.context_length)),
            )
            for at, each in points
        }
        best = min(far, key=lambda at: (sum(far[at]), at), default=None)
        if best is not None and max(far[best]) <= limit:
            tokens[best] += span.num_tokens
        else:
            place = _power(span.num_requests), _power(span.context_length)
            uncovered[place] += span.num_tokens
    return tokens, uncovered


def _not_timed(latencies: Sequence[Latency]) -> str:
    """Return which points were asked for and not timed, with the first one's reason; "": none."""
    missing = [each for each in latencies if not each.arms]
    if not missing:
        return ""
    places = ", ".join(f"{each.batch_size} × {each.context_length}" for each in missing)
    why = next(iter(missing[0].undefined.values()), "it is not known why")
    return f"of the asked points, batch × context, {places} were not timed: {why}"


def _power(number: float) -> int:
    return 1 << max(0, round(math.log2(number)))


def _uncovered_words(name: str, uncovered: Mapping[tuple[int, int], float], num_all: float) -> str:
    """Return which points are missing; "" where nearly all tokens have one."""
    share = sum(uncovered.values()) / num_all if num_all else 0.0
    if share <= MAX_UNCOVERED:
        return ""
    (batch, context), most = max(uncovered.items(), key=lambda each: each[1])
    return (
        f"{percent(share)} of the tokens of '{name}' are decoded far from every timed point, most "
        f"of them ({percent(most / num_all)} of all) near batch {batch} and context {context}: add "
        "such to --batch-sizes and --context-lengths"
    )


def _speed(
    cells: Sequence[WeighedPoint], replayed: Mapping[Arm, Replayed], bootstrap: Bootstrap
) -> TraceSpeed | None:
    """Return both arms' speed, each at one k for the whole trace; None where a step is missing."""
    base, cand = (_fastest(cells, arm, replayed[arm]) for arm in ARMS)
    alone = tuple(timed_steps(cell.latency, "target", 1) for cell in cells)
    if base is None or cand is None or None in alone:
        return None
    target = tuple(each for each in alone if each is not None)
    taus = [
        replayed[arm].counts(each.k).mean_acceptance_length
        for arm, each in zip(ARMS, (base, cand), strict=True)
    ]
    base_drawn, cand_drawn = (
        draw_alone(replayed[arm], each.k, bootstrap).length
        for arm, each in zip(ARMS, (base, cand), strict=True)
    )
    both_drawn = draw_length_ratio(
        replayed["baseline"], replayed["candidate"], base.k, cand.k, bootstrap
    )
    ratios = [
        _over_cells(cells, *pair, bootstrap)
        for pair in ((base.timed, cand.timed), (target, cand.timed), (target, base.timed))
    ]
    lengths = ((taus[1] / taus[0], both_drawn), (taus[1], cand_drawn), (taus[0], base_drawn))
    speedups = [
        None
        if ratio is None
        else interval_of(ratio.value * tau, ratio.draws * drawn, None, bootstrap)
        for ratio, (tau, drawn) in zip(ratios, lengths, strict=True)
    ]
    over_baseline, over_target, baseline_over_target = speedups
    if over_baseline is None or over_target is None or baseline_over_target is None:
        return None
    return TraceSpeed(
        baseline_num_speculative_tokens=base.k,
        candidate_num_speculative_tokens=cand.k,
        baseline_ms_per_token=base.ms_per_token,
        candidate_ms_per_token=cand.ms_per_token,
        autoregressive_ms_per_token=_mean(cells, target),
        speedup_over_baseline=over_baseline,
        speedup_over_autoregressive=over_target,
        baseline_speedup_over_autoregressive=baseline_over_target,
    )


def _fastest(cells: Sequence[WeighedPoint], arm: Arm, replayed: Replayed) -> TracedArm | None:
    """Return an arm at the k of the least time over all cells, of those timed in each."""
    found = []
    for k in replayed.ks:
        rounds = [timed_rounds(cell.latency, arm, k) for cell in cells]
        timed = tuple(each for each in rounds if each is not None)
        if len(timed) == len(cells):
            length = replayed.counts(k).mean_acceptance_length
            found.append(TracedArm(_mean(cells, timed) / length, k, timed))
    return min(found, key=lambda each: each.ms_per_token, default=None)


def _mean(cells: Sequence[WeighedPoint], times: Sequence[Timed]) -> float:
    """Return the mean over tokens of the cells' median times, in ms."""
    pairs = zip(cells, times, strict=True)
    return sum(cell.share * float(np.median(each.ms)) for cell, each in pairs)


def _over_cells(
    cells: Sequence[WeighedPoint],
    over: Sequence[Timed],
    under: Sequence[Timed],
    bootstrap: Bootstrap,
) -> TimeRatio | None:
    """Return the ratio of two mean times over all cells; None where one is not timed.

    The sum of `under` is that of `over` with every cell's part divided by that cell's own ratio,
    so that ratios stay paired by block. Loads are drawn alike in all cells: each timed all of them.
    """
    whole = _mean(cells, over)
    value, draws, num_loads = 0.0, np.zeros(bootstrap.num_resamples), []
    for cell, one, other in zip(cells, over, under, strict=True):
        ratio = time_ratio(one, other, cell.latency, bootstrap)
        if ratio is None:
            return None
        part = cell.share * float(np.median(one.ms)) / whole
        value += part / ratio.value
        draws += part / ratio.draws
        num_loads.append(ratio.num_loads)
    return TimeRatio(1 / value, 1 / draws, min(num_loads))


def rounds_over_trace(evaluation: Evaluation, bootstrap: Bootstrap) -> TimeRatio | None:
    """Return the baseline's rounds over the candidate's, of a record with a trace.

    None where it has no speed over the trace.
    """
    trace = evaluation.trace
    if trace is None or trace.speed is None:
        return None
    timed = {(p.batch_size, p.context_length): p for p in (*evaluation.grid, evaluation.latency)}
    places = [(each.batch_size, each.context_length) for each in trace.cells]
    if not set(places) <= set(timed):
        return None
    cells = [
        WeighedPoint(timed[place], trace.share(each.num_tokens))
        for place, each in zip(places, trace.cells, strict=True)
    ]
    arms = {}
    for arm in ARMS:
        k = trace.speed.of(arm)
        found = [timed_rounds(cell.latency, arm, k) for cell in cells]
        arms[arm] = [each for each in found if each is not None]
    if any(len(each) < len(cells) for each in arms.values()):
        return None
    return _over_cells(cells, arms["baseline"], arms["candidate"], bootstrap)
