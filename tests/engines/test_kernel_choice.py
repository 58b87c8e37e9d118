"""A trial picks the faster kernel, holds a second only where it wins, and trusts no wrong one."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import nn

from quantdraft.checkpoints.tensors.unpacking import Codebook, Unpacked, dequantize
from quantdraft.engines.kernels import choice, trials
from quantdraft.engines.kernels.book import NUM_VOTES, Book, Timing, hopeless, winner
from quantdraft.engines.kernels.choice import (
    LinearByRows,
    collect_questions,
    fastest_linear,
    forget_choices,
    settle,
    tried_rows,
)
from quantdraft.engines.kernels.dense import DenseLinear, PrepackedLinear
from quantdraft.engines.kernels.few_rows import Bf16FewRowsLinear
from quantdraft.engines.kernels.operations import operations_fault
from quantdraft.errors import NoKernelError
from tests.clock import Clock

CPU = torch.device("cpu")
CLOCK = Clock()
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
        CLOCK.sleep(self.milliseconds(x.numel() // x.shape[-1]) / 1e3)
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
    """Sets the kernels that a trial has, in a book of its own, which it returns."""

    def set_to(*kinds, path=None) -> Book:
        book = Book(path)
        monkeypatch.setattr(trials, "time", CLOCK)
        monkeypatch.setattr(choice, "book_of", lambda device, num_threads: book)
        monkeypatch.setattr(choice, "kernels_for", lambda device, fmt: kinds)
        return book

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
    assert used == ["fast_alone", "fast_alone", "fast_together", "fast_together"]


def test_one_row_count_holds_one_kernel(candidates):
    candidates(FastAlone, FastTogether)
    assert linear((1,)).kernel == "fast_alone"
    assert linear((16,)).kernel == "fast_together"


def votes(*trials_ms: dict[str, float], num_bytes: dict[str, int] | None = None):
    sizes = num_bytes or {}
    return [{n: Timing(ms / 1e3, sizes.get(n, 1)) for n, ms in vote.items()} for vote in trials_ms]


def test_another_kernel_must_win_by_five_percent_and_by_fifteen_if_it_reads_more():
    assert winner(votes({"a": 1.04, "b": 1.0})) == "a"
    assert winner(votes({"a": 1.06, "b": 1.0})) == "b"
    more = {"a": 1, "b": 2}
    assert winner(votes({"a": 1.12, "b": 1.0}, num_bytes=more)) == "a"
    assert winner(votes({"a": 1.2, "b": 1.0}, num_bytes=more)) == "b"
    # the one of fewer bytes is the one to beat, wherever it stands in the list
    assert winner(votes({"b": 1.0, "a": 1.12}, num_bytes=more)) == "a"


def test_two_disturbed_trials_of_five_change_nothing():
    quiet, disturbed = {"bf16": 1.0, "float32": 2.0}, {"bf16": 9.0, "float32": 2.0}
    sizes = {"bf16": 2, "float32": 4}
    assert winner(votes(disturbed, quiet, quiet, disturbed, quiet, num_bytes=sizes)) == "bf16"
    assert winner(votes(disturbed, num_bytes=sizes)) == "float32"  # what one trial would say


def test_a_kernel_is_hopeless_only_where_two_trials_say_so():
    slow = {"a": 1.0, "b": 500.0}
    assert hopeless(votes(slow)) == set()
    assert hopeless(votes(slow, slow)) == {"b"}
    assert winner(votes(slow, slow, {"a": 1.0}, {"a": 1.0}, {"a": 1.0})) == "a"


def test_a_number_of_rows_takes_the_answer_of_the_nearest_that_is_tried():
    assert [tried_rows(n) for n in (1, 2, 3, 5, 6, 9, 12, 33, 5000)] == [
        1, 2, 4, 4, 8, 8, 16, 64, 1024,
    ]  # fmt: skip


def test_draft_and_target_get_the_same_kernel_for_the_same_rows(candidates):
    candidates(FastAlone, FastTogether)
    target, draft = linear((1, 8)), linear((1,))
    assert target.part_for(1).kernel == draft.kernel == "fast_alone"


def test_questions_are_settled_by_several_trials_and_kept_for_the_next_process(
    candidates, tmp_path, monkeypatch
):
    path = tmp_path / "choices.json"
    book = candidates(FastAlone, FastTogether, path=path)
    with collect_questions() as questions:
        linear((1, 8))
    assert [len(book.votes(name)) for q in questions.values() for name in q.names] == [1, 1]
    settle(list(questions.values()))
    assert all(book.is_settled(name) for q in questions.values() for name in q.names)
    candidates(FastAlone, FastTogether, path=path)
    monkeypatch.setattr(choice, "trial", None)
    assert linear((1, 8)).kernel == "fast_alone+fast_together"


def test_what_contradicts_the_steps_is_asked_anew(candidates, monkeypatch):
    book = candidates(FastAlone, FastTogether)
    with collect_questions() as questions:
        linear((1,))
    settle(list(questions.values()))
    (name,) = next(iter(questions.values())).names
    assert len(book.votes(name)) == NUM_VOTES
    assert forget_choices() >= 1
    assert len(book.votes(name)) == 0
    linear((1,))
    assert len(book.votes(name)) == 1


def test_a_book_that_cannot_be_read_or_written_stops_nothing(candidates, tmp_path):
    path = tmp_path / "choices.json"
    for text in ("{", "[]", '{"a": 3}', '{"a": [{"b": [1]}]}', '{"a": [{"b": "cd"}]}'):
        path.write_text(text)
        assert Book(path).votes("a") == ()
    nowhere = Book(tmp_path / "choices.json" / "below.json")
    nowhere.add("a", {"b": Timing(0.0, 1)})
    nowhere.write()
    assert nowhere.is_settled("a")


def test_processes_that_settle_different_questions_keep_each_others_answers(tmp_path):
    path = tmp_path / "choices.json"
    one, other = Book(path), Book(path)
    for book, name in ((one, "a"), (other, "b")):
        for _ in range(NUM_VOTES):
            book.add(name, {"k": Timing(1.0, 1), "l": Timing(2.0, 1)})
        book.add("open", {"k": Timing(1.0, 1), "l": Timing(2.0, 1)})
        book.write()
    found = Book(path)
    assert found.is_settled("a")
    assert found.is_settled("b")
    assert not found.votes("open")  # one vote is no answer for the next process


def test_a_kernel_left_far_behind_runs_less_often():
    calls = {"fast": 0, "slow": 0, "hopeless": 0}

    def timer(name: str, seconds: float):
        def run() -> float:
            calls[name] += 1
            return seconds

        return run

    timers = {"slow": timer("slow", 3.0), "fast": timer("fast", 1.0)}
    timers["hopeless"] = timer("hopeless", 500.0)
    assert trials.least_seconds(timers) == {"slow": 3.0, "fast": 1.0, "hopeless": 500.0}
    assert calls == {"slow": 2, "fast": trials.NUM_ROUNDS, "hopeless": 1}


def test_first_outputs_keep_their_scales():
    integers = torch.arange(32, dtype=torch.int8).view(4, 8)
    weight = Unpacked(integers, torch.ones(4, 2), torch.zeros(4, 2).to(torch.int8), 4, None)
    few = trials.first_outputs(weight, 2)
    assert torch.equal(dequantize(few), dequantize(weight)[:2])
    book = Codebook(
        torch.arange(16, dtype=torch.uint8).view(4, 4),
        torch.arange(16.0),
        torch.tensor([1.0, 2.0]),
        16,
        None,
        "nf4",
    )
    assert torch.equal(dequantize(trials.first_outputs(book, 2)), dequantize(book)[:2])
    assert trials.first_outputs(book, 1) is book


def test_a_kernel_that_is_alone_is_not_timed(candidates, monkeypatch):
    monkeypatch.setattr(trials, "_make_timer", None)
    candidates(FastTogether, Refusing)
    assert linear().kernel == "fast_together"


class Recorded:
    """Stands for a GPU's timer: some kernels cannot be recorded, all take a millisecond."""

    captures: ClassVar[list[str]] = []

    def __init__(self, kernel, x) -> None:
        self.captures.append(f"{kernel.kernel} x {len(x)}")
        kernel.capture(len(x))

    def __call__(self) -> float:
        return 1e-3


class Steady(Timed):
    kernel = "steady"

    def capture(self, num_rows: int) -> None:
        pass


class Waiting(Steady):
    """Looks at its result on the host, as LLM.int8() does."""

    kernel = "waiting"

    def capture(self, num_rows: int) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors")


class WaitingAtMany(Steady):
    kernel = "waiting_at_many"

    def capture(self, num_rows: int) -> None:
        if num_rows > 1:
            raise RuntimeError("operation not permitted")


class Full(Steady):
    kernel = "full"

    def capture(self, num_rows: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.fixture
def on_gpu(monkeypatch):
    """Trials record what they time; returns what was recorded."""
    monkeypatch.setattr(trials, "is_recorded", lambda device: True)
    monkeypatch.setattr(trials, "GraphTimer", Recorded)
    monkeypatch.setattr(Recorded, "captures", [])
    return Recorded.captures


def test_on_a_gpu_a_kernel_that_is_alone_is_recorded_at_every_number_of_rows(candidates, on_gpu):
    candidates(Steady)
    assert linear((1, 8)).kernel == "steady"
    assert on_gpu == ["steady x 1", "steady x 8"]


@pytest.mark.parametrize("bad", [Waiting, WaitingAtMany])
def test_a_kernel_alone_that_cannot_be_recorded_is_no_kernel(candidates, on_gpu, bad):
    candidates(bad)
    reason = f"{bad.kernel} cannot be part of a CUDA graph at . rows: operation not permitted"
    with (
        pytest.warns(UserWarning, match="is not used"),
        pytest.raises(NoKernelError, match=reason) as raised,
    ):
        linear((1, 8))
    assert "\n" not in str(raised.value)


def test_where_none_can_be_recorded_each_says_why(candidates, on_gpu):
    candidates(Waiting, WaitingAtMany)
    with (
        pytest.warns(UserWarning, match="is not used"),
        pytest.raises(NoKernelError, match=r"waiting cannot .*; waiting_at_many cannot"),
    ):
        linear((8,))


def test_one_that_cannot_be_recorded_leaves_the_place_to_another(candidates, on_gpu):
    book = candidates(WaitingAtMany, Steady)
    with pytest.warns(UserWarning, match="waiting_at_many is not used"):
        module = linear((1, 8))
    assert module.kernel == "waiting_at_many+steady"
    (question,) = (name for name in book._votes if name.endswith("x 8"))
    assert list(book.votes(question)[0]) == ["Steady"]


def test_a_full_memory_is_no_fault_of_a_kernel(candidates, on_gpu):
    candidates(Full, Steady)
    with pytest.raises(torch.OutOfMemoryError):
        linear()


def test_trials_are_remembered_for_the_shape(candidates, monkeypatch):
    candidates(FastAlone, FastTogether)
    first = linear()
    monkeypatch.setattr(choice, "trial", None)
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


class WholeTiles(FastAlone):
    """Takes what a trial has of a weight and not all of its outputs, which are no whole tiles."""

    kernel = "whole_tiles"

    def __init__(self, weight, bias, dtype) -> None:
        if len(weight) % 32:
            raise ValueError(f"{len(weight)} outputs are no whole tiles")
        super().__init__(weight, bias, dtype)


def test_one_that_refuses_the_whole_weight_leaves_its_place_to_the_next(candidates, monkeypatch):
    monkeypatch.setattr(choice, "MAX_OUTPUTS", 32)
    weight = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    candidates(WholeTiles, FastTogether)
    with pytest.warns(UserWarning, match="WholeTiles is not used: 50 outputs are no whole tiles"):
        module = fastest_linear(weight, None, "dense", torch.float32, CPU, (1, 8))
    assert module.kernel == "fast_together"
    assert module(torch.ones(1, 32)).shape == (1, 50)
    candidates(WholeTiles)
    with pytest.raises(ValueError, match="50 outputs are no whole tiles"):
        fastest_linear(weight, None, "dense", torch.float32, CPU, (1,))


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


@torch.inference_mode()
def test_a_compiler_makes_no_more_variants_than_there_are_changes_of_the_kernel():
    weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    parts = [kind(weight, None, torch.float32) for kind in (DenseLinear, PrepackedLinear)]
    module, variants = LinearByRows((1, 2, 4, 8), (0, 1, 1, 1), parts), []

    def backend(graph, inputs):
        variants.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(module, backend=backend, fullgraph=True, dynamic=True)
    for rows in range(1, 10):
        compiled(torch.ones(rows, 32))
    assert len(variants) == 2


def test_a_number_of_rows_takes_the_kernel_of_the_nearest_that_was_tried():
    parts = [nn.Identity() for _ in range(4)]
    for part in parts:
        part.kernel = "none"
    for counts in ((1, 2, 4, 8), (1, 8, 64, 1024), (2, 4, 16, 256)):
        for part_of_count in ((0, 1, 2, 3), (0, 1, 1, 0), (3, 2, 2, 2), (1, 0, 1, 1)):
            module = LinearByRows(counts, part_of_count, parts)
            for rows in (*range(1, 140), 300, 513, 2000):
                nearest = choice.tried_rows(rows)
                at = sum(count <= nearest for count in counts[1:])
                assert module.part_for(rows) is parts[part_of_count[at]], (counts, rows)


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
    assert trials._make_timer(kernel, torch.ones(2, 16))() > 0
