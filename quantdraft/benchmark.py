"""The arms of an evaluation, timed side by side: target, baseline, control, candidate."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import torch

from quantdraft.checkpoint import Checkpoint
from quantdraft.engines.native import NativeModel, load_native
from quantdraft.errors import UndefinedMetricError
from quantdraft.latency import Stepper, time_interleaved
from quantdraft.results import ArmLatency, Latency, StepSamples

# Enough for a choice between float types, which differ by a lot or do not matter.
TRIAL_SECONDS = 1.0

Timed = dict[tuple[str, int], StepSamples]


def measure_latency(
    target: Checkpoint,
    baseline: Checkpoint,
    candidate: Checkpoint,
    *,
    ks: Sequence[int],
    batch_size: int,
    context_length: int,
    device: torch.device,
    max_seconds: float,
    progress: Callable[[float], None] = lambda share: None,
) -> Latency:
    """Draft steps of baseline, control and candidate, and target steps of 1 and k + 1 tokens.

    The control is the baseline loaded a second time: its ratio to the baseline is the noise floor.
    An arm whose format has no kernel on this machine is left out and `undefined` says why.
    """
    widths = sorted({1, *(k + 1 for k in ks)})
    at = partial(Stepper, batch_size=batch_size, context_length=context_length)
    models: dict[str, NativeModel] = {}
    undefined: dict[str, str] = {}
    plan = {
        "baseline": (baseline, 1),
        "candidate": (candidate, 1),
        "control": (baseline, 1),
        "target": (target, widths[-1]),
    }
    for name, (checkpoint, width) in plan.items():
        is_like_baseline = name != "target" and checkpoint.quantization is None
        known = models.get("baseline") if is_like_baseline else None
        try:
            dtypes = _dtypes(device) if known is None else [_dtype(known)]
            models[name] = _load_fastest(checkpoint, dtypes, device, at, width)
        except UndefinedMetricError as error:
            undefined[name] = str(error)
    before = _load_average()
    timed = _time(models, widths, at, device, max_seconds, progress)
    return Latency(
        engine="native",
        device=str(device),
        num_threads=torch.get_num_threads(),
        batch_size=batch_size,
        context_length=context_length,
        arms={name: _arm(name, native, timed) for name, native in models.items()},
        undefined=undefined,
        load_average=(before, _load_average()),
    )


def _time(
    models: dict[str, NativeModel],
    widths: list[int],
    at: Callable[..., Stepper],
    device: torch.device,
    max_seconds: float,
    progress: Callable[[float], None],
) -> Timed:
    steps: dict[str, Callable[[], None]] = {}
    for name, native in models.items():
        stepper = at(native.model)
        for width in widths if name == "target" else [1]:
            steps[f"{name} {width}"] = partial(stepper.step, width)
    drafts = frozenset(name for name in steps if not name.startswith("target"))
    samples = time_interleaved(steps, device, max_seconds, rehearsed=drafts, progress=progress)
    return {(key.split()[0], int(key.split()[1])): value for key, value in samples.items()}


def _load_fastest(
    checkpoint: Checkpoint,
    dtypes: Sequence[torch.dtype],
    device: torch.device,
    at: Callable[..., Stepper],
    width: int,
) -> NativeModel:
    """The checkpoint in the float type that a short interleaved trial finds fastest.

    A baseline held to a slow float type would make a poor candidate look good. Full-precision arms
    share the baseline's choice: two copies of one model must not differ by what a trial found.
    """
    loaded = {str(dtype): load_native(checkpoint, dtype, device) for dtype in dtypes}
    if len(loaded) == 1:
        return loaded.popitem()[1]
    steps = {name: partial(at(native.model).step, width) for name, native in loaded.items()}
    timed = time_interleaved(steps, device, TRIAL_SECONDS, rehearsed=frozenset(steps))
    return loaded[min(timed, key=lambda name: median(timed[name].samples_ms))]


def _dtypes(device: torch.device) -> list[torch.dtype]:
    return [torch.float32, torch.bfloat16] if device.type == "cpu" else [torch.bfloat16]


def _dtype(native: NativeModel) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, native.compute_dtype)
    return dtype


def _arm(name: str, native: NativeModel, timed: Timed) -> ArmLatency:
    return ArmLatency(
        name=name,
        compute_dtype=native.compute_dtype,
        kernels=native.kernels,
        weight_bytes=native.weight_bytes,
        steps={width: samples for (arm, width), samples in timed.items() if arm == name},
    )


def _load_average() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
