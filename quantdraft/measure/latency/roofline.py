"""The most that the machine can do: memory bandwidth and matrix rate, measured beside the steps.

A draft step at batch 1 reads every weight once and computes little, so memory is its limit; at
large batches the matrix rate is. Nothing is judged here.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from quantdraft.measure.latency.interleaved import synchronize
from quantdraft.record import Roofline

# Several times the last-level cache of any processor here, and small beside a model's weights.
BUFFER_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}
NUM_PASSES = 12
NUM_WARMUP_PASSES = 2
# A float type without instructions may be a thousand times slower than one with them: sizes grow
# from here for as long as the next is expected to end in time.
FIRST_SIZE, LAST_SIZE = 128, {"cpu": 2048, "cuda": 8192}
MAX_MATRIX_S = 0.8
READ_ROW = 4096  # columns of the matrix that is read as a matrix-vector product

Product = Callable[[], object]


def measure_roofline(device: torch.device, dtypes: Sequence[str] | None = None) -> Roofline:
    """Measure copy and read bandwidth, and the matrix rate of each type; 2 to 5 s on a CPU.

    Copy bandwidth is `b.copy_(a)` between two buffers, bytes read plus bytes written over the time.
    (A CPU may fetch a line before it overwrites it; those reads are not counted, as they are not
    in the usual copy benchmarks.) Read bandwidth is the faster of a float32 sum and a float32
    matrix-vector product over one buffer: the second is what a step does. Both take the best of
    NUM_PASSES, threads as torch has them set.

    dtypes: names in torch, or "float8" and "int8" for the products that quantized layers are made
    of; a type without a product on this device is left out
    """
    num_bytes = _buffer_bytes(device)
    copies, reads = _bandwidths(device, num_bytes)
    rates = {name: _matrix_rate(name, device) for name in dtypes or default_dtypes(device)}
    return Roofline(
        copy_bytes_per_s=max(copies),
        read_bytes_per_s=max(reads),
        matrix_flops_per_s={name: rate for name, rate in rates.items() if rate is not None},
        copy_samples_bytes_per_s=tuple(copies),
        read_samples_bytes_per_s=tuple(reads),
        buffer_bytes=num_bytes,
        num_threads=torch.get_num_threads(),
    )


def default_dtypes(device: torch.device) -> tuple[str, ...]:
    """Return the types that drafts are computed in on a device."""
    if device.type == "cpu":
        return ("float32", "bfloat16", "int8")
    return ("bfloat16", "int8", "float8")


def _buffer_bytes(device: torch.device) -> int:
    wanted = BUFFER_BYTES.get(device.type, BUFFER_BYTES["cpu"])
    if device.type != "cuda":
        return wanted
    free, _ = torch.cuda.mem_get_info(device)
    return min(wanted, free // 8)


def _bandwidths(device: torch.device, num_bytes: int) -> tuple[list[float], list[float]]:
    """Measure bytes per second of every copy, and of every read of the faster kind."""
    rows = num_bytes // (4 * READ_ROW)
    source = torch.randn(READ_ROW, device=device).repeat(rows, 1)
    copy, vector = torch.empty_like(source), torch.ones(READ_ROW, device=device)
    size = source.nbytes
    copies = _timed(lambda: copy.copy_(source), device)
    sums = _timed(source.sum, device)
    products = _timed(lambda: torch.mv(source, vector), device)
    reads = min(sums, products, key=min)
    return [2 * size / seconds for seconds in copies], [size / seconds for seconds in reads]


def _timed(work: Product, device: torch.device) -> list[float]:
    for _ in range(NUM_WARMUP_PASSES):
        work()
    return [_seconds(work, device) for _ in range(NUM_PASSES)]


def _seconds(work: Product, device: torch.device) -> float:
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


def _matrix_rate(name: str, device: torch.device) -> float | None:
    """Measure operations per second (2 n³ a product) of the best size; None: no such product."""
    best, size, spent = 0.0, FIRST_SIZE, 0.0
    while size <= LAST_SIZE.get(device.type, LAST_SIZE["cpu"]):
        try:
            work = _square_product(name, size, device)
            work()  # the first call chooses and loads a kernel, which may take a second: not timed
            synchronize(device)
        except (RuntimeError, ValueError, AttributeError):
            return None if best == 0 else best
        samples = [_seconds(work, device) for _ in range(3)]
        best = max(best, 2 * size**3 / min(samples))
        spent += sum(samples)
        if spent + 8 * 3 * min(samples) > MAX_MATRIX_S:  # the next size takes 8 times as long
            break
        size *= 2
    return best


def _square_product(name: str, size: int, device: torch.device) -> Product:
    if name == "int8":
        return _int8_product(size, device)
    if name == "float8":
        return _float8_product(size, device)
    dtype: torch.dtype = getattr(torch, name)
    left, right = (_random(size, device).to(dtype) for _ in range(2))
    return lambda: left @ right


def _random(size: int, device: torch.device) -> Tensor:
    """Return random numbers: of ones and zeros a card computes faster, with less power."""
    return torch.randn(size, size, device=device)


def _random_bytes(size: int, device: torch.device) -> Tensor:
    return torch.randint(-127, 128, (size, size), dtype=torch.int8, device=device)


def _int8_product(size: int, device: torch.device) -> Product:
    """Return a product of bytes into 32 bits, as in W8A8 layers; on a CPU with a scale."""
    if device.type == "cpu":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            weight = torch._make_per_tensor_quantized_tensor(_random_bytes(size, device), 0.01, 0)
            packed = torch.ops.quantized.linear_prepack(weight, None)
        rows = _random(size, device)
        return lambda: torch.ops.quantized.linear_dynamic(rows, packed, True)
    left, right = _random_bytes(size, device), _random_bytes(size, device).t()
    return lambda: torch._int_mm(left, right)


def _float8_product(size: int, device: torch.device) -> Product:
    """Return an FP8 product (compute capability 8.9 and above); `right` is column-major."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise NotImplementedError("no float8 product on this device")
    left, right = (_random(size, device).to(torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), device=device)
    return lambda: torch._scaled_mm(left, right.t(), one, one, out_dtype=torch.bfloat16)
