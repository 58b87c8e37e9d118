"""Hold one trial: time the kernels of a weight in turns, at some numbers of rows."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from quantdraft.checkpoints.tensors.unpacking import Codebook, Unpacked, dequantize
from quantdraft.engines.kernels.book import HOPELESS, Timing, Vote
from quantdraft.engines.kernels.few_rows import FewRowsLinear, allocate_bytes
from quantdraft.engines.kernels.graphs import captured, is_recorded, run_unrecorded
from quantdraft.engines.kernels.operations import Program, operations_fault
from quantdraft.errors import NoKernelError, first_line, is_out_of_memory

Weight = Unpacked | Codebook | Tensor

NUM_ROUNDS = 3  # of a trial; the trials of one question are several
FAR_BEHIND = 2.5  # times the fastest, after two rounds: no disturbance of one explains that
# Of a product: rounding inputs to 8 bits costs 0.03 at most, a wrong kernel about 1.
MAX_ERROR = 0.1
CACHE_BYTES = 32 * 2**20  # more than a core's share of a CPU's caches
NUM_CHECKED = 256  # outputs of a weight that are compared
CUDA_CALLS = 32  # per captured graph: its launch is then a small part of the time


@dataclass(frozen=True)
class Question:
    """A weight's shape and format whose kernels are to be compared, at its numbers of rows."""

    kinds: tuple[type[Any], ...]
    weight: Weight  # its first outputs
    bias: Tensor | None
    dtype: torch.dtype
    device: torch.device
    counts: tuple[int, ...]
    name: str

    def at(self, num_rows: int) -> str:
        """Return the question at one number of rows, as the book has it."""
        return f"{self.name} x {num_rows}"

    @property
    def names(self) -> list[str]:
        """The question at each of its numbers of rows."""
        return [self.at(count) for count in self.counts]


def trial(question: Question) -> dict[int, Vote]:
    """Time every kernel that takes the weight, at each number of rows; nothing where one is alone.

    A kernel that is wrong, that fails or that no CUDA graph can hold is left out from that number
    of rows on, with a warning; one that is far behind at few rows is not run with more. Raises
    NoKernelError or ValueError where none is left.
    """
    racing = _build_kernels(question)
    few = _first_values(question)
    votes: dict[int, Vote] = {}
    with torch.inference_mode():
        for count in sorted(question.counts):
            x = _inputs(count, question)
            racing = _check_kernels(racing, x, few, question.bias)
            seconds = _race(racing, x)
            votes[count] = {n: Timing(s, held_bytes(racing[n])) for n, s in seconds.items()}
            least = min(seconds.values())
            racing = {n: racing[n] for n, s in seconds.items() if s <= HOPELESS * least}
    if question.device.type == "cuda":
        torch.cuda.empty_cache()
    return votes


def held_bytes(kernel: nn.Module) -> int:
    """Return a kernel's `weight_bytes`."""
    return int(kernel.weight_bytes)  # type: ignore[arg-type]


def first_outputs(weight: Weight, num_outputs: int) -> Weight:
    """Return a weight's first rows; all of a Codebook whose blocks run across rows."""
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


def _first_values(question: Question) -> Tensor:
    """Return the first outputs' weights as floats: what every product is held against."""
    few = first_outputs(question.weight, NUM_CHECKED)
    return few.float() if isinstance(few, Tensor) else dequantize(few)


def _check_kernels(
    kernels: Mapping[str, nn.Module], x: Tensor, few: Tensor, bias: Tensor | None
) -> dict[str, nn.Module]:
    """Return the kernels whose product is right on this machine, at x's number of rows."""
    wanted = x.float() @ few.T
    wanted = wanted if bias is None else wanted + bias[: len(few)].float()
    faults = {name: _find_fault(kernel, x, wanted) for name, kernel in kernels.items()}
    for name, fault in faults.items():
        if fault is not None:
            warnings.warn(f"kernel {kernels[name].kernel} is not used: {fault}", stacklevel=2)
    sound = {name: kernel for name, kernel in kernels.items() if faults[name] is None}
    if not sound:
        raise NoKernelError("; ".join(fault for fault in faults.values() if fault))
    return sound


def _build_kernels(question: Question) -> dict[str, nn.Module]:
    """Build every kernel that takes the weight, by name; what a library fails with is said."""
    built: dict[str, nn.Module] = {}
    reasons, is_missing = [], False
    for kind in question.kinds:
        try:
            built[kind.__name__] = kind(question.weight, question.bias, question.dtype)
        except (ValueError, NoKernelError) as error:
            is_missing = is_missing or isinstance(error, NoKernelError)
            reasons.append(str(error))
        except Exception as error:  # a compiler, a driver or a library: each has its own kinds
            if is_out_of_memory(error):  # that is no fault of the kernel's
                raise
            name = getattr(kind, "kernel", kind.__name__)
            reasons.append(f"{name} cannot be built: {first_line(error)}")
            warnings.warn(f"kernel {name} is not used: {reasons[-1]}", stacklevel=2)
            is_missing = True
    if not built:
        raise (NoKernelError if is_missing else ValueError)("; ".join(dict.fromkeys(reasons)))
    return built


def _find_fault(kernel: nn.Module, x: Tensor, wanted: Tensor) -> str | None:
    """Return why a kernel is not used on this machine: it fails, or its product is wrong."""
    try:
        found = kernel(x)[:, : wanted.shape[1]].float()
    except Exception as error:  # a compiler, a driver or a library: each has its own kinds
        if is_out_of_memory(error):  # that is no fault of the kernel's
            raise
        return f"{kernel.kernel} fails at {len(x)} rows: {first_line(error)}"
    if (found - wanted).norm() <= MAX_ERROR * wanted.norm():
        return None
    distance = float((found - wanted).norm() / wanted.norm())
    return f"{kernel.kernel} is {distance:.2f} away from the product at {len(x)} rows"


def _race(kernels: Mapping[str, nn.Module], x: Tensor) -> dict[str, float]:
    """Return the least seconds of each kernel that can be timed at x's rows; 0 of one alone.

    On a GPU a kernel alone is recorded all the same: decoding will record it.
    """
    if len(kernels) == 1 and not is_recorded(x.device):
        return dict.fromkeys(kernels, 0.0)
    timers: dict[str, Callable[[], float]] = {}
    faults = []
    for name, kernel in kernels.items():
        try:
            timers[name] = _make_timer(kernel, x)
        except Exception as error:  # a driver or a library: each has its own kinds
            if is_out_of_memory(error):  # that is no fault of the kernel's
                raise
            what = "cannot be part of a CUDA graph" if is_recorded(x.device) else "fails"
            faults.append(f"{kernel.kernel} {what} at {len(x)} rows: {first_line(error)}")
            warnings.warn(f"kernel {kernel.kernel} is not used: {faults[-1]}", stacklevel=2)
    if not timers:
        raise NoKernelError("; ".join(faults))
    return dict.fromkeys(timers, 0.0) if len(kernels) == 1 else least_seconds(timers)


def least_seconds(timers: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """Return the least seconds of each timer, run in turns so that a disturbance affects all.

    A kernel that is far behind is not run again: trials must take less time than they save.
    """
    least = dict.fromkeys(timers, math.inf)
    for number in range(NUM_ROUNDS):
        limit = (HOPELESS if number < 2 else FAR_BEHIND) * min(least.values())
        for name in [name for name in timers if number == 0 or least[name] <= limit]:
            least[name] = min(least[name], timers[name]())
    return least


def _make_timer(kernel: nn.Module, x: Tensor) -> Callable[[], float]:
    """Return a function that runs the warm kernel once and returns its seconds."""
    if is_recorded(x.device):
        return GraphTimer(kernel, x)
    run = _prepare_run(kernel, x)
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


def _prepare_run(kernel: nn.Module, x: Tensor) -> Callable[[], object]:
    """Return a function that runs a kernel as a fused pass does, between float32 activations."""
    given = x.float()
    if isinstance(kernel, FewRowsLinear):
        out = torch.empty(len(x), kernel.out_features)
        return Program([kernel.as_operation(given, out, allocate_bytes)]).run
    if operations_fault() is not None:
        return partial(kernel, x)
    out = torch.empty_like(kernel(x), dtype=torch.float32)
    return lambda: out.copy_(kernel(given.to(x.dtype)))


class GraphTimer:
    """Times a kernel as decoding runs it: in a graph, with weights that are in no cache."""

    def __init__(self, kernel: nn.Module, x: Tensor) -> None:
        cache_bytes = torch.cuda.get_device_properties(x.device).L2_cache_size
        needed = 1 + 2 * cache_bytes // max(1, held_bytes(kernel))
        copies = [copy.deepcopy(kernel) for _ in range(min(needed, CUDA_CALLS) - 1)]
        self.kernels = [kernel, *copies]  # the graph reads their memory
        self.graph = torch.cuda.CUDAGraph()
        run_unrecorded(lambda: kernel(x))
        with captured(self.graph):
            for index in range(CUDA_CALLS):
                self.kernels[index % len(self.kernels)](x)
        self()

    def __call__(self) -> float:
        """Return the seconds of one call."""
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / CUDA_CALLS


def _inputs(num_rows: int, question: Question) -> Tensor:
    weight = question.weight
    width = weight.shape[1] if isinstance(weight, Tensor | Codebook) else weight.integers.shape[1]
    generator = torch.Generator().manual_seed(0)
    return torch.randn((num_rows, width), generator=generator).to(question.device, question.dtype)
