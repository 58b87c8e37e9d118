"""Choose a Linear's kernel for each number of rows that it will be run with.

A format may have one fastest kernel for a draft's single token and another for a verification of
many. The answer to a question (format, shape, float type, rows) is the same for every model on a
machine: it is voted over trials (`trials`) and kept in a book (`book`).
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from quantdraft.checkpoints.tensors.unpacking import Codebook, DoubleScale, Unpacked
from quantdraft.engines.kernels import kernels_for
from quantdraft.engines.kernels.book import NUM_VOTES, Book, Vote, book_of, hopeless, winner
from quantdraft.engines.kernels.trials import (
    Question,
    Weight,
    first_outputs,
    held_bytes,
    trial,
)
from quantdraft.errors import first_line, is_out_of_memory

# Numbers of rows at which kernels are tried; another number takes the answer of the nearest.
TRIED_ROWS = (1, 2, 4, 8, 16, 64, 256, 1024)
BOUNDS = tuple(few * many for few, many in pairwise(TRIED_ROWS))  # squares of what lies between
# Of a weight in a trial: time goes as the outputs, and a head has ten times more.
MAX_OUTPUTS = 16384


_collections: list[dict[str, Question]] = []  # of those who collect, the innermost last
_in_use: set[str] = set()  # every question that a kernel of this process was chosen by


def fastest_linear(
    weight: Weight,
    bias: Tensor | None,
    weight_format: str,
    dtype: torch.dtype,
    device: torch.device,
    rows: tuple[int, ...],
) -> nn.Module:
    """Return the weight as the fastest of its format's kernels, or as one for each number of rows.

    A question without votes gets one trial now; `settle` holds the others.

    rows: the numbers of rows (batch x new tokens) that it will be run with
    Raises NoKernelError or ValueError, with every kernel's reason, where none takes the weight.
    """
    counts = tuple(sorted({tried_rows(count) for count in rows}))
    weight = _map_tensors(weight, lambda tensor: tensor.detach().to(device))
    bias = None if bias is None else bias.to(device)
    kinds = _kinds(device, weight_format, counts)
    facts = (device.type, weight_format, *_facts(weight), bias is not None, dtype)
    question = Question(
        kinds,
        first_outputs(weight, MAX_OUTPUTS),
        None if bias is None else bias[:MAX_OUTPUTS],
        dtype,
        device,
        counts,
        " ".join(map(str, facts)),
    )
    winners, built = _build_winners(question, weight, bias)
    if len(built) == 1:
        (only,) = built.values()
        return only
    return LinearByRows(counts, [list(built).index(name) for name in winners], list(built.values()))


def tried_rows(num_rows: int) -> int:
    """Return the one of TRIED_ROWS that is nearest to a number of rows, by ratio."""
    return TRIED_ROWS[sum(num_rows * num_rows > bound for bound in BOUNDS)]


def _bound_below(count: int) -> int:
    """Return the largest square of a number of rows to which fewer rows than `count` are nearer."""
    return ([0, *BOUNDS])[sum(tried < count for tried in TRIED_ROWS)]


@contextmanager
def collect_questions() -> Iterator[dict[str, Question]]:
    """Collect the questions that are not settled while models are loaded, by name."""
    questions: dict[str, Question] = {}
    _collections.append(questions)
    try:
        yield questions
    finally:
        _collections.remove(questions)


def settle(
    questions: Sequence[Question], progress: Callable[[float], None] = lambda share: None
) -> None:
    """Hold the trials that questions still lack, in rounds over all of them, and keep the answers.

    Rounds spread the votes of one question over time.
    """
    order = random.Random(0)
    for number in range(NUM_VOTES):
        waiting = [question for question in questions if not _is_settled(question)]
        order.shuffle(waiting)
        for place, question in enumerate(waiting):
            _vote(question)
            progress((number + (place + 1) / len(waiting)) / NUM_VOTES)
    for book in {id(_book(question)): _book(question) for question in questions}.values():
        book.write()
    progress(1.0)


def forget_choices() -> int:
    """Drop the votes of every question in use, for new trials, and return how many there were."""
    for device in {name.split(" ", 1)[0] for name in _in_use}:
        names = [name for name in _in_use if name.split(" ", 1)[0] == device]
        book_of(device, torch.get_num_threads()).forget(names)
    number = len(_in_use)
    _in_use.clear()
    return number


class LinearByRows(nn.Module):
    """Several kernels of one weight, each for the row counts at which it is the fastest.

    Its `parts` are kernels too: count the bytes of this one or of the parts, not both.
    """

    def __init__(
        self, counts: Sequence[int], part_of_count: Sequence[int], parts: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        changes = [
            (_bound_below(count), after)
            for count, (before, after) in zip(counts[1:], pairwise(part_of_count), strict=True)
            if before != after
        ]
        # A compiler makes a variant between any two bounds: none where the kernel stays the same.
        self.first, self.changes = part_of_count[0], tuple(changes)
        self.kernel = "+".join(str(part.kernel) for part in parts)

    @property
    def weight_bytes(self) -> int:
        """Bytes that the packings hold together; memory that they share is counted once."""
        total, seen = 0, set()
        for part in self.parts:
            total += held_bytes(part)
            for matrix in (buffer for buffer in part.buffers() if buffer.dim() == 2):
                total -= matrix.nbytes if matrix.data_ptr() in seen else 0
                seen.add(matrix.data_ptr())
        return total

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out), in x's float type."""
        out: Tensor = self.part_for(x.numel() // x.shape[-1])(x)
        return out

    def part_for(self, num_rows: int) -> nn.Module:
        """Return the kernel that takes so many rows."""
        chosen = self.first
        for bound, part in self.changes:
            if num_rows * num_rows > bound:
                chosen = part
        return self.parts[chosen]


def _kinds(
    device: torch.device, weight_format: str, counts: Sequence[int]
) -> tuple[type[Any], ...]:
    """Return the kernels of a format, without those made for more rows than there will be."""
    known = kernels_for(device.type, weight_format)
    return tuple(kind for kind in known if getattr(kind, "min_rows", 1) <= counts[-1]) or known


def _build_winners(
    question: Question, weight: Weight, bias: Tensor | None
) -> tuple[list[str], dict[str, nn.Module]]:
    """Return the kernel at each number of rows, by name, and each of them built of all outputs.

    One that takes the outputs of a trial may refuse all of them, as a vocabulary of no whole
    tiles: it is left out, and the next one takes its place.
    """
    by_name = {kind.__name__: kind for kind in question.kinds}
    refused: set[str] = set()
    built: dict[str, nn.Module] = {}
    while True:
        winners = _winners(question, refused)
        try:
            for name in dict.fromkeys(winners):
                if name not in built:
                    built[name] = by_name[name](weight, bias, question.dtype)
        except Exception as error:
            refused.add(name)
            votes = [_book(question).votes(each) for each in question.names]
            others = [{n for vote in of_rows for n in vote} - refused for of_rows in votes]
            if is_out_of_memory(error) or not all(others):
                raise
            warnings.warn(f"kernel {name} is not used: {first_line(error)}", stacklevel=3)
        else:
            return winners, {name: built[name] for name in dict.fromkeys(winners)}


def _winners(question: Question, refused: Set[str] = frozenset()) -> list[str]:
    """Return the kernel at each number of rows, by name; of those that are not refused."""
    book = _book(question)
    if not all(book.votes(name) for name in question.names):
        _vote(question)
    if _collections and not _is_settled(question):
        _collect(question, _collections[-1])
    _in_use.update(question.names)
    kept = [[_without(vote, refused) for vote in book.votes(name)] for name in question.names]
    return [winner([vote for vote in votes if vote]) for votes in kept]


def _without(vote: Vote, refused: Set[str]) -> Vote:
    return {name: timing for name, timing in vote.items() if name not in refused}


def _collect(question: Question, questions: dict[str, Question]) -> None:
    """Add a question, with a copy of the few weights it needs, so that its model can go."""
    known = questions.get(question.name)
    if known is None:
        own = replace(question, weight=_map_tensors(question.weight, torch.clone))
    else:
        own = replace(known, counts=tuple(sorted({*known.counts, *question.counts})))
    questions[question.name] = own


def _vote(question: Question) -> None:
    """Hold one trial at every number of rows that lacks votes."""
    book = _book(question)
    open_counts = tuple(c for c in question.counts if not book.is_settled(question.at(c)))
    slow = set().union(*(hopeless(book.votes(name)) for name in question.names))
    kinds = tuple(kind for kind in question.kinds if kind.__name__ not in slow)
    for count, vote in trial(replace(question, kinds=kinds, counts=open_counts)).items():
        book.add(question.at(count), vote)


def _is_settled(question: Question) -> bool:
    return all(_book(question).is_settled(name) for name in question.names)


def _book(question: Question) -> Book:
    return book_of(str(question.device.type), torch.get_num_threads())


def _map_tensors(weight: Weight, change: Callable[[Tensor], Tensor]) -> Weight:
    """Return the weight with every tensor changed."""
    if isinstance(weight, Tensor):
        return change(weight)

    def change_value(value: Any) -> Any:
        return change(value) if isinstance(value, Tensor) else value

    if isinstance(weight, Unpacked):
        return Unpacked(*(change_value(value) for value in weight))
    double = weight.double
    scales = None if double is None else DoubleScale(*(change_value(value) for value in double))
    return Codebook(*(change_value(value) for value in weight._replace(double=scales)))


def _facts(weight: Weight) -> tuple[Any, ...]:
    """Return the facts about a weight that decide whether a kernel takes it, and its time."""
    if isinstance(weight, Tensor):
        return ("dense", tuple(weight.shape), weight.dtype)
    if isinstance(weight, Codebook):
        return (weight.name, weight.shape, weight.block_size, weight.double is None)
    return (
        tuple(weight.integers.shape),
        weight.integers.dtype,
        tuple(weight.scale.shape),
        weight.group_size,
        weight.block,
        weight.zero_point is None,
        weight.column_order is None,
    )
