"""The step times of a run: at which points, from which models, and why some are not measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.common.progress import share_bar
from quantdraft.common.resume import stage
from quantdraft.engines.native.weight_sources import WeightSource, stored_weights
from quantdraft.engines.registry import measured_engine
from quantdraft.measure.latency.grid import measure_grid
from quantdraft.measure.latency.loaded import BASELINE, CONTROL, TARGET, TARGET_CONTROL
from quantdraft.measure.latency.point import untimed
from quantdraft.measure.latency.timing_plan import Review, TimingPlan, keep_parts
from quantdraft.measure.settings import TimingSettings
from quantdraft.measure.subject import Subject
from quantdraft.record import Latency, Served
from quantdraft.traffic.trace import ServedTrace, Trace
from quantdraft.traffic.traffic import Traffic, token_counts

TRACE_BATCHES = (1, 4, 16)  # each stands for those up to twice or half as large
ARMS = ("baseline", "candidate", "control", "target")


def measure_steps(
    subject: Subject,
    timing: TimingSettings,
    ks: tuple[int, ...],
    review: Callable[[Latency], Review],
) -> tuple[Latency, ...]:
    """Return step times of all arms: at the operating point, then at the further points.

    Draft steps of baseline, control and candidate, and target steps of 1 and k + 1 tokens. The
    controls are the baseline and the target loaded a second time: their ratios to the first are
    the noise floor. Without timing there is one point, with the reason.

    review: what half of the timing says of the other; see `TimingPlan`
    """
    target = subject.models.target
    if timing.no_latency:
        return (unmeasured(subject, timing, "latency was not asked for (--no-latency)"),)
    if target is None:
        why = "the target is not at hand: give --target to time it"
        return (unmeasured(subject, timing, why),)
    plan = TimingPlan(
        points=timed_points(timing, subject.traffic),
        widths=tuple(sorted({1, *(k + 1 for k in ks)})),
        device=subject.device,
        max_seconds=timing.latency_seconds,
        mode=timing.mode,
        review=review,
    )
    inputs = {
        **subject.draft_facts("baseline", "candidate"),
        **subject.target_facts(),
        **subject.traffic_facts(),  # the review's: by acceptance, which steps are worth more time
        "points": plan.points,
        "widths": plan.widths,
        "mode": plan.mode,
        "seconds": plan.max_seconds,
        "threads": torch.get_num_threads(),
    }

    def compute() -> list[Latency]:
        sources = arm_sources(subject.models.baseline, subject.models.candidate, target)
        with share_bar("latency") as progress:
            keep = keep_parts(subject.run_dir, "latency", inputs)
            return list(measure_grid(sources, plan, progress, keep))

    return tuple(stage(subject.run_dir, "latency", inputs, list[Latency], compute))


def arm_sources(
    baseline: Checkpoint, candidate: Checkpoint, target: Checkpoint
) -> dict[str, WeightSource]:
    """Return the weights of every arm, in the order in which memory is given to them."""
    return {
        BASELINE: stored_weights(baseline),
        "candidate": stored_weights(candidate),
        TARGET: stored_weights(target),
        CONTROL: stored_weights(baseline),
        TARGET_CONTROL: stored_weights(target),
    }


def timed_points(timing: TimingSettings, traffic: Traffic) -> tuple[tuple[int, int], ...]:
    """Return every (batch, context) to time; the first is the operating point.

    The further ones are every batch with every context of the user's lists. Contexts default to
    the traffic's own: their median, and for the lists their 10th, 50th and 90th percentile.
    """
    operating = (timing.batch_size, operating_context(timing, traffic))
    batch_sizes, contexts = timing.batch_sizes, timing.context_lengths
    if batch_sizes is None and contexts is None:
        return (operating,)
    if contexts is None:
        found = np.percentile(_context_lengths(traffic), [10, 50, 90])
        contexts = tuple(sorted({max(16, round(length / 16) * 16) for length in found}))
    further = [(b, c) for b in batch_sizes or (timing.batch_size,) for c in contexts]
    return (operating, *(point for point in further if point != operating))


def with_points_of(
    timing: TimingSettings, trace: Trace, num_positions: int | None
) -> TimingSettings:
    """Return the timing with batches and contexts that a trace needs, where none are given.

    Contexts are factors of 4 apart, each near to those up to twice or half as long, over those of
    99 % of the tokens; batches are too, from 1. How many are in flight is known when one is timed.
    num_positions: of the models, which no context goes beyond
    """
    low, high = trace.context_quantiles((0.005, 0.995))
    num_steps = max(1, math.ceil(math.log(max(1, high / max(1, low)), 4)))
    middle = math.sqrt(max(1, low) * high)
    found = {round(middle * 4 ** (at - (num_steps - 1) / 2)) for at in range(num_steps)}
    kept = {each for each in found if num_positions is None or each < num_positions}
    return replace(
        timing,
        batch_sizes=timing.batch_sizes or TRACE_BATCHES,
        context_lengths=timing.context_lengths or tuple(sorted(kept)) or None,
    )


def served_trace(timing: TimingSettings, trace: Trace) -> ServedTrace:
    """Return the trace as the user says that it is served."""
    return ServedTrace(trace, timing.trace_servers, timing.trace_ms_per_token)


def operating_context(timing: TimingSettings, traffic: Traffic) -> int:
    """Return the user's context length, or the median of the traffic's own contexts."""
    if timing.context_length is not None:
        return timing.context_length
    return int(np.median(_context_lengths(traffic)))


def _context_lengths(traffic: Traffic) -> list[int]:
    """Return the context of every response when half of it is behind."""
    counts = token_counts(traffic.responses)
    return [int(length) for length in counts.prompt + counts.response // 2]


def unmeasured(subject: Subject, timing: TimingSettings, reason: str) -> Latency:
    """Return the operating point without arms, all for one reason."""
    point = timing.batch_size, operating_context(timing, subject.traffic)
    return untimed(point, subject.device, None, dict.fromkeys(ARMS, reason))


def served_latency(subject: Subject, timing: TimingSettings, served: Served) -> Latency:
    """Return the latency of a run in servers: they show no single steps.

    An arm that could not be served has its own reason.
    """
    title = measured_engine(served.engine).title
    why = f"{title} shows no single steps; its speed is that of whole requests"
    none = unmeasured(subject, timing, why)
    own = {
        "target" if arm == "autoregressive" else arm: why for arm, why in served.undefined.items()
    }
    return replace(none, engine=served.engine, device=served.device, undefined=none.undefined | own)
