"""4-, 8- and 16-bit weights times few rows, by a small C file of this package (AVX2, FMA).

torch's own kernels for these formats are made for AVX-512; without it these take half their time.
The C file is compiled once, by the machine's own compiler, into the user's cache; where there is no
compiler or no AVX2 the kernels are not offered.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from quantdraft.kernels.layout import as_buffer, group_size_of, row_scales, rows_of
from quantdraft.kernels.sealed import seal, sealed_product
from quantdraft.unpacking import Unpacked

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-O3", "-mavx2", "-mfma", "-fno-math-errno", "-fopenmp", "-fPIC", "-c")
BLOCKS = (64, 32)  # 4-bit weights that are unpacked at once; see the C file
INPUT_GROUPS = (128, 64, 32)  # inputs that share a step; the sums of more would leave 32 bits
BF16_MULTIPLE = 16
COMPILE_SECONDS = 120


class Int4FewRowsLinear(nn.Module):
    """4-bit weights in groups, symmetric or not; activations in 16-bit integers a group."""

    kernel = "int4_few_rows_avx2"
    group_sizes = (32, 64, 128, 256)
    number: Tensor
    bias: Tensor | None
    column_order: Tensor | None

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        library = compiled_library()
        self.out_features, self.in_features = weight.integers.shape
        group = group_size_of(weight, self.group_sizes)
        block = next(size for size in BLOCKS if group % size == 0)
        packed = packed_halves(weight.integers, block)
        scale = weight.scale.float().contiguous()
        zero = None
        if weight.zero_point is not None:
            zero = (weight.zero_point + 8).to(torch.uint8).contiguous()
        self.weight_bytes = packed.nbytes + scale.nbytes + (0 if zero is None else zero.nbytes)
        self.register_buffer("bias", as_buffer(bias, torch.float32))
        self.register_buffer("column_order", weight.column_order)

        def product(x: Tensor) -> Tensor:
            out, scratch = torch.empty(len(x), len(packed)), _scratch(library, x, group)
            library.int4_product(
                _at(x), _at(scratch), _at(packed), _at(scale), _at(zero), _at(out),
                len(x), x.shape[1], len(packed), group, torch.get_num_threads(),
            )  # fmt: skip
            return out

        seal(self, product)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in x's float type."""
        return _float_product(self, rows_of(x, self.column_order), x)


class Int8FewRowsLinear(nn.Module):
    """8-bit weights, one scale a row; activations in 16-bit integers a group."""

    kernel = "int8_few_rows_avx2"
    number: Tensor
    bias: Tensor | None

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        library = compiled_library()
        self.out_features, self.in_features = weight.integers.shape
        group = next((size for size in INPUT_GROUPS if self.in_features % size == 0), None)
        if group is None:
            raise ValueError(f"{self.in_features} columns are no multiple of {INPUT_GROUPS[-1]}")
        integers = weight.integers.to(torch.int8).contiguous()
        scale = row_scales(weight).contiguous()
        self.weight_bytes = integers.nbytes + scale.nbytes
        self.register_buffer("bias", as_buffer(bias, torch.float32))

        def product(x: Tensor) -> Tensor:
            out, scratch = torch.empty(len(x), len(integers)), _scratch(library, x, group)
            library.int8_product(
                _at(x), _at(scratch), _at(integers), _at(scale), _at(out),
                len(x), x.shape[1], len(integers), group, torch.get_num_threads(),
            )  # fmt: skip
            return out

        seal(self, product)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in x's float type."""
        return _float_product(self, rows_of(x, None), x)


class Bf16FewRowsLinear(nn.Module):
    """Weights as the checkpoint has them, in bfloat16; inputs and sums in float32."""

    kernel = "bf16_few_rows_avx2"
    weight: Tensor
    number: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        library = compiled_library()
        self.out_features, self.in_features = weight.shape
        if weight.dtype != torch.bfloat16:
            raise ValueError("the weights are not stored in bfloat16")
        if self.in_features % BF16_MULTIPLE:
            raise ValueError(f"{self.in_features} columns are no multiple of {BF16_MULTIPLE}")
        values = weight.detach().contiguous()
        self.register_buffer("weight", values)
        self.weight_bytes = values.nbytes
        self.register_buffer("bias", as_buffer(bias, torch.float32))

        def product(x: Tensor) -> Tensor:
            out, scratch = torch.empty(len(x), len(values)), torch.empty_like(x)
            library.bf16_product(
                _at(x), _at(scratch), _at(values), _at(out),
                len(x), x.shape[1], len(values), torch.get_num_threads(),
            )  # fmt: skip
            return out

        seal(self, product)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in x's float type."""
        return _float_product(self, rows_of(x, None), x)


def packed_halves(integers: Tensor, block: int) -> Tensor:
    """(out, in) int8 in -8..7 to (out, in / 2) uint8: see the C file for the order."""
    places = (integers + 8).to(torch.uint8).view(len(integers), -1, block // 16, 16)
    words = [places[:, :, i] | places[:, :, i + 1] << 4 for i in range(0, block // 16, 2)]
    return torch.stack(words, dim=-1).flatten(1).contiguous()


@lru_cache(maxsize=1)
def compiled_library() -> ctypes.CDLL:
    """The C file's functions; ValueError says what this machine lacks for them."""
    capabilities = torch.cpu.get_capabilities()
    if not (capabilities.get("avx2") and capabilities.get("fma3", capabilities.get("fma", True))):
        raise ValueError("this CPU has no AVX2 and FMA")
    _share_threads()
    library = ctypes.CDLL(str(_built()))
    long, pointer = ctypes.c_long, ctypes.c_void_p
    library.scratch_bytes.argtypes, library.scratch_bytes.restype = [long] * 3, long
    for name, pointers, longs in (("int4", 6, 4), ("int8", 5, 4), ("bf16", 4, 3)):
        product = getattr(library, f"{name}_product")
        product.argtypes = [pointer] * pointers + [long] * longs + [ctypes.c_int]
        product.restype = None
    return library


def _built() -> Path:
    """The shared library, compiled unless this very source was before."""
    source = SOURCE.read_bytes()
    digest = hashlib.sha256(source + " ".join(FLAGS).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quantdraft"
    path = cache / f"few_rows-{digest}.so"
    if path.is_file():
        return path
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise ValueError("there is no C compiler (cc, gcc or $CC) to build it with")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as directory:
            made, linked = Path(directory) / "few_rows.o", Path(directory) / "few_rows.so"
            _run([compiler, *FLAGS, str(SOURCE), "-o", str(made)])
            # Without -fopenmp: its functions are to come from the threads that torch runs.
            _run([compiler, "-shared", str(made), "-o", str(linked)])
            linked.replace(path)
    except OSError as error:
        raise ValueError(f"it could not be built: {error}") from error
    return path


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        text = getattr(error, "stderr", None) or b"it took too long"
        raise ValueError(f"the C compiler failed: {text.decode(errors='replace')[:200]}") from error


def _share_threads() -> None:
    """Make torch's OpenMP visible: a second pool of threads would fight it for the cores."""
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    runtimes = [
        path for path in loaded if Path(path).name.startswith(("libgomp", "libomp", "libiomp5"))
    ]
    if not runtimes:
        raise ValueError("this build of torch has no OpenMP to share")
    ctypes.CDLL(sorted(runtimes)[0], ctypes.RTLD_GLOBAL)


def _scratch(library: ctypes.CDLL, x: Tensor, group: int) -> Tensor:
    """Where a product with integers puts its inputs as integers."""
    num_bytes = library.scratch_bytes(len(x), x.shape[1], group)
    return torch.empty(num_bytes, dtype=torch.uint8)


def _float_product(
    module: Int4FewRowsLinear | Int8FewRowsLinear | Bf16FewRowsLinear, flat: Tensor, x: Tensor
) -> Tensor:
    out = sealed_product(flat.float().contiguous(), module.number, module.out_features)
    out = out if module.bias is None else out + module.bias
    return out.to(x.dtype).reshape(*x.shape[:-1], module.out_features)


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
