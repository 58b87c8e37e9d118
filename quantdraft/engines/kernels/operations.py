"""The operations of the C files, and lists of them that one call runs.

An operation is the structure of its arguments: addresses of tensors, which it keeps alive, and
sizes. All activations are float32 and contiguous, on the CPU. The C files say what each computes
and the shapes it takes; the fields here are theirs, in their order.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, ClassVar

from torch import Tensor

from quantdraft.engines.kernels.c_library import c_library

LANES = 8  # floats of a vector: heads are padded to a multiple in the cache
MAX_HEAD_DIM = 512
FAULTS = {
    1: "a token id is outside the embedding table",
    2: "a position is outside the cache's slots",
    3: "logits were asked of a token that is not among the new ones",
}


def _fields(pointers: str, sizes: str = "", real: str = "") -> list[tuple[str, Any]]:
    kinds = ((pointers, ctypes.c_void_p), (sizes, ctypes.c_long), (real, ctypes.c_double))
    return [(name, kind) for names, kind in kinds for name in names.split()]


class Arguments(ctypes.Structure):
    """A structure of addresses and numbers."""

    def __init__(self, **values: Tensor | ctypes.Structure | float | None) -> None:
        """A tensor or a structure stands for its address, and lives as long as this."""
        super().__init__()
        self.held: list[object] = []
        self.hold(**values)

    def hold(self, **values: Tensor | ctypes.Structure | float | None) -> None:
        """Set more of the fields."""
        self.held += values.values()
        for name, value in values.items():
            setattr(self, name, _to_field(value))


class Given(Arguments):
    """The inputs of one pass: ids and positions (batch, m), `at` (batch, picked), int64."""

    _fields_ = _fields("ids positions at")


class Operation(Arguments):
    """The arguments of the C function named `function`."""

    function: ClassVar[str]


class Embedding(Operation):
    """Rows of a table, (vocab, size) float32 or bfloat16."""

    function = "embedding"
    _fields_ = _fields("given table out", "rows size vocab is_bf16")


class AddNorm(Operation):
    """x += added; `out` becomes the RMS norm of the sum."""

    function = "add_norm"
    _fields_ = _fields("given x added weight out", "rows size threads tokens picked", "eps")


class PickedNorm(AddNorm):
    """The RMS norm of x + added for the tokens `at` alone; x stays as it is."""

    function = "picked_norm"


class Gate(Operation):
    """silu(gate) * up."""

    function = "multiply_gate"
    _fields_ = _fields("gate_up out", "rows size threads")


class Product(Operation):
    """A product with weights of 4 to 32 bits; see few_rows.c."""

    function = "multiply"
    _fields_ = _fields(
        "x out scratch weight scale zero bias order ordered",
        "kind rows inputs outputs group stride threads",
    )


class Attention(Operation):
    """Self-attention of new tokens, whose keys and values go into the cache."""

    function = "attention"
    _fields_ = _fields(
        "given projected cos sin query_norm key_norm entries scratch out",
        "batch tokens heads kv_heads dim padded slots is_bf16 threads",
        "eps",
    )

    @property
    def scratch_size(self) -> int:
        """Floats that `scratch` has to hold."""
        return int(_library().attention_scratch(ctypes.addressof(self)))


Call = Callable[[], object]
Step = Operation | Call


class _Listed(ctypes.Structure):
    _fields_ = _fields("run arguments")


class Program:
    """Operations and calls of Python, run one after the other; operations in a row are one call."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._calls = list(_group_steps(steps))

    def run(self) -> None:
        """Run all steps; IndexError where an operation was given an index out of its bounds."""
        for call in self._calls:
            call()


def padded_dim(head_dim: int) -> int:
    """Return a head's size in the cache."""
    return -(-head_dim // LANES) * LANES


def operations_fault() -> str | None:
    """Return why there are no operations on this machine, or None where there are."""
    try:
        _library()
    except ValueError as error:
        return str(error)
    return None


def _group_steps(steps: Sequence[Step]) -> Iterator[Call]:
    """Yield calls of Python as they are, and operations in a row as one call."""
    waiting: list[Operation] = []
    for step in steps:
        if isinstance(step, Operation):
            waiting.append(step)
            continue
        if waiting:
            yield _as_call(waiting)
        waiting = []
        yield step
    if waiting:
        yield _as_call(waiting)


def _as_call(operations: list[Operation]) -> Call:
    run, count = _library().run, len(operations)
    places = [
        _Listed(_address(_library(), operation.function), ctypes.addressof(operation))
        for operation in operations
    ]
    listed = (_Listed * count)(*places)

    def call(kept: list[Operation] = operations) -> None:
        fault = run(listed, count)
        if fault:
            raise IndexError(FAULTS[fault])

    return call


def _library() -> ctypes.CDLL:
    library = c_library()
    library.run.argtypes, library.run.restype = [ctypes.c_void_p, ctypes.c_long], ctypes.c_int
    library.attention_scratch.argtypes = [ctypes.c_void_p]
    library.attention_scratch.restype = ctypes.c_long
    return library


@cache
def _address(library: ctypes.CDLL, function: str) -> int:
    address = ctypes.cast(getattr(library, function), ctypes.c_void_p).value
    assert address is not None
    return address


def _to_field(value: Tensor | ctypes.Structure | float | None) -> float | None:
    if isinstance(value, Tensor):
        return value.data_ptr()
    return ctypes.addressof(value) if isinstance(value, ctypes.Structure) else value
