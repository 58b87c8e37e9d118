"""Arms in memory: each loaded once, in the float type that is fastest for it, while it fits.

A baseline held to a slow float type would make a poor candidate look good, so on a CPU both
float32 and bfloat16 are tried. Nothing is timed for the record here.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any, Literal, Protocol, TypeVar

import torch

from quantdraft.engines.fused import fused_fault
from quantdraft.engines.native import NativeModel, load_native
from quantdraft.engines.session import Mode, modes, tried_modes
from quantdraft.engines.source import WeightSource
from quantdraft.engines.stepper import Stepper
from quantdraft.errors import OptionError, UndefinedMetricError
from quantdraft.latency import synchronize, time_interleaved
from quantdraft.memory import available_bytes

Choice = TypeVar("Choice")

BASELINE, CONTROL, TARGET = "baseline", "control", "target"
# Enough for a choice between float types, which differ by a lot or do not matter.
TRIAL_SECONDS = 1.0
# A CPU without the instructions may multiply bfloat16 500 times slower: one look is enough.
CLEAR_RATIO = 4.0
# Memory that is left to everything else: activations of kernels, the allocator's own loss.
MEMORY_SHARE = 0.9

_mode_trials: dict[tuple[Any, ...], dict[Mode, float]] = {}


class Step(Protocol):
    """One model at one batch and context, ready to run a step as often as asked."""

    def step(self, num_tokens: int) -> None:
        """A pass over `num_tokens` new tokens of every row, its argmax, and back."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A loaded model and the way its steps run."""

    native: NativeModel
    mode: Mode
    source: WeightSource
    mode_trial_ms: dict[str, float] = field(default_factory=dict)

    def open_step(self, batch_size: int, context_length: int, max_new: int) -> Step:
        """The engine's step at one point; its cache lives as long as it does."""
        return Stepper(self.native, batch_size, context_length, max_new, self.mode)


class Arms:
    """The models of a run. `undefined` says which could not be loaded, and why."""

    def __init__(
        self,
        sources: Mapping[str, WeightSource],
        widths: Mapping[str, Sequence[int]],
        batch_sizes: Sequence[int],
        device: torch.device,
        mode: Mode | Literal["auto"] = "auto",
    ) -> None:
        """mode: how steps run; auto: as graphs on a GPU, on a CPU as a short trial finds faster."""
        self.sources, self.widths, self.device = sources, widths, device
        self.batch_sizes, self.mode = batch_sizes, mode
        self.undefined: dict[str, str] = {}
        self._models: dict[str, dict[torch.dtype, NativeModel]] = {name: {} for name in sources}
        self._settled: dict[str, torch.dtype] = {}
        self._way: tuple[Mode, dict[Mode, float]] | None = None

    def at(self, batch_size: int, context_length: int) -> dict[str, Arm]:
        """Every arm that could be loaded, in its fastest float type at this batch."""
        found: dict[str, Arm] = {}
        for name in self.sources:
            if name in self.undefined:
                continue
            try:
                found[name] = self._fastest(name, batch_size, context_length, found.get(BASELINE))
            except UndefinedMetricError as error:
                self._give_up(name, str(error))
            except torch.OutOfMemoryError:
                self._give_up(name, f"{self.sources[name].name} does not fit on {self.device}")
        return found

    def _fastest(
        self, name: str, batch_size: int, context_length: int, baseline: Arm | None
    ) -> Arm:
        """Full-precision drafts share the baseline's choices: two copies of one model must not
        differ by what a trial found.
        """
        source = self.sources[name]
        if name != TARGET and baseline is not None and not source.formats:
            (native,) = self._load(name, [baseline.native.dtype]).values()
            return replace(baseline, native=native, source=source)
        dtypes = [self._settled[name]] if name in self._settled else float_types(self.device)
        loaded = self._load(name, dtypes)
        width = max(self.widths[name])
        safe = {
            dtype: Arm(native, modes(native, self.device)[0], source)
            for dtype, native in loaded.items()
        }
        if self._way is None:  # before the float types, which are to be tried as steps will run
            self._settle_mode([*safe.values()][-1], batch_size, context_length)
        arms = {dtype: self._run_as_settled(arm) for dtype, arm in safe.items()}
        best = faster(arms, batch_size, context_length, width, self.device)
        if best is torch.float32:  # it gains with every row more
            self._settled[name] = best
        self._drop(name, keep=best)
        return arms[best]

    def _run_as_settled(self, arm: Arm) -> Arm:
        """Models on borrowed modules run in one way alone."""
        assert self._way is not None
        mode, trial = self._way
        if mode not in modes(arm.native, self.device):
            return arm
        return replace(arm, mode=mode, mode_trial_ms={str(name): ms for name, ms in trial.items()})

    def _settle_mode(self, arm: Arm, batch_size: int, context_length: int) -> None:
        """Once, on the baseline, for all: arms that ran in different ways could not be compared."""
        known = modes(arm.native, self.device)
        if self.mode == "fused" and arm.native.is_own and self.mode not in known:
            raise OptionError(f"--mode fused: {fused_fault(arm.native.model)}")
        if self.mode != "auto":
            self._way = self.mode, {}
            return
        tried = tried_modes(arm.native, self.device)
        if len(tried) == 1:
            self._way = tried[0], {}
        else:
            trial = mode_trial(arm, tried, batch_size, context_length, self.device)
            self._way = min(trial, key=lambda mode: trial[mode]), trial

    def _give_up(self, name: str, reason: str) -> None:
        self.undefined[name] = reason
        self._models[name].clear()
        gc.collect()

    def _load(self, name: str, dtypes: Iterable[torch.dtype]) -> dict[torch.dtype, NativeModel]:
        """At least the first of the types, the others where memory allows."""
        models, source = self._models[name], self.sources[name]
        rows = row_counts(self.batch_sizes, self.widths[name])
        loaded: dict[torch.dtype, NativeModel] = {}
        for dtype in dtypes:
            if dtype not in models:
                shortage = memory_shortage(weight_bytes(source, dtype, self.device), self.device)
                if shortage and loaded:
                    break
                if shortage:
                    raise UndefinedMetricError(f"{source.name} does not fit: {shortage}")
                models[dtype] = load_native(source, dtype, self.device, rows)
            loaded[dtype] = models[dtype]
        return loaded

    def _drop(self, name: str, keep: torch.dtype) -> None:
        models = self._models[name]
        for dtype in [dtype for dtype in models if dtype is not keep]:
            del models[dtype]
        gc.collect()


def float_types(device: torch.device) -> list[torch.dtype]:
    """The float types worth trying; the first is the one whose weights are read as stored."""
    return [torch.bfloat16, torch.float32] if device.type == "cpu" else [torch.bfloat16]


def row_counts(batch_sizes: Sequence[int], widths: Sequence[int]) -> tuple[int, ...]:
    """Numbers of rows (batch x new tokens) that kernels are chosen for: one per power of two."""
    rows = sorted({batch * width for batch in batch_sizes for width in widths})
    return tuple({count.bit_length(): count for count in reversed(rows)}.values())[::-1]


def weight_bytes(source: WeightSource, dtype: torch.dtype, device: torch.device) -> int:
    """About what the weights take in memory: what a step reads, and the embedding table.

    A dense weight on a CPU may be held twice: for one row as it is stored, for many in float32.
    """
    config = source.config.get("text_config") or source.config
    table = int(config.get("vocab_size", 0)) * int(config.get("hidden_size", 0)) * dtype.itemsize
    stored = source.ledger.weight_bytes
    if source.formats:
        return table + stored
    second_packing = 2 * stored if device.type == "cpu" else 0
    return table + stored * dtype.itemsize // 2 + second_packing


def point_bytes(arm: Arm, batch_size: int, context_length: int, num_new_tokens: int) -> int:
    """What a step needs besides weights: keys and values of every row, logits, activations."""
    slots = context_length + num_new_tokens
    cache = arm.native.step_bytes(batch_size, slots) - arm.native.step_bytes(batch_size, 0)
    config = arm.source.config.get("text_config") or arm.source.config
    columns = 2 * int(config["vocab_size"]) + 4 * int(config.get("intermediate_size", 0))
    return cache + batch_size * num_new_tokens * columns * arm.native.dtype.itemsize


def memory_shortage(num_bytes: int, device: torch.device) -> str | None:
    """Why that many bytes cannot be had, or None where they can (or nobody knows)."""
    available = available_bytes(device)
    if available is None or num_bytes <= MEMORY_SHARE * available:
        return None
    return f"it needs about {num_bytes / 1e9:.1f} GB, and {available / 1e9:.1f} GB are free"


def probe_ms(step: Step, num_tokens: int, device: torch.device) -> float:
    """One step in ms, after one more that the caches and compilers may want for themselves."""
    step.step(num_tokens)
    synchronize(device)
    started = time.perf_counter()
    step.step(num_tokens)
    synchronize(device)
    return (time.perf_counter() - started) * 1e3


def mode_trial(
    arm: Arm, known: Sequence[Mode], batch_size: int, context_length: int, device: torch.device
) -> dict[Mode, float]:
    """Median ms of a one-token step of the arm's first layer, by mode; remembered for the process.

    One layer, because a compiler takes seconds for each, and all layers are alike. Where there is
    no compiler, the first mode stands alone.
    """
    native = arm.native
    threads = torch.get_num_threads()
    key = (native.model.shape, native.kernels, native.dtype, batch_size, context_length, threads)
    if key not in _mode_trials:
        short = replace(native, model=native.model.first_layer())
        steps = {}
        for mode in known:
            step = Stepper(short, batch_size, context_length, 1, mode)
            try:
                step.step(1)
            except (RuntimeError, OSError):
                continue
            steps[mode] = partial(step.step, 1)
        timed = time_interleaved(
            {str(mode): step for mode, step in steps.items()}, device, TRIAL_SECONDS
        )
        _mode_trials[key] = {mode: median(timed[str(mode)].samples_ms) for mode in steps}
    return _mode_trials[key]


def faster(
    arms: Mapping[Choice, Arm],
    batch_size: int,
    context_length: int,
    width: int,
    device: torch.device,
) -> Choice:
    """The key whose step of `width` tokens is the shortest: by one look, or a short trial."""
    if len(arms) == 1:
        return next(iter(arms))
    opened = {key: arm.open_step(batch_size, context_length, width) for key, arm in arms.items()}
    looks = {key: probe_ms(step, width, device) for key, step in opened.items()}
    best = min(looks, key=lambda key: looks[key])
    if max(looks.values()) > CLEAR_RATIO * looks[best]:
        return best
    names = {str(key): key for key in arms}
    steps = {str(key): partial(step.step, width) for key, step in opened.items()}
    timed = time_interleaved(steps, device, TRIAL_SECONDS, rehearsed=frozenset(steps))
    return names[min(timed, key=lambda name: median(timed[name].samples_ms))]
