"""A batch of the native engine that answers prompts: a row that has ended takes the next one.

Rows read their prompts one by one, each into its part of the cache, and then decode together, one
token a step. Long prompts go first, so that the last rows to end are short ones. What a prompt
begins with and another row holds (a system prompt, the turns before) is copied and not read again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from quantdraft.checkpoints.tensors.free_memory import available_bytes
from quantdraft.engines.native.model import NativeModel
from quantdraft.engines.native.session import Session
from quantdraft.measure.generation import GeneratedTokens, choose, require_finite, rounded
from quantdraft.record.choices import Mode
from quantdraft.traffic.traffic import Sampling

PREFILL_CHUNK = 512  # tokens of a prompt that are read in one pass
# Rows by default, fewer where their caches come to more than a share of free memory, but not fewer
# than a few. Beyond 32 rows a CPU's products no longer wait for the weights.
USUAL_ROWS, LEAST_ROWS = 32, 8
MEMORY_SHARE = 0.25


def usual_rows(native: NativeModel, num_slots: int) -> int:
    """Return how many rows a batch has where nobody says: as many as fit in free memory.

    num_slots: tokens of the longest prompt and its answer
    """
    shape = native.model.shape
    entries: int = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * num_slots
    free = available_bytes(native.model.embedding.device)
    if free is None:
        return USUAL_ROWS
    fitting = int(MEMORY_SHARE * free) // (entries * native.dtype.itemsize)
    return min(USUAL_ROWS, max(LEAST_ROWS, fitting))


def num_shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two texts have in common from their beginning."""
    length = min(len(one), len(other))
    return next((at for at in range(length) if one[at] != other[at]), length)


@dataclass(slots=True)
class _Row:
    """One prompt under way."""

    place: int  # of its prompt
    num_read: int  # tokens in the cache
    generator: torch.Generator
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


@torch.inference_mode()
def generate_in_turns(
    native: NativeModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    max_new_tokens: int,
    seeds: Sequence[int],
    *,
    batch_size: int | None,
    mode: Mode = "eager",
    progress: Callable[[int], None] = lambda num_prompts: None,
) -> list[GeneratedTokens]:
    """Continue prompts, each to its end-of-sequence token or the length limit.

    native: on the project's decoder
    prompts: token ids, of any lengths and any number; none is empty
    seeds: one for each prompt; the same seed draws the same answer beside any other prompts
    batch_size: prompts under way at once; None: `usual_rows`
    progress: is told of prompts that have been answered
    Raises UndefinedMetricError where the logits are not finite.
    """
    batch = _Batch(native, prompts, sampling, max_new_tokens, seeds, batch_size, mode)
    waiting = deque(sorted(range(len(prompts)), key=lambda place: -len(prompts[place])))
    while waiting or any(batch.rows):
        for index, row in enumerate(batch.rows):
            if row is None and waiting:
                batch.read_prompt(index, waiting.popleft())
        progress(batch.collect())
        if any(batch.rows):
            batch.step()
            progress(batch.collect())
    return [batch.answers[place] for place in range(len(prompts))]


class _Batch:
    """The rows of one session, and the answers of those that have ended."""

    def __init__(
        self,
        native: NativeModel,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        max_new_tokens: int,
        seeds: Sequence[int],
        batch_size: int | None,
        mode: Mode,
    ) -> None:
        self.prompts, self.seeds = prompts, seeds
        self.sampling, self.max_new_tokens = sampling, max_new_tokens
        self.ends = frozenset(native.end_token_ids)
        num_slots = max(map(len, prompts), default=1) + max_new_tokens
        num_rows = min(batch_size or usual_rows(native, num_slots), len(prompts))
        self.session = Session(native, num_rows, num_slots, mode)
        self.rows: list[_Row | None] = [None] * num_rows
        # Tokens whose keys and values a row's part of the cache holds, from its first slot on.
        self.held: list[list[int]] = [[] for _ in range(num_rows)]
        self.answers: dict[int, GeneratedTokens] = {}

    def read_prompt(self, index: int, place: int) -> None:
        """Let a free row read a prompt, and say its first token."""
        prompt, session = self.prompts[place], self.session.row(index)
        generator = torch.Generator().manual_seed(self.seeds[place])
        row = self.rows[index] = _Row(place, len(prompt), generator)
        token_ids = torch.tensor([list(prompt)], device=session.device)
        logits = token_ids
        for start in range(self._take_known(index, prompt), len(prompt), PREFILL_CHUNK):
            part = token_ids[:, start : start + PREFILL_CHUNK]
            end = start + part.shape[1]
            positions = torch.arange(start, end, device=session.device)[None]
            last = torch.full((1, 1), part.shape[1] - 1, device=session.device)
            logits = session.forward(part, positions, session.num_live(end), last)
        self.held[index] = list(prompt)
        self._say([row], logits[:, 0])

    def _take_known(self, index: int, prompt: Sequence[int]) -> int:
        """Copy what some row holds of a prompt into a row; return how many tokens that is.

        The last token is always read: its logits are asked for.
        """
        shared = [num_shared(held, prompt[:-1]) for held in self.held]
        source = max(range(len(shared)), key=lambda row: (shared[row], row == index))
        if source != index:
            assert self.session.cache is not None
            entries = self.session.cache.entries[..., : shared[source], :]
            entries[:, index] = entries[:, source]
        return shared[source]

    def step(self) -> None:
        """Decode one token of every row. A free row decodes at place 0, which nothing reads."""
        session, device = self.session, self.session.device
        fed = [row.token_ids[-1] if row else 0 for row in self.rows]
        places = [row.num_read if row else 0 for row in self.rows]
        num_live = session.num_live(max(places) + 1)

        def run(token_ids: Tensor, positions: Tensor) -> Tensor:
            return session.forward(token_ids, positions, num_live)[:, 0]

        inputs = torch.tensor([fed, places]).to(device)[:, :, None]
        logits = session.call(("decode", num_live), run, inputs[0], inputs[1])
        live = [index for index, row in enumerate(self.rows) if row is not None]
        rows = [row for row in self.rows if row is not None]
        for held, row, token in zip(self.held, self.rows, fed, strict=True):
            if row is None:
                held.clear()  # its first slot has been written
            else:
                held.append(token)
                row.num_read += 1
        self._say(rows, logits if len(live) == len(self.rows) else logits[live])

    def collect(self) -> int:
        """Free the rows whose answer has ended, and return how many they are."""
        ended = [index for index, row in enumerate(self.rows) if row and self._has_ended(row)]
        for index in ended:
            row = self.rows[index]
            assert row is not None
            self.answers[row.place] = GeneratedTokens(tuple(row.token_ids), rounded(row.logprobs))
            self.rows[index] = None
        return len(ended)

    def _has_ended(self, row: _Row) -> bool:
        return len(row.token_ids) == self.max_new_tokens or row.token_ids[-1] in self.ends

    def _say(self, rows: Sequence[_Row], logits: Tensor) -> None:
        """Append the next token of each row by its logits, (rows, vocab)."""
        require_finite(logits, max(len(row.token_ids) for row in rows))
        generators = [row.generator for row in rows]
        tokens, logprobs = choose(logits, self.sampling, generators)
        for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
            row.token_ids.append(token)
            row.logprobs.append(logprob)
