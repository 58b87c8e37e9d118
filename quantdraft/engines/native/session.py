"""Decode a fixed batch: a model, its cache, and its functions in one of four modes.

Eager: operation by operation. Fused (CPU): as lists of C calls. Compiled: each layer by torch's
compiler. Graph (GPU): replayed as recorded, so inputs live in fixed buffers and attention reads a
fixed number of cache slots: graphs are kept per function, shape and number of slots, and the slots
come in steps. What is compiled for a GPU is recorded too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quantdraft.engines.kernels.operations import operations_fault
from quantdraft.engines.kernels.requirements import has_triton
from quantdraft.engines.native.borrowed import BorrowedRows
from quantdraft.engines.native.compiled import compiled_parts
from quantdraft.engines.native.decoder import KVCache
from quantdraft.engines.native.fused import FusedDecoder, fused_fault
from quantdraft.engines.native.model import NativeModel
from quantdraft.engines.native.recording import Recording
from quantdraft.record.choices import Mode

Function = Callable[..., Any]
FUSED_TYPES = (torch.float32, torch.bfloat16)
# Slots that a recorded or compiled step attends to, in steps of so many.
SLOT_STEP = {"eager": 1, "fused": 1, "compiled": 64, "graph": 256}
# On a GPU libraries plan their work for every new number of slots.
MIN_CUDA_STEP = 64


class Session:
    """One model and the cache of its batch. Rows are fed tokens at positions of their own."""

    def __init__(
        self,
        native: NativeModel,
        batch_size: int,
        num_slots: int,
        mode: Mode = "eager",
        is_level: bool = False,
    ) -> None:
        """is_level: all rows are always fed at the same positions, as when a step is timed.

        Level sessions of one shape share the memory of their caches, and so each other's contents.
        """
        self.native, self.batch_size, self.mode = native, batch_size, mode
        self.device = _device_of(native)
        self.is_recorded = mode == "graph" or (mode == "compiled" and self.device.type == "cuda")
        # A level session stays where it is: its steps attend to exactly what there is.
        self.slot_step = 1 if is_level or not native.is_own else _slot_step(mode, self.device)
        self.rows: BorrowedRows | None = None
        self.cache: KVCache | None = None
        self._fused: FusedDecoder | None = None
        self._graphs: dict[tuple[Any, ...], Recording] = {}
        self._pool: Any = None  # the memory of all its graphs
        if native.is_own and mode == "fused" and fused_fault(native.model) is None:
            self._fused = FusedDecoder(
                native.model, batch_size, num_slots, native.dtype, is_shared=is_level
            )
            self.cache = self._fused.cache
        elif native.is_own:
            num_slots = self.num_live(num_slots)
            rotary = native.model.rotary(num_slots, native.dtype)
            self.cache = KVCache(
                native.model.shape, batch_size, num_slots, rotary, is_shared=is_level
            )
            self._parts = compiled_parts(native.model) if mode == "compiled" else None
        else:
            self.rows = BorrowedRows(native.model, 1 if is_level else batch_size)

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        if self.native.is_own:
            return int(self.native.model.shape.vocab_size)
        return int(self.native.model.config.get_text_config().vocab_size)

    @property
    def num_recordings(self) -> int:
        """How many functions were recorded so far: time in which that grew is no step's time."""
        return len(self._graphs)

    def num_live(self, longest: int) -> int:
        """Return the slots to attend to when the longest row holds `longest` tokens."""
        return -(-longest // self.slot_step) * self.slot_step

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        num_live: int,
        at: Tensor | None = None,
        sees_all: bool = False,
    ) -> Tensor:
        """Return logits, (batch, n, vocab): see `Decoder.forward`."""
        if self.rows is not None:
            return self.rows.forward(token_ids, positions, at)
        if self._fused is not None:
            return self._fused.forward(token_ids, positions, at)
        logits: Tensor = self.native.model(
            self.cache, token_ids, positions, num_live, at, sees_all, self._parts
        )
        return logits

    def row(self, index: int) -> Session:
        """Return a session of one row on this one's cache; neither compiled nor recorded.

        It reads a prompt into its row while the other rows stay where they are. Of the project's
        decoder alone.
        """
        assert self.cache is not None
        alone = copy.copy(self)
        alone.batch_size, alone.mode, alone.is_recorded = 1, "eager", False
        alone.cache = self.cache.row(index)
        if self._fused is not None:
            alone._fused = self._fused.on(alone.cache)
        else:
            alone._parts = None
        return alone

    def call(self, key: tuple[Any, ...], function: Function, *inputs: Tensor) -> Any:
        """Call `function(*inputs)`; where steps are recorded, the first call for `key` is.

        The function may read nothing but its inputs and what `key` names. What it returns is
        overwritten by the next call, whatever its key.
        """
        if not self.is_recorded:
            return function(*inputs)
        shapes = tuple((tuple(tensor.shape), tensor.dtype) for tensor in inputs)
        graph = self._graphs.get((*key, shapes))
        if graph is None:
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            graph = self._graphs[*key, shapes] = Recording(function, inputs, self._pool)
        return graph(inputs)


def modes(native: NativeModel, device: torch.device) -> tuple[Mode, ...]:
    """Return the modes this model can run in here; the first is the safe one."""
    if not native.is_own:
        return ("eager",)
    if device.type == "cuda":  # the compiler writes Triton
        return ("graph", "compiled") if has_triton() else ("graph",)
    return ("eager", "compiled") if fused_fault(native.model) else ("eager", "fused", "compiled")


def tried_modes(native: NativeModel, device: torch.device) -> tuple[Mode, ...]:
    """Return those of `modes` that are worth a trial, the preferred one first.

    On a CPU compiling takes half a minute, and saves the work between the products, which a fused
    pass does not have. On a GPU it saves more than half of the launches of a step.
    """
    known = modes(native, device)
    if device.type == "cuda":
        return known[::-1]
    return tuple(mode for mode in known if mode != "compiled" or "fused" not in known)


def live_mode(device: torch.device) -> Mode:
    """Return the mode for short texts, which end before a recording or compiling would."""
    return "fused" if device.type == "cpu" and operations_fault() is None else "eager"


def decoding_mode(native: NativeModel, device: torch.device) -> Mode:
    """Return the mode for many steps of a batch: recorded on a GPU, fused where a CPU can."""
    first, *others = modes(native, device)
    return "fused" if "fused" in others and native.dtype in FUSED_TYPES else first


def _slot_step(mode: Mode, device: torch.device) -> int:
    if device.type == "cuda":
        return SLOT_STEP["graph"] if mode == "compiled" else max(SLOT_STEP[mode], MIN_CUDA_STEP)
    return SLOT_STEP[mode]


def _device_of(native: NativeModel) -> torch.device:
    if native.is_own:
        device: torch.device = native.model.embedding.device
        return device
    return torch.device(native.model.device)
