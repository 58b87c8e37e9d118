"""The two maps of a head with a vocabulary of its own: `d2t` and `t2d`.

`d2t` holds offsets: draft id i is the target's id i + d2t[i]; that is how vLLM (llama_eagle3.py),
SGLang (llama_eagle3.py) and speculators read it. `t2d` says of every id of the target whether the
draft has it; engines do not read it, so it is a witness of what the offsets should be.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from quantdraft.checkpoints.heads.families import PREFIX
from quantdraft.checkpoints.heads.head import DraftHead
from quantdraft.checkpoints.weights import TensorInfo

OFFSET_DTYPES = ("I64", "I32")
# A whole vocabulary may be padded by so much of itself; a longer rest is a vocabulary of its own.
MAX_PADDING = 0.02
Ids = npt.NDArray[Any]


def map_problems(head: DraftHead) -> Iterator[str]:
    """Yield what is wrong with the maps of a head: nothing where all ids lead where they should."""
    found = {name: _named(head, name) for name in ("d2t", "t2d")}
    problems = list(_shape_problems(head, found))
    yield from problems
    d2t, t2d = found["d2t"], found["t2d"]
    if problems or d2t is None:
        return
    known = None if t2d is None else _read(head, *t2d)
    yield from _value_problems(head, _read(head, *d2t), known)


def target_ids(head: DraftHead) -> Ids | None:
    """Return the target's id of each draft id; None for a head with the target's vocabulary."""
    found = _named(head, "d2t")
    if found is None:
        return None
    offsets = _read(head, *found)
    return np.arange(len(offsets)) + offsets


def _shape_problems(
    head: DraftHead, found: dict[str, tuple[str, TensorInfo] | None]
) -> Iterator[str]:
    draft, whole = head.vocab_size, head.target_vocab_size
    if found["d2t"] is None and draft < whole:
        yield (
            f"draft_vocab_size is {draft}, vocab_size {whole}, and there is no 'd2t', which says "
            "the target's id of each draft id"
        )
    if found["d2t"] is not None:
        name, info = found["d2t"]
        if info.dtype not in OFFSET_DTYPES:
            yield f"{name!r} is stored as {info.dtype}, and engines read whole numbers (I64)"
        if info.shape != (draft,):
            yield f"{name!r} has the shape {list(info.shape)}, and draft_vocab_size is {draft}"
    if found["t2d"] is not None:
        name, info = found["t2d"]
        if info.dtype != "BOOL":
            yield f"{name!r} is stored as {info.dtype}, and says yes or no of each id (BOOL)"
        if info.shape != (whole,):
            yield f"{name!r} has the shape {list(info.shape)}, and vocab_size is {whole}"


def _value_problems(head: DraftHead, offsets: Ids, known: Ids | None) -> Iterator[str]:
    whole, ids = head.target_vocab_size, np.arange(len(offsets)) + offsets
    absolute = _absolute_note(offsets, whole, known)
    outside = np.flatnonzero((ids < 0) | (ids >= whole))
    if len(outside):
        first = outside[0]
        yield (
            f"'d2t' leads {len(outside)} of {len(ids)} draft ids outside the vocabulary of {whole} "
            f"(draft id {first} to {ids[first]}){absolute}"
        )
        return
    order = np.argsort(ids, kind="stable")
    again = np.flatnonzero(np.diff(ids[order]) == 0)
    if len(again):
        first, second = order[again[0]], order[again[0] + 1]
        yield (
            f"'d2t' leads several draft ids to one id of the target: draft ids {first} and "
            f"{second} to {ids[first]}{_rest(len(again))}{absolute}"
        )
        return
    if known is not None:
        zero = "; 'd2t' is zero throughout: the map was not stored"
        yield from _disagreement(ids, known, absolute if offsets.any() else zero)
    elif not offsets.any() and whole - len(ids) > MAX_PADDING * whole:
        yield (
            f"'d2t' is zero throughout, so the {len(ids)} draft ids are the first of {whole}, and "
            "no 't2d' says so: the map was not stored"
        )


def _rest(number: int) -> str:
    return f", and {number - 1} more" if number > 1 else ""


def _disagreement(ids: Ids, known: Ids, cause: str) -> Iterator[str]:
    mapped = np.zeros(len(known), dtype=bool)
    mapped[ids] = True
    different = np.flatnonzero(mapped != known)
    if len(different):
        first = different[0]
        has, says = ("has", "not") if mapped[first] else ("has not", "that it is there")
        yield (
            f"'d2t' and 't2d' disagree on {len(different)} ids of the target: the draft {has} id "
            f"{first} by 'd2t', and 't2d' says {says}{cause}"
        )


def _absolute_note(offsets: Ids, whole: int, known: Ids | None) -> str:
    """Return a clause where the numbers fit as ids: that the writer did not subtract."""
    is_each_once = len(np.unique(offsets)) == len(offsets)
    if not is_each_once or offsets.min(initial=0) < 0 or offsets.max(initial=0) >= whole:
        return ""
    if known is not None and not np.array_equal(np.sort(offsets), np.flatnonzero(known)):
        return ""
    return "; its numbers are ids, where offsets belong: store d2t - arange(len(d2t))"


def _named(head: DraftHead, name: str) -> tuple[str, TensorInfo] | None:
    found = (pair for pair in head.tensors.items() if re.fullmatch(PREFIX + name, pair[0]))
    return next(found, None)


def _read(head: DraftHead, name: str, info: TensorInfo) -> Ids:
    from safetensors import safe_open

    with safe_open(head.path / info.file, framework="numpy") as file:
        values: Ids = file.get_tensor(name)
    return values if values.dtype == bool else values.astype(np.int64)
