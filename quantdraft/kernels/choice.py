"""Which kernel a Linear gets: each candidate is timed at the row counts it will meet.

A format may have one best kernel for a draft's single token and another for a verification of
many. Trials run once for a shape and are remembered for the process.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from quantdraft.errors import NoKernelError, is_out_of_memory
from quantdraft.kernels import kernels_for
from quantdraft.kernels.few_rows import FewRowsLinear
from quantdraft.kernels.operations import Program
from quantdraft.unpacking import Codebook, DoubleScale, Unpacked, dequantized

Weight = Unpacked | Codebook | Tensor

MIN_GAIN = 1.05  # a second kernel must beat the first by this, or its packing is not held
NUM_ROUNDS, MIN_ROUNDS, MAX_SECONDS = 9, 3, 0.3  # per row count
FAR_BEHIND = 2.5  # times the fastest: no disturbance of one round explains that
MAX_COUNTS = 6  # row counts that are timed
MAX_OUTPUTS = (
    16384  # of a weight in a trial: time goes as the outputs, and a head has ten times more
)
MAX_ERROR = (
    0.1  # of a product; rounding inputs to 8 bits costs 0.03 at most, a wrong kernel about 1
)
CACHE_BYTES = 32 * 2**20  # more than a core's share of a CPU's caches
NUM_CHECKED = 256  # outputs of a weight that are compared
CUDA_CALLS = 32  # per captured graph: its launch is then a small part of the time

_winners: dict[tuple[Any, ...], tuple[int, ...]] = {}


def fastest_linear(
    weight: Weight,
    bias: Tensor | None,
    weight_format: str,
    dtype: torch.dtype,
    device: torch.device,
    rows: tuple[int, ...],
) -> nn.Module:
    """The weight as the fastest of its format's kernels, or as several that take turns.

    rows: the row counts (batch x new tokens) at which candidates are timed
    Raises NoKernelError or ValueError, with every kernel's reason, where none takes the weight.
    """
    counts = thinned(rows)
    weight, bias = _moved(weight, device), None if bias is None else bias.to(device)
    kinds = [
        kind
        for kind in kernels_for(device.type, weight_format)
        if getattr(kind, "min_rows", 1) <= counts[-1]
    ] or list(kernels_for(device.type, weight_format))
    key = (str(device), weight_format, _facts(weight), bias is None, dtype, counts)
    if key not in _winners:
        top, top_bias = (
            first_outputs(weight, MAX_OUTPUTS),
            None if bias is None else bias[:MAX_OUTPUTS],
        )
        inputs = [_inputs(num_rows, weight, dtype, device) for num_rows in counts]
        _winners[key] = _trial(_built(kinds, top, top_bias, dtype), inputs, top, top_bias)
        _release(device)
    winners = _winners[key]
    made: dict[int, nn.Module] = {i: kinds[i](weight, bias, dtype) for i in sorted(set(winners))}
    if len(made) == 1:
        return next(iter(made.values()))
    return LinearByRows(counts, [list(made).index(i) for i in winners], list(made.values()))


class LinearByRows(nn.Module):
    """Several kernels of one weight, each for the row counts at which it is the fastest.

    Between two timed counts the larger one's kernel is used: what wins at one row alone is made
    for one row. `parts` are kernels themselves; count bytes here or there, not both.
    """

    def __init__(
        self, counts: Sequence[int], part_of_count: Sequence[int], parts: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        self.counts, self.part_of_count = tuple(counts), tuple(part_of_count)
        self.parts = nn.ModuleList(parts)
        self.kernel = "+".join(str(part.kernel) for part in parts)

    @property
    def weight_bytes(self) -> int:
        """Bytes that the packings hold together; memory that they share is counted once."""
        total, seen = 0, set()
        for part in self.parts:
            total += held_bytes(part)
            for matrix in (buffer for buffer in part.buffers() if buffer.dim() == 2):
                total -= matrix.nbytes if matrix.data_ptr() in seen else 0
                seen.add(matrix.data_ptr())
        return total

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in x's float type."""
        out: Tensor = self.part_for(x.numel() // x.shape[-1])(x)
        return out

    def part_for(self, num_rows: int) -> nn.Module:
        """The kernel that takes so many rows."""
        at = sum(count < num_rows for count in self.counts[:-1])
        return self.parts[self.part_of_count[at]]


def chosen(times: Sequence[Sequence[float]]) -> tuple[int, ...]:
    """The kernel for each row count, given (row counts, kernels) times.

    One kernel serves everywhere, the one whose losses to the best are smallest in all; another
    takes its place only at counts where it is faster by MIN_GAIN.
    """
    num_kernels = len(times[0])
    loss = [sum(row[kernel] / min(row) for row in times) for kernel in range(num_kernels)]
    usual = loss.index(min(loss))
    return tuple(
        usual if row[usual] <= MIN_GAIN * min(row) else row.index(min(row)) for row in times
    )


def held_bytes(kernel: nn.Module) -> int:
    """A kernel's `weight_bytes`."""
    return int(kernel.weight_bytes)  # type: ignore[arg-type]


def thinned(rows: Sequence[int]) -> tuple[int, ...]:
    """At most MAX_COUNTS of the row counts, evenly by rank, the smallest and largest included."""
    counts = sorted(set(rows))
    last = len(counts) - 1
    places = {round(i * last / (MAX_COUNTS - 1)) for i in range(MAX_COUNTS)}
    return tuple(counts[place] for place in sorted(places))


def first_outputs(weight: Weight, num_outputs: int) -> Weight:
    """A weight's first rows; all of a Codebook whose blocks run across rows."""
    if isinstance(weight, Tensor):
        return weight[:num_outputs]
    if isinstance(weight, Codebook):
        num_blocks, rest = divmod(num_outputs * weight.shape[1], weight.block_size)
        if rest:
            return weight
        return weight._replace(
            integers=weight.integers[:num_outputs], scale=weight.scale[:num_blocks]
        )
    scale_rows = num_outputs if weight.block is None else -(-num_outputs // weight.block[0])
    zeros = weight.zero_point
    return weight._replace(
        integers=weight.integers[:num_outputs],
        scale=weight.scale[:scale_rows],
        zero_point=None if zeros is None else zeros[:scale_rows],
    )


def _built(
    kinds: Sequence[type[Any]], weight: Weight, bias: Tensor | None, dtype: torch.dtype
) -> dict[int, nn.Module]:
    """Every kernel that takes the weight, by its place in the list."""
    built: dict[int, nn.Module] = {}
    reasons, is_missing = [], False
    for index, kind in enumerate(kinds):
        try:
            built[index] = kind(weight, bias, dtype)
        except (ValueError, NoKernelError) as error:
            is_missing = is_missing or isinstance(error, NoKernelError)
            reasons.append(str(error))
    if not built:
        raise (NoKernelError if is_missing else ValueError)("; ".join(dict.fromkeys(reasons)))
    return built


def _trial(
    kernels: dict[int, nn.Module], inputs: Sequence[Tensor], weight: Weight, bias: Tensor | None
) -> tuple[int, ...]:
    """The kernel for each row count, by time; without timing where there is but one."""
    with torch.inference_mode():
        faults = {i: _fault(kernel, inputs[0], weight, bias) for i, kernel in kernels.items()}
        for index, fault in faults.items():
            if fault is not None:
                warnings.warn(f"kernel {kernels[index].kernel} is not used: {fault}", stacklevel=2)
        places = [index for index, fault in faults.items() if fault is None]
        if not places:
            raise NoKernelError("; ".join(fault for fault in faults.values() if fault))
        if len(places) == 1:
            return (places[0],) * len(inputs)
        times = [_medians([_timed(kernels[index], x) for index in places]) for x in inputs]
    return tuple(places[index] for index in chosen(times))


def _fault(kernel: nn.Module, x: Tensor, weight: Weight, bias: Tensor | None) -> str | None:
    """Why a kernel cannot be trusted on this machine: it fails, or its product is wrong."""
    few = first_outputs(weight, NUM_CHECKED)
    values = few.float() if isinstance(few, Tensor) else dequantized(few)
    try:
        found = kernel(x)[:, : len(values)].float()
    except Exception as error:  # a compiler, a driver or a library: each has its own kinds
        if is_out_of_memory(error):  # that is no fault of the kernel's
            raise
        return f"{kernel.kernel} fails at {len(x)} rows: {_first_line(error)}"
    wanted = x.float() @ values.T
    wanted = wanted if bias is None else wanted + bias[: len(values)].float()
    if (found - wanted).norm() <= MAX_ERROR * wanted.norm():
        return None
    distance = float((found - wanted).norm() / wanted.norm())
    return f"{kernel.kernel} is {distance:.2f} away from the product at {len(x)} rows"


def _medians(timers: Sequence[Callable[[], float]]) -> list[float]:
    """The median of each timer, in turns so that a disturbance meets all alike.

    What is left far behind is not run again: a trial must not take longer than what it is for.
    """
    samples: list[list[float]] = [[] for _ in timers]
    started = time.perf_counter()
    for index in range(NUM_ROUNDS):
        best = min((min(own) for own in samples if own), default=math.inf)
        racing = [i for i, own in enumerate(samples) if not own or min(own) <= FAR_BEHIND * best]
        is_late = index >= MIN_ROUNDS and time.perf_counter() - started > MAX_SECONDS
        if is_late or (index and len(racing) == 1):
            break
        for i in racing:
            samples[i].append(timers[i]())
    return [statistics.median(own) for own in samples]


def _timed(kernel: nn.Module, x: Tensor) -> Callable[[], float]:
    """What runs the kernel once, warm, and returns its seconds."""
    if x.device.type == "cuda":
        try:
            return GraphTimer(kernel, x)
        except Exception as error:  # what cannot be captured cannot be used for decoding
            warnings.warn(f"kernel {kernel.kernel} is not used: {_first_line(error)}", stacklevel=2)
            return lambda: math.inf
    run = _ready(kernel, x)
    run()
    # In a step, all other weights pass through the caches between two uses of this one.
    is_small = held_bytes(kernel) < CACHE_BYTES
    others = torch.zeros(CACHE_BYTES, dtype=torch.uint8) if is_small else None

    def seconds() -> float:
        if others is not None:
            others.add_(1)
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    return seconds


def _ready(kernel: nn.Module, x: Tensor) -> Callable[[], object]:
    """What runs a kernel on a CPU as the fused mode does."""
    if not isinstance(kernel, FewRowsLinear):
        return partial(kernel, x)
    out = torch.empty(len(x), kernel.out_features)
    return Program([kernel.as_operation(x.float(), out, _bytes)]).run


def _bytes(num_bytes: int) -> Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8)


class GraphTimer:
    """Times a kernel as decoding runs it: in a graph, on weights that no cache holds."""

    def __init__(self, kernel: nn.Module, x: Tensor) -> None:
        cache_bytes = torch.cuda.get_device_properties(x.device).L2_cache_size
        needed = 1 + 2 * cache_bytes // max(1, held_bytes(kernel))
        copies = [copy.deepcopy(kernel) for _ in range(min(needed, CUDA_CALLS) - 1)]
        self.kernels = [kernel, *copies]  # the graph reads their memory
        self.graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream(x.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(stream):  # libraries allocate their workspaces before a capture
            kernel(x)
        torch.cuda.current_stream(x.device).wait_stream(stream)
        with torch.cuda.graph(self.graph):
            for index in range(CUDA_CALLS):
                self.kernels[index % len(self.kernels)](x)
        self()

    def __call__(self) -> float:
        """Seconds of one call."""
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / CUDA_CALLS


def _inputs(num_rows: int, weight: Weight, dtype: torch.dtype, device: torch.device) -> Tensor:
    width = weight.shape[1] if isinstance(weight, Tensor | Codebook) else weight.integers.shape[1]
    generator = torch.Generator().manual_seed(0)
    return torch.randn((num_rows, width), generator=generator).to(device, dtype)


def _moved(weight: Weight, device: torch.device) -> Weight:
    if isinstance(weight, Tensor):
        return weight.detach().to(device)
    if isinstance(weight, Unpacked):
        return Unpacked(*(_on(value, device) for value in weight))
    double = weight.double
    moved = None if double is None else DoubleScale(*(_on(value, device) for value in double))
    return Codebook(*(_on(value, device) for value in weight._replace(double=moved)))


def _on(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _facts(weight: Weight) -> tuple[Any, ...]:
    """What of a weight a kernel's time, or its taking it at all, depends on."""
    if isinstance(weight, Tensor):
        return ("dense", tuple(weight.shape), weight.dtype)
    if isinstance(weight, Codebook):
        return (weight.name, weight.shape, weight.block_size, weight.double is None)
    return (
        tuple(weight.integers.shape),
        weight.integers.dtype,
        tuple(weight.scale.shape),
        weight.group_size,
        weight.block,
        weight.zero_point is None,
        weight.column_order is None,
    )


def _release(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
