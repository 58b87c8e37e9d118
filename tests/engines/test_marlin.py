"""Marlin's adapter, on a library that stands for gptqmodel's: its CUDA code runs on a GPU alone."""

from __future__ import annotations

import ast
import copy
import os
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from quantdraft.checkpoints.tensors.unpacking import Unpacked, dequantize
from quantdraft.engines.kernels import marlin
from quantdraft.engines.kernels.marlin import Int4MarlinLinear, Int8WeightOnlyMarlinLinear
from quantdraft.errors import NoKernelError
from tests.engines.fake_vllm_operators import GROUP_ORDER, ROW_ORDER

BITS = {Int4MarlinLinear: 4, Int8WeightOnlyMarlinLinear: 8}
MISSING = "vLLM's products need its build"


def weight_of(bits: int, columns: int = 128, outputs: int = 64, group_size: int = 64) -> Unpacked:
    generator = torch.Generator().manual_seed(0)
    half = 2 ** (bits - 1)
    integers = torch.randint(-half, half, (outputs, columns), generator=generator).to(torch.int8)
    groups = columns // group_size if bits == 4 else 1
    scale = torch.rand((outputs, groups), generator=generator) * 1e-2
    return Unpacked(integers, scale, None, group_size if bits == 4 else None, None)


def product(*, weight, weight_scale, wtype, workspace, **options):
    """What GPTQ's layout means: the first column in a word's lowest bits, raised by half."""
    words = weight.to(torch.int64) & 0xFFFFFFFF
    places = torch.arange(32 // wtype)[None, :, None] * wtype
    unsigned = (words[:, None, :] >> places) & (2**wtype - 1)
    integers = unsigned.reshape(-1, weight.shape[1]) - 2 ** (wtype - 1)  # (in, out)
    order = torch.tensor(GROUP_ORDER if len(weight_scale) > 1 else ROW_ORDER)
    stored = torch.empty_like(weight_scale).view(-1, len(order))
    stored[:, order] = weight_scale.view(-1, len(order))
    scale = stored.view(weight_scale.shape).float()
    scale = scale.repeat_interleave(len(integers) // len(scale), 0)
    x = options["input"]
    assert workspace.numel() >= 128
    assert not workspace.any()
    assert (options["input_size_per_partition"], options["output_size_per_partition"]) == (
        integers.shape
    )
    return (x.float() @ (integers * scale)).to(x.dtype)


@pytest.fixture
def library(monkeypatch):
    """Stands for gptqmodel, where there is no vLLM."""
    modules = {
        "marlin": SimpleNamespace(
            gptq_marlin_repack=lambda packed, **_: packed, apply_gptq_marlin_linear=product
        ),
        "marlin_scalar_type": SimpleNamespace(scalar_types=SimpleNamespace(uint4b8=4, uint8b128=8)),
    }

    def no_operators(*names: str) -> None:
        raise NoKernelError(MISSING)

    monkeypatch.setattr(marlin, "vllm_operators", no_operators)
    monkeypatch.setattr(marlin, "gptqmodel_fault", lambda dtype: None)
    monkeypatch.setattr(marlin, "_load", modules.__getitem__)
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
    assert kernel.kernel.endswith("_marlin_gptqmodel")


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
    [(None, "nvcc", "package 'gptqmodel'"), ("gptqmodel", None, "nvcc on PATH")],
)
def test_without_its_package_or_compiler_marlin_says_so(monkeypatch, package, nvcc, reason):
    def no_operators(*names: str) -> None:
        raise NoKernelError(MISSING)

    monkeypatch.setattr(marlin, "vllm_operators", no_operators)
    monkeypatch.setattr(marlin, "find_spec", lambda name: package)
    monkeypatch.setattr(marlin.shutil, "which", lambda name: nvcc)
    marlin.gptqmodel_fault.cache_clear()
    with pytest.raises(NoKernelError, match=reason) as raised:
        marlin.marlin_source(torch.bfloat16)
    assert MISSING in str(raised.value)  # of every library, what it needs
    marlin.gptqmodel_fault.cache_clear()


@pytest.mark.parametrize("fault", [None, "Marlin for bfloat16 was not compiled within 8:00"])
def test_gptqmodels_marlin_is_compiled_before_it_is_loaded(monkeypatch, fault):
    done = []

    def compile_it(library, what, program, arguments, limit_seconds) -> str | None:
        compile(program, "program", "exec")
        done.append((library, what, arguments, limit_seconds))
        return fault

    def load(name: str) -> SimpleNamespace:
        done.append(name)
        return SimpleNamespace(marlin_runtime_available=lambda dtype: True)

    monkeypatch.setattr(marlin, "find_spec", lambda name: name)
    monkeypatch.setattr(marlin.shutil, "which", lambda name: name)
    monkeypatch.setattr(marlin, "compile_fault", compile_it)
    monkeypatch.setattr(marlin.metadata, "version", lambda name: "7.6")
    monkeypatch.setattr(marlin, "_load", load)
    marlin.gptqmodel_fault.cache_clear()
    assert marlin.gptqmodel_fault(torch.bfloat16) == fault
    assert marlin.gptqmodel_fault(torch.bfloat16) == fault  # once a process
    compiled = ("gptqmodel", "Marlin for bfloat16", ("bfloat16", "7.6"), marlin.COMPILE_SECONDS)
    assert done == ([compiled, "marlin"] if fault is None else [compiled])
    marlin.gptqmodel_fault.cache_clear()


def test_gptqmodel_names_its_functions_and_arguments_as_they_are_called():
    given = functions_of_gptqmodel()
    sizes = {"size_k", "size_n"}
    assert sizes | {"perm", "num_bits", "dtype"} <= given["gptq_marlin_repack"]
    ours = ast.parse(Path(marlin.__file__).read_text())
    (call,) = (
        node
        for node in ast.walk(ours)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "library.apply_gptq_marlin_linear"
    )
    assert {word.arg for word in call.keywords} <= given["apply_gptq_marlin_linear"]
    assert given["marlin_runtime_available"] == given["marlin_runtime_error"] == {"dtype"}


@pytest.mark.parametrize("groups", [1, 4])
def test_scales_are_permuted_as_gptqmodel_permutes_them(groups):
    names: dict[str, Any] = {"List": list}
    exec(source_of("get_scale_perms"), names)  # the package itself takes seconds to import
    of_groups, of_rows = names["get_scale_perms"]()
    assert (of_groups, of_rows) == (GROUP_ORDER, ROW_ORDER)
    order = of_groups if groups > 1 else of_rows
    scale = torch.rand((128, groups))
    wanted = scale.t().reshape(-1, len(order))[:, order].reshape(groups, 128)
    assert torch.equal(marlin.permute_scales(scale), wanted)


@pytest.mark.parametrize(("bits", "name"), [(4, "uint4b8"), (8, "uint8b128")])
def test_types_have_the_numbers_that_both_libraries_read(monkeypatch, bits, name):
    path = gptqmodel_folder() / "marlin_scalar_type.py"
    spec = spec_from_file_location("types_of_gptqmodel", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "types_of_gptqmodel", module)  # its dataclasses look there
    spec.loader.exec_module(module)
    assert marlin.scalar_type_id(bits) == getattr(module.scalar_types, name).id


def source_of(function: str) -> str:
    """A function of gptqmodel's Marlin, as its file has it."""
    (found,) = (
        each
        for each in ast.parse((gptqmodel_folder() / "marlin.py").read_text()).body
        if isinstance(each, ast.FunctionDef) and each.name == function
    )
    return ast.unparse(found)


def gptqmodel_folder() -> Path:
    """Where gptqmodel's Marlin lies; the test is skipped where it is not installed."""
    found = find_spec("gptqmodel")
    if found is None or found.origin is None:
        pytest.skip("gptqmodel is not installed")
    return Path(found.origin).parent / "utils"


def functions_of_gptqmodel() -> dict[str, set[str]]:
    """The arguments of every function of gptqmodel's Marlin, by its name."""
    return {
        each.name: {a.arg for a in (*each.args.args, *each.args.kwonlyargs)}
        for each in ast.parse((gptqmodel_folder() / "marlin.py").read_text()).body
        if isinstance(each, ast.FunctionDef)
    }


def test_the_librarys_banner_and_variables_stay_out_of_the_run(monkeypatch, capsys):
    def load(name: str) -> str:
        print("banner")
        os.environ["SET_BY_THE_LIBRARY"] = "1"
        return name

    monkeypatch.setattr(marlin, "import_module", load)
    assert marlin._load("marlin") == "gptqmodel.utils.marlin"
    assert capsys.readouterr().out == ""
    assert "SET_BY_THE_LIBRARY" not in os.environ
