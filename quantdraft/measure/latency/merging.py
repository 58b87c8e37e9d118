"""The loads of one point, each timed by itself, as one measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from quantdraft.record import ArmLatency, Latency, StepSamples
from quantdraft.record.provenance import load_around


def merge_loads(parts: Sequence[Latency]) -> Latency:
    """Return the loads of one point as one: blocks are numbered through.

    An arm that one load lacks is left out.
    """
    sizes = [len(part.loads) for part in parts]
    starts = [sum(sizes[:number]) for number in range(len(parts))]
    names = [name for name in parts[0].arms if all(name in part.arms for part in parts)]
    before, after = parts[0].load_average, parts[-1].load_average
    return replace(
        parts[0],
        arms={name: _merge_arm([part.arms[name] for part in parts], starts) for name in names},
        undefined={name: why for part in parts for name, why in part.undefined.items()},
        loads=tuple(load for load, size in enumerate(sizes) for _ in range(size)),
        load_average=load_around(
            None if before is None else before[0], None if after is None else after[1]
        ),
        gpu_states=tuple(state for part in parts for state in part.gpu_states),
        timing_seconds=sum(part.timing_seconds or 0.0 for part in parts),
    )


def _merge_arm(loads: Sequence[ArmLatency], starts: Sequence[int]) -> ArmLatency:
    has_head = loads[0].head_step is not None
    return replace(
        loads[-1],
        steps={
            width: _join([load.steps.get(width) for load in loads], starts)
            for width in loads[0].steps
        },
        head_step=_join([load.head_step for load in loads], starts) if has_head else None,
    )


def _join(parts: Sequence[StepSamples | None], starts: Sequence[int]) -> StepSamples:
    """Return one step's samples of all loads, with their blocks where a load left the step out."""
    known = [(part, start) for part, start in zip(parts, starts, strict=True) if part is not None]
    samples = tuple(ms for part, _ in known for ms in part.samples_ms)
    blocks = tuple(start + block for part, start in known for block in part.blocks)
    return StepSamples(samples, () if blocks == tuple(range(len(blocks))) else blocks)
