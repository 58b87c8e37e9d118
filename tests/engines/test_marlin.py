"""Marlin's adapter, on a library that stands for gptqmodel's: its CUDA code runs on a GPU alone."""

from __future__ import annotations

import ast
import copy
import os
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from quantdraft.checkpoints.tensors.unpacking import Unpacked, dequantize
from quantdraft.engines.kernels import marlin
from quantdraft.engines.kernels.marlin import Int4MarlinLinear, Int8WeightOnlyMarlinLinear
from quantdraft.errors import NoKernelError

BITS = {Int4MarlinLinear: 4, Int8WeightOnlyMarlinLinear: 8}


def weight_of(bits: int, columns: int = 128, outputs: int = 64, group_size: int = 64) -> Unpacked:
    generator = torch.Generator().manual_seed(0)
    half = 2 ** (bits - 1)
    integers = torch.randint(-half, half, (outputs, columns), generator=generator).to(torch.int8)
    groups = columns // group_size if bits == 4 else 1
    scale = torch.rand((outputs, groups), generator=generator) * 1e-2
    return Unpacked(integers, scale, None, group_size if bits == 4 else None, None)


def product(*, weight, weight_scale, wtype, **options):
    """What GPTQ's layout means: the first column in a word's lowest bits, raised by half."""
    words = weight.to(torch.int64) & 0xFFFFFFFF
    places = torch.arange(32 // wtype)[None, :, None] * wtype
    unsigned = (words[:, None, :] >> places) & (2**wtype - 1)
    integers = unsigned.reshape(-1, weight.shape[1]) - 2 ** (wtype - 1)  # (in, out)
    scale = weight_scale.float().repeat_interleave(len(integers) // len(weight_scale), 0)
    x = options["input"]
    return (x.float() @ (integers * scale)).to(x.dtype)


@pytest.fixture
def library(monkeypatch):
    fake = SimpleNamespace(
        gptq_marlin_repack=lambda packed, **_: packed,
        marlin_permute_scales=lambda scale, **_: scale,
        marlin_make_workspace_new=lambda device: torch.zeros(128, dtype=torch.int32),
        apply_gptq_marlin_linear=product,
    )
    monkeypatch.setattr(marlin, "marlin_library", lambda dtype: fake)
    monkeypatch.setattr(marlin, "scalar_type", lambda bits: bits)
    monkeypatch.setattr(marlin, "require_capability", lambda *_: None)


@pytest.mark.parametrize("kind", BITS)
@pytest.mark.parametrize("rows", [1, 5])
def test_marlin_is_given_the_weight_in_gptqs_layout(library, kind, rows):
    weight = weight_of(BITS[kind])
    bias = torch.randn(64, generator=torch.Generator().manual_seed(2))
    kernel = copy.deepcopy(kind(weight, bias, torch.bfloat16))
    x = torch.randn((rows, 128), generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    wanted = x.float() @ dequantize(weight).T + bias
    assert float((kernel(x).float() - wanted).norm() / wanted.norm()) < 2e-2  # bf16, three times
    assert kernel.packed.nbytes == 64 * 128 * BITS[kind] // 8


@pytest.mark.parametrize(
    ("weight", "dtype", "reason"),
    [
        (weight_of(4), torch.float32, "not torch.float32"),
        (weight_of(4, outputs=72), torch.bfloat16, "not made of Marlin's tiles"),
        (weight_of(4, group_size=16), torch.bfloat16, "group size 16"),
        (weight_of(4)._replace(zero_point=torch.ones(64, 2)), torch.bfloat16, "symmetric"),
    ],
)
def test_what_marlin_does_not_take_is_refused_with_the_reason(library, weight, dtype, reason):
    with pytest.raises(ValueError, match=reason):
        Int4MarlinLinear(weight, None, dtype)


@pytest.mark.parametrize(
    ("package", "nvcc", "reason"),
    [(None, "nvcc", "package 'gptqmodel'"), ("gptqmodel", None, "nvcc, on PATH")],
)
def test_without_its_package_or_compiler_marlin_says_so(monkeypatch, package, nvcc, reason):
    monkeypatch.setattr(marlin, "find_spec", lambda name: package)
    monkeypatch.setattr(marlin.shutil, "which", lambda name: nvcc)
    marlin.marlin_fault.cache_clear()
    with pytest.raises(NoKernelError, match=reason):
        marlin.marlin_library(torch.bfloat16)
    marlin.marlin_fault.cache_clear()


def test_gptqmodel_names_its_functions_and_arguments_as_they_are_called():
    found = find_spec("gptqmodel")
    if found is None or found.origin is None:
        pytest.skip("gptqmodel is not installed")
    source = (Path(found.origin).parent / "utils" / "marlin.py").read_text()
    given = {
        each.name: {a.arg for a in (*each.args.args, *each.args.kwonlyargs)}
        for each in ast.parse(source).body
        if isinstance(each, ast.FunctionDef)
    }
    sizes = {"size_k", "size_n"}
    assert sizes | {"perm", "num_bits", "dtype"} <= given["gptq_marlin_repack"]
    assert sizes | {"group_size"} <= given["marlin_permute_scales"]
    assert "device" in given["marlin_make_workspace_new"]
    ours = ast.parse(Path(marlin.__file__).read_text())
    (call,) = (
        node
        for node in ast.walk(ours)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "self._product"
    )
    assert {word.arg for word in call.keywords} <= given["apply_gptq_marlin_linear"]
    assert given["marlin_runtime_available"] == given["marlin_runtime_error"] == {"dtype"}


def test_the_librarys_banner_and_variables_stay_out_of_the_run(monkeypatch, capsys):
    def load(name: str) -> str:
        print("banner")
        os.environ["SET_BY_THE_LIBRARY"] = "1"
        return name

    monkeypatch.setattr(marlin, "import_module", load)
    assert marlin._load("marlin") == "gptqmodel.utils.marlin"
    assert capsys.readouterr().out == ""
    assert "SET_BY_THE_LIBRARY" not in os.environ
