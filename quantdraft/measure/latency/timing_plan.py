"""The plan of a timing: points, widths and seconds; and the parts in which it is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from quantdraft.common.resume import stage
from quantdraft.measure.latency.loaded import TARGET
from quantdraft.record import Latency
from quantdraft.record.choices import ModeChoice

# Loads of every arm: as many as there are slots of so many seconds, each at least a load long.
SLOT_SECONDS = 0.5
MIN_LOADS, MAX_LOADS = 4, 200

Progress = Callable[[float], None]  # told which share of the whole is done


class Place(NamedTuple):
    """The place of a part in a timing; all parts of one point are merged."""

    attempt: int
    load: int
    batch_size: int
    context_length: int


# Takes a part of the timing and how to measure it; returns what was measured, now or before.
KeepPart = Callable[[Place, Callable[[], Latency]], Latency]


def keep_parts(run_dir: Path, name: str, inputs: dict[str, Any]) -> KeepPart:
    """Return a function that keeps the parts of a timing as stages of a run.

    name: of the stages; inputs: everything that the parts depend on, as for `stage`
    """
    return lambda place, measure: stage(
        run_dir, "-".join(map(str, (name, *place))), inputs, Latency, measure
    )


class Review(NamedTuple):
    """What the first half of the loads tells about the second."""

    widths: tuple[int, ...]  # new tokens of the target's steps that are worth more time
    doubts: tuple[str, ...]  # contradictions: kernels are chosen again, and all is timed again


@dataclass(frozen=True, slots=True)
class TimingPlan:
    """The points and steps that are timed, and for how long."""

    points: tuple[tuple[int, int], ...]  # (batch size, context length)
    widths: tuple[int, ...]  # new tokens of the target's steps; a draft's step has one
    device: torch.device
    max_seconds: float  # a point, loads not counted
    # Target steps in the blocks of the draft steps: a round is then paired. Apart, the drafts get
    # more samples, being the shorter steps.
    is_paired: bool = True
    has_heads: bool = False  # the drafts' output heads too, each alone
    mode: ModeChoice = "auto"  # auto: what trials find; on a GPU recorded
    seed: int = 0
    review: Callable[[Latency], Review] | None = None  # of the first point, after half of the loads


def widths_of(arm: str, widths: tuple[int, ...]) -> tuple[int, ...]:
    """Return the numbers of new tokens of an arm's steps.

    The target's control has one step too: it shows by how much two loads differ.
    """
    return widths if arm == TARGET else (1,)


def num_loads_for(max_seconds: float, load_seconds: float | None) -> int:
    """Return how many loads share the time: a slot is SLOT_SECONDS, or as long as a load takes."""
    slot = max(SLOT_SECONDS, load_seconds or 0.0)
    return max(MIN_LOADS, min(MAX_LOADS, int(max_seconds / slot)))


def within(progress: Progress, first: float, last: float) -> Progress:
    """Return the progress of a part of the work, which lies between two shares of the whole."""
    return lambda share: progress(min(1.0, first + share * (last - first)))
