"""A draft step against the baseline's and against the machine's limit: ratios and fractions."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from quantdraft.judge.comparison.speeds import step_ratio
from quantdraft.judge.statistics.bootstrap import DEFAULT, Bootstrap
from quantdraft.record import ArmLatency, Interval, Latency

BASELINE = "baseline"


@dataclass(frozen=True, slots=True)
class StepFigures:
    """What one arm's step of one token comes to. A field is None where it was not measured."""

    median_ms: float | None
    ratio: Interval | None  # baseline / arm, paired by block: above 1 = faster
    byte_ratio: float | None  # the same of bytes: what `ratio` comes to where memory is the limit
    bytes_per_s: float | None  # the step's bytes, by the ledger, over its median time
    bandwidth_fraction: float | None  # of the copy bandwidth measured in the same run
    limit_ms: float | None  # the step's bytes at that bandwidth
    head_bytes_share: float | None  # the output head's part of the step's bytes
    head_time_share: float | None  # its product alone over the step, paired by block


def step_figures(latency: Latency, arm: str, bootstrap: Bootstrap = DEFAULT) -> StepFigures:
    """The figures of one arm that was timed; KeyError for one that was not."""
    found, baseline = latency.arms[arm], latency.arms.get(BASELINE)
    middle = _median_ms(found)
    size, roof = found.step_bytes, latency.roofline
    return StepFigures(
        median_ms=middle,
        ratio=None if baseline is None else _ratio(baseline, found, latency, bootstrap),
        byte_ratio=_byte_ratio(baseline, found),
        bytes_per_s=size / middle * 1e3 if size and middle else None,
        bandwidth_fraction=roof.bandwidth_fraction(size, middle)
        if roof and size and middle
        else None,
        limit_ms=roof.limit_ms(size) if roof and size else None,
        head_bytes_share=_share(found.head_bytes, size),
        head_time_share=_head_time_share(found, latency, bootstrap),
    )


def _median_ms(arm: ArmLatency) -> float | None:
    step = arm.steps.get(1)
    return median(step.samples_ms) if step is not None and step.samples_ms else None


def _ratio(
    baseline: ArmLatency, arm: ArmLatency, latency: Latency, bootstrap: Bootstrap
) -> Interval | None:
    if 1 not in baseline.steps or 1 not in arm.steps:
        return None
    return step_ratio(baseline.steps[1], arm.steps[1], latency, bootstrap)


def _byte_ratio(baseline: ArmLatency | None, arm: ArmLatency) -> float | None:
    if baseline is None or not baseline.step_bytes or not arm.step_bytes:
        return None
    return baseline.step_bytes / arm.step_bytes


def _share(part: int | None, whole: int | None) -> float | None:
    return part / whole if part is not None and whole else None


def _head_time_share(arm: ArmLatency, latency: Latency, bootstrap: Bootstrap) -> float | None:
    if arm.head_step is None or 1 not in arm.steps:
        return None
    ratio = step_ratio(arm.head_step, arm.steps[1], latency, bootstrap)
    return None if ratio is None else ratio.value
