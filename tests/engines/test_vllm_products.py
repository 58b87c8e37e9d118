"""vLLM's products behind their adapters, on operators that compute what vLLM declares."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from quantdraft.checkpoints.formats import SCHEMES
from quantdraft.checkpoints.tensors.rounding import round_inputs
from quantdraft.checkpoints.tensors.unpacking import Unpacked, dequantize
from quantdraft.engines.kernels import cpu, cuda, marlin, trials, vllm_library, vllm_products
from quantdraft.engines.kernels.marlin import Int4MarlinLinear, Int8WeightOnlyMarlinLinear
from quantdraft.engines.kernels.trials import Question, trial
from quantdraft.engines.kernels.vllm_products import (
    Fp8BlockCutlassLinear,
    Fp8CutlassLinear,
    Int4MacheteLinear,
    Int8CutlassLinear,
)
from quantdraft.engines.vllm import environment
from quantdraft.errors import NoKernelError
from tests.engines.fake_vllm_operators import declared_operators
from tests.engines.weights import random_weight

CPU = torch.device("cpu")
SCHEME = {"fp8": "FP8_DYNAMIC", "fp8-block": "FP8_BLOCK", "int8": "W8A8"}
# bfloat16 rounds scales and the result; rounded inputs are rounded in the reference too.
TOLERANCE = 2 * 2**-8
KINDS = [
    ("fp8", Fp8CutlassLinear),
    ("fp8-block", Fp8BlockCutlassLinear),
    ("int8", Int8CutlassLinear),
    ("int4", Int4MacheteLinear),
    ("int4", Int4MarlinLinear),
    ("int8-weight-only", Int8WeightOnlyMarlinLinear),
]


@pytest.fixture
def hopper(monkeypatch):
    """Stands for a card of capability 9.0 beside an installed vLLM; returns what installs it."""
    for module in (cuda, marlin, vllm_products):
        monkeypatch.setattr(module, "require_capability", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    package = SimpleNamespace(submodule_search_locations=["nowhere"])
    monkeypatch.setattr(vllm_library, "find_spec", lambda name: package)
    monkeypatch.setattr(vllm_library, "_load", lambda package: None)
    vllm_library.vllm_fault.cache_clear()
    monkeypatch.setattr(trials, "HOPELESS", 1e9)  # what stands for a GPU is slow
    yield
    vllm_library.vllm_fault.cache_clear()


@pytest.fixture
def operators(hopper):
    with declared_operators():
        yield


def wanted(fmt: str, weight: Unpacked, x: torch.Tensor) -> torch.Tensor:
    rounded = round_inputs(x.float(), SCHEMES[SCHEME[fmt]]) if fmt in SCHEME else x
    return rounded.double() @ dequantize(weight).double().T


def off(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def inputs(rows: int, columns: int) -> torch.Tensor:
    x = torch.randn((rows, columns), generator=torch.Generator().manual_seed(1))
    return x.to(torch.bfloat16)


@pytest.mark.parametrize(("fmt", "kind"), KINDS)
@pytest.mark.parametrize("rows", [1, 3, 16, 65])
def test_products_are_those_of_the_weight(operators, fmt, kind, rows):
    weight = random_weight(fmt, columns=384, outputs=256)
    bias = torch.randn(256, generator=torch.Generator().manual_seed(2))
    kernel = copy.deepcopy(kind(weight, bias, torch.bfloat16))  # as trials copy it
    x = inputs(rows, 384)
    found = kernel(x)
    assert (found.dtype, found.shape) == (torch.bfloat16, (rows, 256))
    assert off(found, wanted(fmt, weight, x) + bias) < TOLERANCE
    assert kernel.kernel.endswith("_vllm")


@pytest.mark.parametrize("kind", [Int4MarlinLinear, Int4MacheteLinear])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_groups_and_orders_of_columns(operators, kind, group_size, dtype):
    weight = random_weight("int4", 384, 128, group_size=group_size, is_ordered=True)
    if group_size not in kind.group_sizes:
        with pytest.raises(ValueError, match="group size 32"):
            kind(weight, None, dtype)
        return
    x = inputs(5, 384).to(dtype)
    found = kind(weight, None, dtype)(x)
    assert found.dtype == dtype
    assert off(found, wanted("int4", weight, x)) < TOLERANCE


@pytest.mark.parametrize("kind", [Fp8CutlassLinear, Int8CutlassLinear])
def test_sizes_that_are_no_sixteens_are_padded(operators, kind):
    fmt = "fp8" if kind is Fp8CutlassLinear else "int8"
    weight = random_weight(fmt, columns=200, outputs=37)
    x = inputs(3, 200)
    assert off(kind(weight, None, torch.bfloat16)(x), wanted(fmt, weight, x)) < TOLERANCE


@pytest.mark.parametrize(
    ("weight", "dtype", "reason"),
    [
        (random_weight("int4"), torch.float32, "not torch.float32"),
        (random_weight("int4", outputs=64), torch.bfloat16, "Machete's tiles"),
        (random_weight("int4", group_size=32), torch.bfloat16, "group size 32"),
        (random_weight("int4", has_zero=True), torch.bfloat16, "symmetric"),
    ],
)
def test_what_machete_does_not_take_is_refused_with_the_reason(operators, weight, dtype, reason):
    with pytest.raises(ValueError, match=reason):
        Int4MacheteLinear(weight, None, dtype)


@pytest.mark.parametrize("capability", [(8, 9), (10, 0), (12, 0)])
def test_machete_is_for_hopper_alone(operators, monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    with pytest.raises(NoKernelError, match=r"9\.0 alone"):
        Int4MacheteLinear(random_weight("int4"), None, torch.bfloat16)


def test_blocks_need_what_the_operator_supports(hopper):
    with (
        declared_operators(cutlass_scaled_mm_supports_block_fp8=lambda capability: False),
        pytest.raises(NoKernelError, match=r"no FP8 in blocks for capability 9\.0"),
    ):
        Fp8BlockCutlassLinear(random_weight("fp8-block"), None, torch.bfloat16)


def question(fmt: str, *kinds: type) -> Question:
    weight = random_weight(fmt, columns=256, outputs=128)
    return Question(kinds, weight, None, torch.bfloat16, CPU, (1, 5), "q")


def test_products_of_a_library_take_part_in_a_trial(operators):
    votes = trial(question("int4", cpu.Int4Linear, Int4MarlinLinear, Int4MacheteLinear))
    assert [list(vote) for vote in votes.values()] == [
        ["Int4Linear", "Int4MarlinLinear", "Int4MacheteLinear"]
    ] * 2


def fails(*_: object) -> None:
    raise RuntimeError("no kernel image is available\nmore")


def wrong(out: torch.Tensor, *_: object) -> None:
    out.fill_(3.0)


@pytest.mark.parametrize(
    ("operator", "reason"),
    [(fails, "fails at 1 rows: no kernel image is available"), (wrong, "away from the product")],
)
def test_an_operator_that_fails_or_is_wrong_loses_by_its_name(hopper, operator, reason):
    with (
        declared_operators(cutlass_scaled_mm=operator),
        pytest.warns(UserWarning, match=f"int8_cutlass_vllm is not used: .*{reason}"),
    ):
        votes = trial(question("int8", cpu.Int8DynamicLinear, Int8CutlassLinear))
    assert [list(vote) for vote in votes.values()] == [["Int8DynamicLinear"]] * 2


def test_a_packing_that_fails_loses_by_its_name(hopper):
    with (
        declared_operators(machete_prepack_B=fails),
        pytest.warns(UserWarning, match="int4_machete_vllm cannot be built: no kernel image"),
    ):
        votes = trial(question("int4", cpu.Int4Linear, Int4MacheteLinear))
    assert [list(vote) for vote in votes.values()] == [["Int4Linear"]] * 2


def test_one_that_is_wrong_at_more_rows_is_out_from_there(hopper):
    def right_alone(out, a, b, a_scale, b_scale, bias):
        product = (a.float() * a_scale.view(-1, 1)) @ (b.float() * b_scale.view(1, -1))
        out.copy_(product if len(a) == 1 else product + 9)

    with (
        declared_operators(cutlass_scaled_mm=right_alone),
        pytest.warns(UserWarning, match="int8_cutlass_vllm is .* away from the product at 5 rows"),
    ):
        votes = trial(question("int8", cpu.Int8DynamicLinear, Int8CutlassLinear))
    assert [list(vote) for vote in votes.values()] == [
        ["Int8DynamicLinear", "Int8CutlassLinear"],
        ["Int8DynamicLinear"],
    ]


def test_without_vllm_its_products_say_what_they_need(hopper, monkeypatch):
    monkeypatch.setattr(vllm_library, "find_spec", lambda name: None)
    with pytest.raises(NoKernelError, match=r"build for CUDA here: pip install 'vllm==0\.32"):
        Fp8CutlassLinear(random_weight("fp8"), None, torch.bfloat16)
    assert environment.VERSION.startswith(vllm_library.READ_VERSION)


def test_a_build_for_a_cpu_has_no_products(hopper):
    with pytest.raises(NoKernelError, match=r"has no marlin_gemm: it needs the build for CUDA"):
        vllm_library.vllm_operators("marlin_gemm")


def test_an_operator_with_other_arguments_is_not_called(operators, monkeypatch):
    monkeypatch.setitem(vllm_library.NUM_ARGUMENTS, "marlin_gemm", 19)
    with pytest.raises(NoKernelError, match=r"declares marlin_gemm with 16 arguments, 0\.32 with"):
        vllm_library.vllm_operators("marlin_gemm")


def test_a_library_that_cannot_be_loaded_says_so(tmp_path):
    assert "no library that can be loaded (none)" in str(vllm_library._load(tmp_path))
    (tmp_path / "_C_stable_libtorch.abi3.so").write_bytes(b"\x7fELF")
    fault = vllm_library._load(tmp_path)
    assert fault is not None
    assert "_C_stable_libtorch.abi3.so: " in fault
    assert "\n" not in fault


def test_a_folder_with_the_library_alone_will_do(tmp_path, monkeypatch):
    (tmp_path / "vllm").mkdir()
    library = tmp_path / "vllm" / "_C_stable_libtorch.abi3.so"
    library.touch()
    loaded = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(vllm_library, "_version", lambda: "?")
    vllm_library.vllm_fault.cache_clear()
    fault = vllm_library.vllm_fault(("marlin_gemm",))
    vllm_library.vllm_fault.cache_clear()
    assert fault == "vLLM ? has no marlin_gemm: it needs the build for CUDA"
    assert loaded == [library]
