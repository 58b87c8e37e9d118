"""Humming's adapter, on functions that stand for the library's: its code runs on a GPU alone."""

from __future__ import annotations

import copy
import json
import os
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch

from quantdraft.checkpoints.tensors.unpacking import dequantize
from quantdraft.engines.kernels import cpu, humming, trials
from quantdraft.engines.kernels.humming import (
    Humming,
    Int4HummingLinear,
    Int8WeightOnlyHummingLinear,
)
from quantdraft.engines.kernels.trials import Question, trial
from quantdraft.errors import NoKernelError
from tests.engines.weights import random_weight

TOLERANCE = 2 * 2**-8  # bfloat16 rounds scales and the result


class Config:
    """What the library makes of a weight; holds something that no copy can be made of."""

    def __init__(self, **facts) -> None:
        self.__dict__ = facts

    def to_str(self) -> str:
        return "the configuration"

    def __deepcopy__(self, memo):
        raise TypeError("cannot pickle")


def unpack_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """(n, k * bits / 32) words to (n, k) numbers; the first number in the lowest bits."""
    places = torch.arange(32 // bits) * bits
    unsigned = ((words.to(torch.int64) & 0xFFFFFFFF)[:, :, None] >> places) & (2**bits - 1)
    return unsigned.reshape(len(words), -1)


def prepare(tensors, *, shape_n, shape_k, weight_schema, torch_dtype, device, **padding):
    """Check shapes and types as the library's `validate_tensors` does, and keep the tensors."""
    bits = int(weight_schema["dtype"].removeprefix("int"))
    groups = shape_k // (weight_schema["group_size"] or shape_k)
    shapes = {"weight": (shape_n, shape_k * bits // 32), "weight_scale": (shape_n, groups)}
    if weight_schema["has_zero_point"]:
        shapes["zero_point"] = (shape_n * bits // 32, groups)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes
    assert tensors["weight_scale"].dtype == torch_dtype
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    assert padding == {"pad_n_to_multiple": 256, "pad_k_to_multiple": 128}
    return Config(bits=bits, has_zero=weight_schema["has_zero_point"]), dict(tensors)


def forward(config, *, inputs, weight, weight_scale, zero_point, locks, compute_config):
    assert json.loads(compute_config)["gemm_type"] == "dense"
    assert inputs.is_contiguous()
    assert not locks.any()
    numbers = unpack_words(weight, config.bits).double()  # (out, in)
    wide = numbers.shape[1] // weight_scale.shape[1]
    if config.has_zero:
        zeros = unpack_words(zero_point.t(), config.bits).t()  # (out, groups)
        numbers -= zeros.double().repeat_interleave(wide, 1)
    else:
        numbers -= 2 ** (config.bits - 1)
    values = numbers * weight_scale.double().repeat_interleave(wide, 1)
    return (inputs.double() @ values.T).to(inputs.dtype)


@pytest.fixture
def library(monkeypatch):
    monkeypatch.setattr(humming, "require_capability", lambda *_: None)
    functions = Humming(lambda given: given, prepare, forward, "0.1.19")
    monkeypatch.setattr(humming, "humming_library", lambda: functions)
    monkeypatch.setattr(humming, "compile_fault", compiles)


def compiles(library, what, program, arguments, limit_seconds) -> None:
    compile(program, "program", "exec")
    assert library == "Humming"
    assert arguments == ("the configuration", humming.COMPUTE, "0.1.19")


@pytest.mark.parametrize("has_zero", [False, True])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("is_ordered", [False, True])
def test_four_bits_in_groups_with_and_without_zero_points(
    library, has_zero, group_size, is_ordered
):
    weight = random_weight("int4", 384, 96, has_zero, group_size, is_ordered)
    bias = torch.randn(96, generator=torch.Generator().manual_seed(2))
    kernel = copy.deepcopy(Int4HummingLinear(weight, bias, torch.bfloat16))
    x = torch.randn((5, 384), generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    wanted = x.double() @ dequantize(weight).double().T + bias
    assert float((kernel(x).double() - wanted).norm() / wanted.norm()) < TOLERANCE
    assert kernel.zero_point is None or has_zero
    assert kernel.weight_bytes == sum(
        each.nbytes for each in (kernel.packed, kernel.scale, kernel.zero_point) if each is not None
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_eight_bits_with_a_scale_a_row(library, dtype):
    weight = random_weight("int8-weight-only", 384, 96)
    kernel = Int8WeightOnlyHummingLinear(weight, None, dtype)
    x = torch.randn((1, 384), generator=torch.Generator().manual_seed(1)).to(dtype)
    wanted = x.double() @ dequantize(weight).double().T
    assert float((kernel(x).double() - wanted).norm() / wanted.norm()) < TOLERANCE


@pytest.mark.parametrize(
    ("weight", "dtype", "reason"),
    [
        (random_weight("int4"), torch.float32, "not torch.float32"),
        (random_weight("int4", outputs=40), torch.bfloat16, "not made of 32 x 32 weights"),
        (random_weight("int4", group_size=256), torch.bfloat16, "group size 256"),
    ],
)
def test_what_humming_does_not_take_is_refused_with_the_reason(library, weight, dtype, reason):
    with pytest.raises(ValueError, match=reason):
        Int4HummingLinear(weight, None, dtype)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [("prepare", "int4_humming cannot be built: no tile"), ("forward", "fails at 1 rows: no tile")],
)
def test_a_library_that_fails_loses_by_its_name(library, monkeypatch, broken, reason):
    def fails(*_, **__):
        raise AssertionError("no tile for this device\nmore")

    good = humming.humming_library()
    monkeypatch.setattr(humming, "humming_library", lambda: good._replace(**{broken: fails}))
    monkeypatch.setattr(trials, "HOPELESS", 1e9)
    weight = random_weight("int4", columns=256, outputs=128)
    kinds = (cpu.Int4Linear, Int4HummingLinear)
    question = Question(kinds, weight, None, torch.bfloat16, torch.device("cpu"), (1,), "q")
    with pytest.warns(UserWarning, match=f"{reason} for this device$"):
        votes = trial(question)
    assert list(votes[1]) == ["Int4Linear"]


def test_what_is_not_compiled_in_time_is_not_used(library, monkeypatch):
    fault = "Humming, 256 x 1024, was not compiled within 4:00"
    monkeypatch.setattr(humming, "compile_fault", lambda *_: fault)
    with pytest.raises(NoKernelError, match=fault):
        Int4HummingLinear(random_weight("int4"), None, torch.bfloat16)


@pytest.fixture
def importing(monkeypatch):
    """Says what importing the library does."""
    humming._import_humming.cache_clear()
    monkeypatch.setattr(metadata, "version", lambda name: "0.1.19")
    monkeypatch.delenv(humming.QUIET, raising=False)
    yield lambda load: monkeypatch.setattr(humming, "import_module", load)
    humming._import_humming.cache_clear()


def test_without_the_package_humming_says_so(importing, monkeypatch):
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(NoKernelError, match=r"pip install 'humming-kernels\[cu13\]'"):
        humming.humming_library()


def test_an_import_that_fails_is_named_in_one_line(importing):
    def fails(name: str) -> None:
        raise RuntimeError("Could not locate the NVRTC library in CUDA path\nmore")

    importing(fails)
    with pytest.raises(NoKernelError, match=r"loaded here: Could not locate the NVRTC.* path$"):
        humming.humming_library()


def test_its_import_starts_no_compiler(importing):
    seen = []

    def load(name: str) -> SimpleNamespace:
        seen.append(os.environ.get(humming.QUIET))
        return SimpleNamespace(
            BaseWeightSchema=SimpleNamespace(from_config=1),
            prepare_and_transform_humming_tensors=2,
            humming_forward=3,
        )

    importing(load)
    assert humming.humming_library() == Humming(1, 2, 3, "0.1.19")
    assert set(seen) == {"1"}
    assert humming.QUIET not in os.environ
