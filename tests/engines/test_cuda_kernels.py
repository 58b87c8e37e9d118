"""CUDA kernels: layouts are checked anywhere, products on a GPU, Triton's in its interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from quantdraft.checkpoints.formats import SCHEMES
from quantdraft.checkpoints.tensors.rounding import round_inputs
from quantdraft.checkpoints.tensors.unpacking import Codebook, Unpacked, dequantize
from quantdraft.engines.kernels import KERNELS, cuda, humming, marlin, vllm_products
from quantdraft.engines.kernels.bitsandbytes import LlmInt8Linear
from quantdraft.engines.kernels.choice import fastest_linear
from quantdraft.engines.kernels.cpu import tinygemm_scales
from quantdraft.engines.kernels.cuda import Int4TinygemmLinear
from quantdraft.engines.kernels.linear import pad_matrix
from quantdraft.errors import NoKernelError
from tests.engines.weights import FP8, random_weight

IN, OUT = 1024, 256


def test_adjacent_pairs_put_the_even_column_in_the_high_half():
    assert cuda.pack_adjacent_pairs(torch.tensor([[-8, 7, 1, 2]])).tolist() == [[15, 9 << 4 | 10]]


def test_tinygemm_scales_give_the_weight_back():
    weight = random_weight("int4", has_zero=True)
    scale, zero = tinygemm_scales(weight, 8).unbind(-1)  # (groups, out)
    steps = weight.integers.float().view(OUT, -1, 128)  # u - 8
    values = steps * scale.T[:, :, None] + zero.T[:, :, None]
    assert torch.allclose(values.view(OUT, IN), dequantize(weight), atol=1e-6)


def test_padding_adds_zeros_below_and_to_the_right():
    assert pad_matrix(torch.ones(2, 3), 4, 2).tolist() == [[1, 1, 1, 0]] * 2 + [[0, 0, 0, 0]] * 2


@pytest.mark.parametrize("dtype", [torch.int8, FP8])
def test_rounded_rows_are_what_the_scheme_says(dtype):
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    rounded, step = cuda.round_rows(x, dtype)
    wanted = round_inputs(x, SCHEMES["W8A8" if dtype == torch.int8 else "FP8_DYNAMIC"])
    assert rounded.dtype == dtype
    assert torch.allclose(rounded.float() * step, wanted, atol=1e-6)


def test_a_row_of_zeros_stays_zero():
    rounded, step = cuda.round_rows(torch.zeros(1, 16), FP8)
    assert not (rounded.float() * step).any()


# Widths of which a 128th is 1, 7 (Qwen2.5's 896), 8, and 38: multiples of four, and others.
META_SHAPES = [(128, 128), (896, 256), (1024, 384), (4864, 896)]
# Their operators have tests of their own: test_marlin, test_vllm_products, test_humming.
OTHER_LIBRARIES = {module.__name__ for module in (humming, marlin, vllm_products)}
META_KINDS = sorted(
    {
        (fmt, kind)
        for (device, fmt), kinds in KERNELS.items()
        for kind in kinds
        # Triton compiles for a device; a build without CUDA cannot lay tinygemm's weights out.
        if device == "cuda"
        and "Triton" not in kind.__name__
        and kind is not Int4TinygemmLinear
        and kind.__module__ not in OTHER_LIBRARIES
    },
    key=lambda pair: (pair[0], pair[1].__name__),
)


@pytest.fixture
def any_capability(monkeypatch):
    """Kernels take a weight on any device: their shapes, strides and types are what is tried."""
    for name in ("require_capability", "require_block_scaling"):
        monkeypatch.setattr(cuda, name, lambda *_: None)


def on_meta(fmt: str, columns: int, outputs: int) -> Any:
    if fmt == "dense":
        return torch.empty((outputs, columns), dtype=torch.bfloat16, device="meta")
    if fmt in {"nf4", "fp4"}:
        packed, table = torch.zeros(outputs, columns // 2, dtype=torch.uint8), torch.zeros(16)
        scale = torch.zeros(outputs * columns // 64)
        tensors = [each.to("meta") for each in (packed, table, scale)]
        return Codebook(*tensors, 64, None, fmt)
    weight = random_weight(fmt, columns, outputs)
    return Unpacked(*(v.to("meta") if isinstance(v, torch.Tensor) else v for v in weight))


@pytest.mark.parametrize(("fmt", "kind"), META_KINDS)
def test_every_library_takes_every_number_of_rows(any_capability, fmt, kind):
    """Meta tensors pass the library's own checks of shapes and strides, and cannot be read."""
    if kind is LlmInt8Linear:
        pytest.skip("reads its inputs on the host: the next test")
    for columns, outputs in META_SHAPES:
        weight = on_meta(fmt, columns, outputs)
        bias = torch.empty(outputs, device="meta")
        kernel = kind(weight, bias, torch.bfloat16)
        for rows in (1, 2, 5, 17, 64):
            x = torch.empty((rows, columns), dtype=torch.bfloat16, device="meta")
            out = kernel(x)
            assert (out.shape, out.dtype) == ((rows, outputs), torch.bfloat16)


def test_llm_int8_reads_its_inputs_on_the_host(any_capability):
    pytest.importorskip("bitsandbytes")
    kernel = LlmInt8Linear(on_meta("llm-int8", 1024, 256), None, torch.bfloat16)
    with pytest.raises(RuntimeError):
        kernel(torch.empty((1, 1024), dtype=torch.bfloat16, device="meta"))


def test_scales_of_blocks_are_padded_to_four_columns(any_capability):
    weight = random_weight("fp8-block", 896, 256)
    kernel = cuda.Fp8BlockLinear(weight, None, torch.bfloat16)
    assert kernel.scale.shape == (2, 8)
    assert torch.equal(kernel.scale[:, :7], weight.scale)
    assert not kernel.scale[:, 7:].any()


@pytest.mark.parametrize("fmt", ["fp8", "fp8-block", "int8", "int4"])
def test_without_a_gpu_the_kernels_say_so(fmt):
    for kernel in KERNELS["cuda", fmt]:
        with pytest.raises(NoKernelError, match="needs a CUDA device"):
            kernel(random_weight(fmt), None, torch.bfloat16)


INTERPRETED = """
import torch
from quantdraft.engines.kernels import triton_products as products
from quantdraft.engines.kernels.dequantizing import pack_halves
from quantdraft.checkpoints.tensors.unpacking import dequantize
from quantdraft.checkpoints.tensors.rounding import round_inputs
from quantdraft.checkpoints.formats import SCHEMES
from tests.engines.weights import FP8, random_weight

for fmt, scheme in (("int8", "W8A8"), ("fp8", "FP8_DYNAMIC")):
    weight = random_weight(fmt, columns=1040, outputs=37)
    x = torch.randn(3, 1040, generator=torch.Generator().manual_seed(1))
    if fmt == "fp8":  # the interpreter rounds to FP8 wrongly (126 to 64): FP8 values as they are
        x = (x * 100).to(FP8).float()
        x[:, 7] = 448.0
    rounded = round_inputs(x, SCHEMES[scheme])
    dtype = weight.integers.dtype
    values, step = products.round_rows_by_triton(x, dtype)
    assert torch.allclose(values.float() * step, rounded, atol=1e-5), fmt
    out = products.byte_product(x, weight.integers, weight.scale[:, 0].contiguous())
    wanted = rounded @ dequantize(weight).T
    assert float((out - wanted).norm() / wanted.norm()) < 1e-4, fmt
    if fmt == "int8":
        scale = weight.scale[:, 0].contiguous()
        out = products.byte_product(x, weight.integers, scale, rounds_inputs=False)
        wanted = x @ dequantize(weight).T
        assert float((out - wanted).norm() / wanted.norm()) < 1e-5, "weight only"
for has_zero in (False, True):
    weight = random_weight("int4", columns=2560, outputs=37, has_zero=has_zero)
    x = torch.randn(3, 2560, generator=torch.Generator().manual_seed(1))
    halves = pack_halves(weight.integers)
    out = products.nibble_product(x, halves, weight.scale, weight.zero_point, 128)
    wanted = x @ dequantize(weight).T
    assert float((out - wanted).norm() / wanted.norm()) < 1e-5, has_zero
print("equal")
"""


@pytest.mark.triton
def test_triton_kernels_give_the_products_under_their_interpreter():
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.stdout.strip() == "equal", done.stderr


# What a product may differ by, relative: bf16 rounds inputs or scales and output, 3 * 2**-9; int4
# with zero points twice that (tests/engines/test_kernels.py). 8-bit activations are rounded in the
# reference too, so that only the output's rounding and the tensor cores' accumulation remain.
TOLERANCE = 2e-2


SCHEME = {"fp8": "FP8_DYNAMIC", "fp8-block": "FP8_BLOCK", "int8": "W8A8"}
ROWS = (*range(1, 18), 64)
FORMATS = ("dense", "fp8", "fp8-block", "int8", "int4", "int8-weight-only")
PACKINGS = [(fmt, kind) for fmt in FORMATS for kind in KERNELS["cuda", fmt]]


@dataclass(frozen=True)
class Shape:
    """A weight's sizes, and what a kernel may refuse: it then says why, and the test is skipped."""

    columns: int
    outputs: int
    group_size: int = 128
    has_zero: bool = False
    is_ordered: bool = False
    may_be_refused: bool = True


SHAPES = [Shape(1024, 256, may_be_refused=False), Shape(2048, 1000), Shape(896, 4864)]
FOUR_BIT_SHAPES = [
    *SHAPES,
    *(Shape(2048, 256, *each) for each in product((32, 64, 128, 256), (False, True))),
    *(Shape(2048, 256, size, is_ordered=True) for size in (32, 64, 128)),
]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("fmt", "kind", "shape"),
    [
        pytest.param(fmt, kind, shape, id=f"{kind.__name__}-{number}")
        for fmt, kind in PACKINGS
        for number, shape in enumerate(FOUR_BIT_SHAPES if fmt == "int4" else SHAPES)
    ],
)
def test_every_cuda_kernel_equals_the_dequantized_product(fmt, kind, shape):
    weight = weight_of(fmt, shape)
    generator = torch.Generator().manual_seed(1)
    bias = torch.randn(shape.outputs, generator=generator).cuda()
    try:
        kernel = kind(weight, bias, torch.bfloat16)
    except NoKernelError as error:  # a package, a compiler or a capability that is not there
        pytest.skip(str(error))
    except ValueError as error:
        if not shape.may_be_refused:
            raise
        pytest.skip(str(error))
    values = weight.float() if isinstance(weight, torch.Tensor) else dequantize(weight)
    errors = {}
    for rows in ROWS:
        x = torch.randn((rows, shape.columns), generator=generator).to("cuda", torch.bfloat16)
        found = kernel(x)
        inputs = round_inputs(x.float(), SCHEMES[SCHEME[fmt]]) if fmt in SCHEME else x.float()
        wanted = inputs @ values.T + bias
        assert (found.dtype, found.shape) == (torch.bfloat16, wanted.shape)
        errors[rows] = float((found.float() - wanted).norm() / wanted.norm())
    assert max(errors.values()) < TOLERANCE, errors


def weight_of(fmt: str, shape: Shape) -> Any:
    """A random weight of a format on the GPU."""
    if fmt == "dense":
        return torch.randn((shape.outputs, shape.columns)).to("cuda", torch.bfloat16)
    if fmt == "fp8-block" and shape.outputs % 128:
        pytest.skip("blocks of 128 outputs")
    given = (shape.columns, shape.outputs, shape.has_zero, shape.group_size, shape.is_ordered)
    return on_gpu(random_weight(fmt, *given))


@pytest.mark.gpu
@pytest.mark.parametrize("fmt", ["dense", "fp8", "int8", "int4", "int8-weight-only"])
def test_the_chosen_kernel_is_right_inside_a_graph(fmt):
    weight = random_weight("int8" if fmt == "dense" else fmt.removesuffix("-weight-only"))
    values = dequantize(weight).cuda()
    given = values.cpu() if fmt == "dense" else weight
    device = torch.device("cuda", 0)
    module = fastest_linear(given, None, fmt, torch.bfloat16, device, (1, 5, 64))
    x = torch.zeros(5, IN, dtype=torch.bfloat16, device="cuda")
    with torch.inference_mode():
        module(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = module(x)
        x.copy_(torch.randn(5, IN))
        graph.replay()
        wanted = x.float() @ values.float().T
    # Rounded activations cost 0.03 in FP8 (3 mantissa bits: 2**-4 / sqrt(3) at most, uniform).
    assert float((out.float() - wanted).norm() / wanted.norm()) < 0.04


@pytest.mark.gpu
def test_the_triton_rounding_equals_torchs_own():
    x = torch.randn(5, 3000, device="cuda", dtype=torch.bfloat16)
    for dtype in (torch.int8, FP8):
        found, step = cuda.round_rows(x, dtype)
        wanted, wanted_step = cuda.round_rows_by_torch(x, dtype)
        assert torch.allclose(step, wanted_step)
        # Ties between two levels may fall either way.
        assert float((found.float() != wanted.float()).float().mean()) < 0.01


@pytest.mark.gpu
def test_nf4_equals_the_dequantized_product_on_a_gpu():
    functional = pytest.importorskip("bitsandbytes.functional")
    values = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0)).cuda()
    packed, state = functional.quantize_4bit(values, quant_type="nf4")
    weight = Codebook(
        packed.reshape(OUT, -1), state.code, state.absmax, state.blocksize, None, "nf4"
    )
    device = torch.device("cuda", 0)
    module = fastest_linear(weight, None, "nf4", torch.bfloat16, device, (1, 16))
    x = torch.randn(4, IN, device="cuda", dtype=torch.bfloat16)
    wanted = x.float() @ functional.dequantize_4bit(packed, state).float().T
    assert float((module(x).float() - wanted).norm() / wanted.norm()) < TOLERANCE


def on_gpu(weight: Unpacked) -> Unpacked:
    return Unpacked(*(v.cuda() if isinstance(v, torch.Tensor) else v for v in weight))
