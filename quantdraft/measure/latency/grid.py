"""The arms of an evaluation, timed side by side: target, baseline, candidates, and two controls.

Every arm is loaded several times, in fresh memory and in a new order, and stepped at each point
(batch, context): what differs between two loads of one model is then in the samples. A point or an
arm that does not fit into memory or time is left out, and `Latency.undefined` says why; nothing is
estimated.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from quantdraft.engines.kernels.choice import forget_choices
from quantdraft.engines.native.weight_sources import WeightSource
from quantdraft.measure.latency.loaded import Arm, Arms
from quantdraft.measure.latency.merging import merge_loads
from quantdraft.measure.latency.point import OVERRUN, PointTiming, untimed
from quantdraft.measure.latency.roofline import measure_roofline
from quantdraft.measure.latency.timing_plan import (
    MIN_LOADS,
    KeepPart,
    Place,
    Progress,
    Review,
    TimingPlan,
    num_loads_for,
    widths_of,
    within,
)
from quantdraft.record import Latency, Roofline


def measure_grid(
    sources: Mapping[str, WeightSource],
    plan: TimingPlan,
    progress: Progress = lambda share: None,
    keep: KeepPart = lambda place, measure: measure(),
) -> tuple[Latency, ...]:
    """Return one Latency for each point of the plan, in its order.

    sources: weights by arm. BASELINE comes before the models that share its float type; where
    memory ends, the arms that come last are the ones left out.
    keep: gives back a part that an earlier run measured, or measures it; parts stand alone
    """
    roofline = measure_roofline(plan.device)
    found = _Attempt(sources, plan, roofline, progress, keep, number=0).time_all()
    if isinstance(found, Review):  # what was timed contradicts itself: once more, on fresh trials
        forget_choices()
        again = _Attempt(sources, plan, roofline, progress, keep, number=1)
        found = again.time_all(retried=found.doubts)
    assert not isinstance(found, Review)
    return found


class _Attempt:
    """All loads of a plan; arms are settled and loaded only where a part is not kept."""

    def __init__(
        self,
        sources: Mapping[str, WeightSource],
        plan: TimingPlan,
        roofline: Roofline,
        progress: Progress,
        keep: KeepPart,
        number: int,
    ) -> None:
        self.sources, self.plan, self.progress, self.keep = sources, plan, progress, keep
        self.roofline, self.number = roofline, number
        widths = {name: widths_of(name, plan.widths) for name in sources}
        batch_sizes = [batch for batch, _ in plan.points]
        self.arms = Arms(sources, widths, batch_sizes, plan.device, plan.mode)
        self.order = random.Random(plan.seed)
        self.loaded: dict[str, Arm] = {}
        self.load_seconds: float | None = None
        self.is_settled = self.is_fresh = False
        self.parts: dict[tuple[int, int], list[Latency]] = {point: [] for point in plan.points}
        # The first point comes first: its first load says how many there are.
        self.points = [plan.points[0], *sorted({*plan.points} - {plan.points[0]})]

    @property
    def first_parts(self) -> list[Latency]:
        """What was measured at the first point, load by load."""
        return self.parts[self.plan.points[0]]

    def time_all(self, retried: tuple[str, ...] = ()) -> tuple[Latency, ...] | Review:
        """Return every point's Latency, or the review that found contradictions at first."""
        widths, load, num_loads = self.plan.widths, 0, MIN_LOADS
        while load < num_loads:
            self._time_load(load, widths, num_loads)
            if load == 0:
                num_loads = self._num_loads()
            load += 1
            if load == num_loads // 2 and self.plan.review is not None and self.first_parts[0].arms:
                review = self.plan.review(merge_loads(self.first_parts))
                if review.doubts and self.number == 0:
                    return review
                widths = review.widths or widths
        self.progress(1.0)
        merged = [merge_loads(self.parts[point]) for point in self.plan.points]
        return tuple(replace(latency, retried=retried) for latency in merged)

    def _num_loads(self) -> int:
        """Return how many loads there are, by how long the first one took."""
        first = self.first_parts
        seconds = first[0].load_seconds if first else self.load_seconds
        return num_loads_for(self.plan.max_seconds, seconds)

    def _time_load(self, load: int, widths: tuple[int, ...], num_loads: int) -> None:
        """Time one load of every arm at every point that is not given up."""
        self.is_fresh = False
        for number, point in enumerate(self.points):
            first, last = (load + (number + end) / len(self.points) for end in (0, 1))
            progress = within(self.progress, first / num_loads, last / num_loads)
            given_up = self._given_up(point)
            if given_up is None:
                chosen = widths if number == 0 else self.plan.widths
                measure = partial(self._time_point, point, chosen, load, progress)
                self.parts[point].append(self.keep(Place(self.number, load, *point), measure))
            elif load == 0:
                self.parts[point].append(given_up)
            progress(1.0)

    def _given_up(self, point: tuple[int, int]) -> Latency | None:
        """Return what stands for a point that was too dear, or is larger than one that was."""
        if point == self.plan.points[0]:
            return None
        own = self.parts[point]
        if own and not own[0].arms:
            return own[0]
        for other in self.points:
            known = self.parts[other]
            is_smaller = other[0] <= point[0] and other[1] <= point[1]
            if other != point and is_smaller and known and not known[0].arms:
                reasons = [why for why in known[0].undefined.values() if OVERRUN in why]
                if reasons:
                    undefined = dict.fromkeys(self.sources, reasons[0])
                    return untimed(point, self.plan.device, self.roofline, undefined)
        return None

    def _time_point(
        self, point: tuple[int, int], widths: tuple[int, ...], load: int, progress: Progress
    ) -> Latency:
        if not self.is_fresh:
            self._load_arms(*point)
            self.is_fresh = True
        timing = PointTiming(
            plan=self.plan,
            batch_size=point[0],
            context_length=point[1],
            roofline=self.roofline,
            widths=widths,
            seconds=self.plan.max_seconds / self._num_loads(),
            seed=self.plan.seed + load,
            load_seconds=self.load_seconds,
        )
        return timing.time_arms(self.loaded, self.arms.undefined, progress)

    def _load_arms(self, batch_size: int, context_length: int) -> None:
        """Load all arms in fresh memory; where both have room, the earlier ones go only then."""
        if not self.is_settled:
            self.arms.settle(batch_size, context_length)
            self.is_settled = True
        if not (self.loaded and self.arms.fit_twice()):
            self.loaded = {}
            gc.collect()
        names = list(self.sources)
        self.order.shuffle(names)
        started = time.perf_counter()
        loaded = self.arms.load(names)
        self.load_seconds = time.perf_counter() - started
        self.loaded = loaded
        gc.collect()
