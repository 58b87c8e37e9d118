"""4- and 8-bit weights times few rows, by a small C file of this package (AVX2, FMA).

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
BLOCK = 32  # weights that are unpacked at once
INPUT_GROUPS = (128, 64, 32)  # inputs that share a step; the sums of more would leave 32 bits
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
        packed = packed_halves(weight.integers)
        scale = weight.scale.float().contiguous()
        offset = None
        if weight.zero_point is not None:
            offset = ((weight.zero_point.float() + 8) * scale).contiguous()
        self.weight_bytes = packed.nbytes + scale.nbytes * (1 if offset is None else 2)
        self.register_buffer("bias", as_buffer(bias, torch.float32))
        self.register_buffer("column_order", weight.column_order)

        def product(x: Tensor) -> Tensor:
            out = torch.empty(len(x), len(packed))
            q, step, sums = _to_int16(library, x, group)
            library.int4_product(
                _at(q), _at(step), _at(sums), _at(packed), _at(scale), _at(offset), _at(out),
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
            raise ValueError(f"{self.in_features} columns are no multiple of {BLOCK}")
        integers = weight.integers.to(torch.int8).contiguous()
        scale = row_scales(weight).contiguous()
        self.weight_bytes = integers.nbytes + scale.nbytes
        self.register_buffer("bias", as_buffer(bias, torch.float32))

        def product(x: Tensor) -> Tensor:
            out = torch.empty(len(x), len(integers))
            q, step, _ = _to_int16(library, x, group)
            library.int8_product(
                _at(q), _at(step), _at(integers), _at(scale), _at(out),
                len(x), x.shape[1], len(integers), group, torch.get_num_threads(),
            )  # fmt: skip
            return out

        seal(self, product)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in x's float type."""
        return _float_product(self, rows_of(x, None), x)


def packed_halves(integers: Tensor) -> Tensor:
    """(out, in) int8 in -8..7 to (out, in / 2) uint8: see the C file for the order."""
    blocks = (integers + 8).to(torch.uint8).view(len(integers), -1, 2, BLOCK // 2)
    return (blocks[:, :, 0] | blocks[:, :, 1] << 4).flatten(1).contiguous()


@lru_cache(maxsize=1)
def compiled_library() -> ctypes.CDLL:
    """The C file's functions; ValueError says what this machine lacks for them."""
    capabilities = torch.cpu.get_capabilities()
    if not (capabilities.get("avx2") and capabilities.get("fma3", capabilities.get("fma", True))):
        raise ValueError("this CPU has no AVX2 and FMA")
    _share_threads()
    library = ctypes.CDLL(str(_built()))
    long, pointer = ctypes.c_long, ctypes.c_void_p
    library.to_int16.argtypes = [pointer] * 4 + [long] * 2
    library.int4_product.argtypes = [pointer] * 7 + [long] * 4 + [ctypes.c_int]
    library.int8_product.argtypes = [pointer] * 5 + [long] * 4 + [ctypes.c_int]
    for function in (library.to_int16, library.int4_product, library.int8_product):
        function.restype = None
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


def _to_int16(library: ctypes.CDLL, x: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """x as integers, (rows, in) int16, with each group's step and sum, (rows, groups) float32."""
    q = torch.empty(x.shape, dtype=torch.int16)
    step, sums = torch.empty(2, len(x), x.shape[1] // group)
    library.to_int16(_at(x), _at(q), _at(step), _at(sums), x.numel(), group)
    return q, step, sums


def _float_product(
    module: Int4FewRowsLinear | Int8FewRowsLinear, flat: Tensor, x: Tensor
) -> Tensor:
    out = sealed_product(flat.float().contiguous(), module.number, module.out_features)
    out = out if module.bias is None else out + module.bias
    return out.to(x.dtype).reshape(*x.shape[:-1], module.out_features)


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
