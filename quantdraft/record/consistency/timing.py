"""Steps, blocks and ratios of time that belong together."""

from __future__ import annotations

from collections.abc import Iterator

from quantdraft.record.consistency.rules import (
    Problem,
    check_above_0,
    check_length,
    check_same,
)
from quantdraft.record.evaluation import Evaluation
from quantdraft.record.terms import ARMS
from quantdraft.record.timing import ArmLatency, Latency, LiveCheck, SpeedPoint, StepSamples


def check_samples(step: StepSamples) -> Iterator[Problem]:
    """Yield blocks that do not belong to the samples."""
    if step.blocks:
        yield from check_length("blocks", step.blocks, len(step.samples_ms), "of the samples")
    if len(set(step.blocks)) < len(step.blocks):
        yield "blocks", "a block stands there twice"


def check_arm_latency(arm: ArmLatency) -> Iterator[Problem]:
    """Yield bytes and ratios of an arm that cannot be."""
    step, head = arm.step_bytes, arm.head_bytes
    if step is not None and head is not None and head > step:
        yield "head_bytes", f"{head:,} are more than the step's {step:,}"
    yield from check_above_0("step_speedup", arm.step_speedup)


def check_latency(latency: Latency) -> Iterator[Problem]:
    """Yield steps whose blocks or samples do not belong to one another."""
    for name, arm in latency.arms.items():
        if arm.name != name:
            yield f"arms.{name}.name", f"it is {arm.name!r}"
        for width, step in arm.steps.items():
            highest = max(step.blocks, default=len(step.samples_ms) - 1)
            if latency.loads and highest >= len(latency.loads):
                where = f"arms.{name}.steps.{width}.blocks"
                yield where, f"there is no block {highest}: loads has {len(latency.loads)}"
                return
        if arm.steps and not latency.loads:
            yield from _same_blocks(f"arms.{name}", arm, latency)


def _same_blocks(path: str, arm: ArmLatency, latency: Latency) -> Iterator[Problem]:
    """Yield steps that have not as many samples as another, where all are of one load."""
    steps = {f"steps.{width}": step for width, step in arm.steps.items()}
    if arm.head_step is not None:
        steps["head_step"] = arm.head_step
    number = len(next(s for a in latency.arms.values() for s in a.steps.values()).samples_ms)
    for name, step in steps.items():
        if len(step.samples_ms) != number:
            wrong = f"{len(step.samples_ms)} samples, where another step has {number}"
            yield f"{path}.{name}.samples_ms", f"{wrong}: all were timed in the same blocks"


def check_live_loop(check: LiveCheck) -> Iterator[Problem]:
    """Yield lists of the live loop that are not one entry for each prompt."""
    number = len(check.prompt_ids)
    if check.arm not in ARMS:
        yield "arm", f"it is {check.arm!r}; arms are {', '.join(ARMS)}"
    for name in ("num_drafts_live", "num_drafts_replayed"):
        yield from check_length(name, getattr(check, name), number, "of the prompts")
    for name in ("num_drafts_low", "num_drafts_high"):
        if check.num_drafts_low or check.num_drafts_high:
            yield from check_length(name, getattr(check, name), number, "of the prompts")
    for name in ("num_identical_texts", "num_near_ties", "num_divergent", "num_own_texts"):
        if number and getattr(check, name) > number:
            yield name, f"{getattr(check, name)} texts, of {number} prompts"


def check_point(point: SpeedPoint) -> Iterator[Problem]:
    """Yield ratios of times that are not above 0."""
    for name in (
        "speedup_over_baseline",
        "speedup_over_autoregressive",
        "baseline_speedup_over_autoregressive",
        "control_speedup",
        "target_control_speedup",
    ):
        yield from check_above_0(name, getattr(point, name))
    saving = point.draft_latency_saving
    if saving is not None and saving.value >= 1:
        yield "draft_latency_saving.value", f"{saving.value:g} would be a step of no time"


def check_timed(made: Evaluation) -> Iterator[Problem]:
    """Yield numbers of the speed equation whose steps were not timed, or came to another number."""
    if made.served is not None:
        return
    point, arms = made.operating_point, made.latency.arms
    asked: list[tuple[str, float | None, str, int]] = [
        ("autoregressive_step_ms", point.autoregressive_step_ms, "target", 1)
    ]
    for arm in ARMS:
        own = point.of(arm)
        asked.append((f"{arm}_draft_step_ms", own.draft_step_ms, arm, 1))
        width = own.num_speculative_tokens + 1
        asked.append((f"{arm}_verify_step_ms", own.verify_step_ms, "target", width))
    common: set[int] | None = None
    for name, value, timed, width in asked:
        if value is None:
            continue
        step = arms[timed].steps.get(width) if timed in arms else None
        if step is None or step.median_ms is None:
            yield f"operating_point.{name}", f"latency.arms.{timed} has no step of {width} tokens"
            return
        yield from check_same(f"operating_point.{name}", value, step.median_ms, "the samples")
        blocks = set(step.blocks or range(len(step.samples_ms)))
        common = blocks if common is None else common & blocks
    if common == set():
        yield "latency.arms", "its steps have no block in common"
