"""A trial picks the faster kernel, holds a second only where it wins, and trusts no wrong one."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from quantdraft.kernels import NoKernelError, choice
from quantdraft.kernels.choice import LinearByRows, chosen, fastest_linear
from quantdraft.kernels.dense import DenseLinear, PrepackedLinear
from quantdraft.kernels.few_rows import Bf16FewRowsLinear
from quantdraft.kernels.operations import operations_fault
from quantdraft.unpacking import Codebook, Unpacked, dequantized

CPU = torch.device("cpu")
WEIGHT = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))


class Timed(nn.Module):
    """A right product that takes `milliseconds(rows)`."""

    kernel = "timed"
    offset = 0.0

    def __init__(self, weight, bias, dtype) -> None:
        super().__init__()
        self.weight_bytes = weight.nbytes
        self.weight, self.bias = weight, bias

    @staticmethod
    def milliseconds(num_rows: int) -> float:
        return 0.0

    def forward(self, x):
        time.sleep(self.milliseconds(x.numel() // x.shape[-1]) / 1e3)
        return nn.functional.linear(x, self.weight, self.bias) + self.offset


class FastAlone(Timed):
    kernel = "fast_alone"

    @staticmethod
    def milliseconds(num_rows: int) -> float:
        return 1.0 * num_rows


class FastTogether(Timed):
    kernel = "fast_together"

    @staticmethod
    def milliseconds(num_rows: int) -> float:
        return 4.0


class Wrong(Timed):
    kernel = "wrong"
    offset = 5.0


class Broken(Timed):
    kernel = "broken"

    def forward(self, x):
        raise RuntimeError("CUDA error: no kernel image")


class Refusing(Timed):
    kernel = "refusing"

    def __init__(self, weight, bias, dtype) -> None:
        raise ValueError("group size 7 is not one of (32,)")


@pytest.fixture
def candidates(monkeypatch):
    """Sets the kernels that a trial has, and forgets earlier trials."""

    def set_to(*kinds) -> None:
        monkeypatch.setattr(choice, "_winners", {})
        monkeypatch.setattr(choice, "kernels_for", lambda device, fmt: kinds)

    return set_to


def linear(rows=(1, 8)):
    return fastest_linear(WEIGHT, None, "dense", torch.float32, CPU, rows)


def test_each_row_count_gets_its_fastest_kernel(candidates):
    candidates(FastAlone, FastTogether)
    module = linear((1, 8))
    assert module.kernel == "fast_alone+fast_together"
    assert module.weight_bytes == 2 * WEIGHT.nbytes
    used: list[str] = []
    for part in module.parts:
        part.register_forward_hook(lambda part, *_: used.append(part.kernel))
    for rows in (1, 2, 8, 40):
        x = torch.randn(rows, 32)
        assert torch.equal(module(x[None]), nn.functional.linear(x, WEIGHT)[None])
    assert used == ["fast_alone", "fast_together", "fast_together", "fast_together"]


def test_one_row_count_holds_one_kernel(candidates):
    candidates(FastAlone, FastTogether)
    assert linear((1,)).kernel == "fast_alone"
    assert linear((16,)).kernel == "fast_together"


def test_a_second_kernel_is_held_only_for_more_than_five_percent():
    assert chosen([[1.0, 1.04], [1.0, 0.97]]) == (0, 0)
    assert chosen([[1.0, 2.0], [1.2, 1.0]]) == (0, 1)
    assert chosen([[3.0, 1.0], [1.0, 1.02]]) == (1, 1)


def test_row_counts_are_thinned_to_six_with_both_ends():
    assert choice.thinned((5, 1, 1)) == (1, 5)
    assert choice.thinned(range(1, 101)) == (1, 21, 41, 60, 80, 100)


def test_a_kernel_left_far_behind_runs_once():
    calls = {"fast": 0, "slow": 0}

    def timer(name: str, seconds: float):
        def run() -> float:
            calls[name] += 1
            return seconds

        return run

    assert choice._medians([timer("slow", 3.0), timer("fast", 1.0)]) == [3.0, 1.0]
    assert calls == {"slow": 1, "fast": 1}


def test_first_outputs_keep_their_scales():
    integers = torch.arange(32, dtype=torch.int8).view(4, 8)
    weight = Unpacked(integers, torch.ones(4, 2), torch.zeros(4, 2).to(torch.int8), 4, None)
    few = choice.first_outputs(weight, 2)
    assert torch.equal(dequantized(few), dequantized(weight)[:2])
    book = Codebook(
        torch.arange(16, dtype=torch.uint8).view(4, 4),
        torch.arange(16.0),
        torch.tensor([1.0, 2.0]),
        16,
        None,
        "nf4",
    )
    assert torch.equal(dequantized(choice.first_outputs(book, 2)), dequantized(book)[:2])
    assert choice.first_outputs(book, 1) is book


def test_a_kernel_that_is_alone_is_not_timed(candidates, monkeypatch):
    monkeypatch.setattr(choice, "_timed", None)
    candidates(FastTogether, Refusing)
    assert linear().kernel == "fast_together"


def test_trials_are_remembered_for_the_shape(candidates, monkeypatch):
    candidates(FastAlone, FastTogether)
    first = linear()
    monkeypatch.setattr(choice, "_trial", None)
    assert linear().kernel == first.kernel


@pytest.mark.parametrize("bad", [Wrong, Broken])
def test_a_wrong_or_failing_kernel_is_not_used_and_is_said(candidates, bad):
    candidates(bad, FastTogether)
    with pytest.warns(UserWarning, match=f"kernel {bad.kernel} is not used"):
        assert linear((1,)).kernel == "fast_together"


def test_no_kernel_at_all_gives_the_reasons(candidates):
    candidates(Refusing)
    with pytest.raises(ValueError, match="group size 7"):
        linear()
    candidates(Wrong)
    with (
        pytest.warns(UserWarning, match="wrong"),
        pytest.raises(NoKernelError, match="away from the product"),
    ):
        linear()


def test_memory_that_two_kernels_share_is_counted_once():
    class Sharing(Timed):
        def __init__(self, weight) -> None:
            super().__init__(weight, None, None)
            del self.weight
            self.register_buffer("weight", weight)

    module = LinearByRows((1, 8), (0, 1), [Sharing(WEIGHT), Sharing(WEIGHT)])
    assert module.weight_bytes == WEIGHT.nbytes


def test_kernels_that_take_turns_compile_without_a_break():
    weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    parts = [kind(weight, None, torch.float32) for kind in (DenseLinear, PrepackedLinear)]
    module = LinearByRows((1, 4), (0, 1), parts)
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for rows in (1, 4):
        x = torch.randn(rows, 32)
        with torch.inference_mode():
            assert torch.equal(compiled(x), module(x))


@pytest.mark.parametrize("fmt", ["dense", "int4", "int8", "int8-weight-only"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_cpu_format_gets_a_module_that_is_right(fmt, dtype):
    num_bits = 4 if fmt == "int4" else 8
    generator = torch.Generator().manual_seed(0)
    half = 2 ** (num_bits - 1)
    integers = torch.randint(-half, half, (64, 256), generator=generator).to(torch.int8)
    groups = 2 if fmt == "int4" else 1
    weight = Unpacked(integers, torch.full((64, groups), 0.01), None, 256 // groups, None)
    values = integers.float() * 0.01
    given = values if fmt == "dense" else weight
    module = fastest_linear(given, None, fmt, dtype, CPU, (1, 5, 20))
    x = torch.randn(7, 256, generator=generator).to(dtype)
    wanted = x.float() @ values.T
    # 7-bit inputs cost 0.015 (see test_kernels); everything else is finer.
    assert float((module(x).float() - wanted).norm() / wanted.norm()) < 0.03


def test_a_format_without_a_kernel_is_undefined():
    with pytest.raises(NoKernelError, match="no cpu kernel computes in fp8"):
        fastest_linear(WEIGHT, None, "fp8", torch.float32, CPU, (1,))


def test_a_kernel_that_is_an_operation_is_timed_as_one(monkeypatch):
    """The fused mode calls no `forward` of it, so its cost is no part of the trial."""
    if operations_fault() is not None:
        pytest.skip(f"not offered on this machine: {operations_fault()}")
    kernel = Bf16FewRowsLinear(torch.ones(4, 16, dtype=torch.bfloat16), None, torch.float32)
    monkeypatch.setattr(kernel, "forward", None)
    assert choice._timed(kernel, torch.ones(2, 16))() > 0
