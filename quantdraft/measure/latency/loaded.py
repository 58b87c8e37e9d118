"""The arms of a timing, loaded: each in the float type and the mode that were settled for it.

What a trial finds is settled once and kept on the disk, for all arms and all processes of a
machine: two copies of one model must not differ by what a trial found. The arms are then loaded
again and again, in fresh memory. Nothing is timed for the record here.
"""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any

import torch

from quantdraft.checkpoints.tensors.devices import pick_dtype
from quantdraft.engines.kernels.book import NUM_VOTES, Timing, book_of, winner
from quantdraft.engines.kernels.choice import collect_questions, settle
from quantdraft.engines.native.caches import reads_on
from quantdraft.engines.native.compiled import compiler_cause
from quantdraft.engines.native.fused import fused_fault
from quantdraft.engines.native.model import NativeModel, load_native
from quantdraft.engines.native.session import modes, tried_modes
from quantdraft.engines.native.steps import Stepper
from quantdraft.engines.native.weight_sources import WeightSource
from quantdraft.errors import OptionError, UndefinedMetricError
from quantdraft.measure.latency.faults import arm_fault, is_too_large, say_reason
from quantdraft.measure.latency.interleaved import synchronize, time_interleaved
from quantdraft.measure.latency.memory import memory_shortage, weight_bytes
from quantdraft.record.choices import Mode, ModeChoice

BASELINE, CONTROL, TARGET, TARGET_CONTROL = "baseline", "control", "target", "target-control"
TARGETS = (TARGET, TARGET_CONTROL)
# Of one vote between float types or modes, which differ by a lot or do not matter.
TRIAL_SECONDS = 0.2
# A CPU without the instructions may multiply bfloat16 500 times slower: one look is enough.
CLEAR_RATIO = 4.0

Share = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Arm:
    """A loaded model and the way its steps run."""

    native: NativeModel
    mode: Mode
    source: WeightSource
    mode_trial_ms: dict[str, float] = field(default_factory=dict)

    def open_step(self, batch_size: int, context_length: int, max_new: int) -> Stepper:
        """Return the step at one point; its cache lives as long as it does."""
        return Stepper(self.native, batch_size, context_length, max_new, self.mode)


class Arms:
    """The models of a timing. `undefined` says which could not be loaded, and why."""

    def __init__(
        self,
        sources: Mapping[str, WeightSource],
        widths: Mapping[str, Sequence[int]],
        batch_sizes: Sequence[int],
        device: torch.device,
        mode: ModeChoice = "auto",
    ) -> None:
        """mode: how steps run; auto: as trials find faster, on a GPU recorded."""
        self.sources, self.widths, self.device = sources, widths, device
        self.batch_sizes, self.mode = batch_sizes, mode
        self.undefined: dict[str, str] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._held_bytes: dict[tuple[str, torch.dtype], int] = {}  # of weights that were loaded
        self._way: tuple[Mode, dict[Mode, float]] | None = None

    def settle(
        self, batch_size: int, context_length: int, progress: Share = lambda share: None
    ) -> None:
        """Settle the mode, the float types and the kernels, by trials where no earlier run did.

        All arms are loaded once for it, in the order of the sources: where memory ends, those that
        come last are undefined.
        """
        held: list[NativeModel] = []
        with collect_questions() as questions:
            for name in self.sources:
                if name not in self.undefined:
                    self._try(
                        name,
                        lambda name: held.append(self._first(name, batch_size, context_length)),
                    )
        held.clear()
        gc.collect()
        with suppress(UndefinedMetricError):  # each question has a vote already: that of its load
            settle(list(questions.values()), progress)

    def load(self, order: Sequence[str]) -> dict[str, Arm]:
        """Load every arm that can be, in this order, into memory of its own."""
        loaded: dict[str, Arm] = {}
        for name in order:
            if name not in self.undefined:
                self._try(name, lambda name: loaded.update({name: self._arm(name)}))
        return {name: loaded[name] for name in self.sources if name in loaded}

    def fit_twice(self) -> bool:
        """Return whether memory has room for all arms beside those that are loaded."""
        needed = sum(self._bytes(name, self._dtypes[name]) for name in self._dtypes)
        return memory_shortage(needed, self.device) is None

    def _try(self, name: str, load: Callable[[str], None]) -> None:
        try:
            load(name)
        except Exception as error:  # each kernel, compiler, driver and library has its own kinds
            reason = arm_fault(self.sources[name].name, error, self.device)
            if is_too_large(error):
                reason = f"{self.sources[name].name} does not fit on {self.device}"
            self.undefined[name] = reason
            gc.collect()

    def _first(self, name: str, batch_size: int, context_length: int) -> NativeModel:
        """Load an arm and settle how it runs; models in full precision share the baseline's type.

        Otherwise two copies of one model, or a draft and a target of one shape, could differ.
        """
        source = self.sources[name]
        shared = self._dtypes.get(BASELINE) if not source.formats else None
        first = float_types(self.device)[0] if shared is None else shared
        native = self._load(name, first)
        if self._way is None:  # before the float types, which are tried as steps will run
            self._settle_mode(Arm(native, "eager", source), batch_size, context_length)
        self._leave_out_compiling(name, Arm(native, "eager", source), batch_size, context_length)
        arm = self._settled_arm(native, source)
        if shared is None and arm.mode not in ("fused", "graph"):
            first = self._settle_float_type(name, arm, batch_size, context_length)
        self._dtypes[name] = first
        return native

    def _arm(self, name: str) -> Arm:
        return self._settled_arm(self._load(name, self._dtypes[name]), self.sources[name])

    def _settled_arm(self, native: NativeModel, source: WeightSource) -> Arm:
        """Return the arm in the mode of all arms; borrowed modules have one mode alone."""
        assert self._way is not None
        mode, trial = self._way
        known = modes(native, self.device)
        if mode not in known:
            return Arm(native, known[0], source)
        return Arm(native, mode, source, {str(name): ms for name, ms in trial.items()})

    def _settle_mode(self, arm: Arm, batch_size: int, context_length: int) -> None:
        """Settle the mode once, on the first arm: arms in different modes could not be compared.

        A pass as a list of C calls goes before the others where trials do not tell them apart.
        """
        native = arm.native
        known = modes(native, self.device)
        if self.mode == "fused" and native.is_own and self.mode not in known:
            raise OptionError(f"--mode fused: {fused_fault(native.model)}")
        if self.mode != "auto":
            self._way = self.mode, {}
            return
        tried = sorted(tried_modes(native, self.device), key=lambda mode: mode != "fused")
        if len(tried) == 1:
            self._way = tried[0], {}
            return
        question = (
            f"mode {native.model.shape} {native.dtype} batch {batch_size} "
            f"context {1 << context_length.bit_length()}"
        )
        trials = partial(mode_trials, arm, tried, batch_size, context_length, self.device)
        best, ms = self._vote(question, trials)
        self._way = (
            next(mode for mode in tried if mode == best),
            {mode: ms[mode] for mode in tried if mode in ms},
        )

    def _leave_out_compiling(
        self, name: str, arm: Arm, batch_size: int, context_length: int
    ) -> None:
        """Settle on the next mode, for all arms, where this one's layers cannot be compiled."""
        assert self._way is not None
        mode, trial = self._way
        if mode != "compiled" or not arm.native.is_own:
            return
        widths = sorted({1, max(self.widths[name])})
        fault = compiling_fault(arm, batch_size, context_length, widths)
        if fault is None:
            return
        if self.mode == "compiled":
            raise OptionError(f"--mode compiled: {name}: {fault}")
        warnings.warn(f"mode compiled is not used: {name}: {fault}", stacklevel=2)
        others: dict[Mode, float] = {
            other: ms for other, ms in trial.items() if other != "compiled"
        }
        known = modes(arm.native, self.device)
        self._way = (min(others, key=others.__getitem__) if others else known[0]), others

    def _settle_float_type(
        self, name: str, arm: Arm, batch_size: int, context_length: int
    ) -> torch.dtype:
        """Return the type with the shortest of the arm's widest steps; the stored one in doubt."""
        types = float_types(self.device)
        source, width = self.sources[name], max(self.widths[name])
        fitting = [types[0], *(t for t in types[1:] if self._shortage(name, t) is None)]
        formats = sorted({str(fmt) for fmt in source.formats.values()})
        question = (
            f"float type {source.config.get('model_type')} {source.ledger} {formats} {arm.mode} "
            f"batch {batch_size} width {width}"
        )

        def trials() -> list[dict[str, float]]:
            natives = {t: arm.native if t is types[0] else self._load(name, t) for t in fitting}
            arms = {str(t): replace(arm, native=native) for t, native in natives.items()}
            return step_trials(arms, batch_size, context_length, width, self.device)

        if len(fitting) == 1:
            return types[0]
        best, _ = self._vote(question, trials)
        return next(t for t in fitting if str(t) == best)

    def _vote(
        self, question: str, trials: Callable[[], Sequence[Mapping[Any, float]]]
    ) -> tuple[str, dict[str, float]]:
        """Return the answer to a question and each answer's median ms, by trials where needed."""
        book = book_of(self.device.type, torch.get_num_threads())
        if not book.is_settled(question):
            for found in trials():
                book.add(question, {str(key): Timing(ms / 1e3, 0) for key, ms in found.items()})
        votes = book.votes(question)
        names = {name for vote in votes for name in vote}
        ms = {n: median(v[n].seconds for v in votes if n in v) * 1e3 for n in names}
        return winner(votes), ms

    def _load(self, name: str, dtype: torch.dtype) -> NativeModel:
        shortage = self._shortage(name, dtype)
        if shortage is not None:
            raise UndefinedMetricError(f"{self.sources[name].name} does not fit: {shortage}")
        rows = row_counts(self.batch_sizes, self.widths[name])
        loaded = load_native(self.sources[name], dtype, self.device, rows)
        if max(self.widths[name]) > 1 and not loaded.is_own and not reads_on(loaded.model):
            raise UndefinedMetricError(
                f"transformers reads several tokens of {self.sources[name].name} one by one, where "
                "an engine reads them in one pass: its verification is not timed"
            )
        self._held_bytes[name, dtype] = loaded.weight_bytes
        return loaded

    def _shortage(self, name: str, dtype: torch.dtype) -> str | None:
        return memory_shortage(self._bytes(name, dtype), self.device)

    def _bytes(self, name: str, dtype: torch.dtype) -> int:
        """Return what an arm's weights took when they were loaded, or about what they will."""
        rows = row_counts(self.batch_sizes, self.widths[name])
        about = weight_bytes(self.sources[name], dtype, self.device, rows)
        return self._held_bytes.get((name, dtype), about)


def float_types(device: torch.device) -> list[torch.dtype]:
    """Return the float types worth trying; of the first the weights are read as they are stored."""
    return [torch.bfloat16, torch.float32] if device.type == "cpu" else [pick_dtype("auto", device)]


def row_counts(batch_sizes: Sequence[int], widths: Sequence[int]) -> tuple[int, ...]:
    """Return the numbers of rows (batch x new tokens) that kernels will be run with."""
    return tuple(sorted({batch * width for batch in batch_sizes for width in widths}))


def probe_ms(step: Stepper, num_tokens: int, device: torch.device) -> float:
    """Return the ms of one step, after another one in which caches and compilers settle."""
    step.step(num_tokens)
    synchronize(device)
    started = time.perf_counter()
    step.step(num_tokens)
    synchronize(device)
    return (time.perf_counter() - started) * 1e3


def mode_trials(
    arm: Arm, known: Sequence[Mode], batch_size: int, context_length: int, device: torch.device
) -> list[dict[str, float]]:
    """Return median ms of a one-token step of the first layer by mode, in each of several trials.

    One layer, because a compiler takes seconds for each, and all layers are alike. A mode that
    fails is left out, with a warning, while there is another.
    """
    steps: dict[str, Callable[[], None]] = {}
    faults: list[Exception] = []
    for mode in known:
        try:
            step = _first_layer_step(arm, batch_size, context_length, 1, mode)
            step.step(1)
        except Exception as error:  # a compiler or a driver: each has its own kinds
            if is_too_large(error):
                raise
            faults.append(error)
            reason = say_reason(compiler_cause(error))
            warnings.warn(f"mode {mode} is not used: {reason}", stacklevel=2)
            continue
        steps[str(mode)] = partial(step.step, 1)
    if not steps:
        raise faults[-1]
    return _trials(steps, device)


def compiling_fault(
    arm: Arm, batch_size: int, context_length: int, widths: Sequence[int]
) -> str | None:
    """Return why steps of so many tokens cannot be compiled, or None; compiles a layer for each."""
    try:
        step = _first_layer_step(arm, batch_size, context_length, max(widths), "compiled")
        for width in widths:
            step.step(width)
    except Exception as error:  # a compiler, a driver or a library: each has its own kinds
        if is_too_large(error):
            raise
        return say_reason(compiler_cause(error))
    return None


def _first_layer_step(
    arm: Arm, batch_size: int, context_length: int, max_new: int, mode: Mode
) -> Stepper:
    short = replace(arm.native, model=arm.native.model.first_layer())
    return Stepper(short, batch_size, context_length, max_new, mode)


def step_trials(
    arms: Mapping[str, Arm],
    batch_size: int,
    context_length: int,
    width: int,
    device: torch.device,
) -> list[dict[str, float]]:
    """Return median ms of a step of `width` tokens by name, in each of several trials."""
    opened = {key: arm.open_step(batch_size, context_length, width) for key, arm in arms.items()}
    looks = {key: probe_ms(step, width, device) for key, step in opened.items()}
    if max(looks.values()) > CLEAR_RATIO * min(looks.values()):
        return [looks] * NUM_VOTES
    return _trials({key: partial(step.step, width) for key, step in opened.items()}, device)


def _trials(
    steps: Mapping[str, Callable[[], None]], device: torch.device
) -> list[dict[str, float]]:
    timed = [
        time_interleaved(steps, device, TRIAL_SECONDS, rehearsals=steps, seed=seed)
        for seed in range(NUM_VOTES)
    ]
    return [{name: median(found[name].samples_ms) for name in steps} for found in timed]
