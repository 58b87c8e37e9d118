"""Traffic replay: what is kept of a draft's proposals for text that the target has produced.

One teacher-forced pass over prompt and response gives the acceptance probability of every response
token, from which `quantdraft.judge.acceptance` counts the rounds of any k: no loop, no target in
memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantdraft.checkpoints.tensors.free_memory import available_bytes
from quantdraft.engines.native.caches import cache_name, read_tokens, reads_on
from quantdraft.errors import TrafficError
from quantdraft.measure.probabilities import MemoryStore, ProbabilityStore
from quantdraft.measure.sampling import processed_logprobs
from quantdraft.measure.shared_beginnings import Branch, SharedBeginnings, tokens_read
from quantdraft.record import AcceptanceRule
from quantdraft.traffic.responses import Response
from quantdraft.traffic.traffic import Sampling, Traffic, token_counts

# Logits of one pass, in floats: 2^28 is 1 GB in float32, whatever the vocabulary. Batches are made
# by this number alone, so that a run that goes on elsewhere has the same ones.
MAX_LOGITS = 2**28
# Where memory is short a batch comes in pieces of fewer logits, down to 2^24.
MIN_LOGITS = 2**24
# Of one logit in memory, at most: as the model gave it (4), in float32 (4), sorted with its place
# (12), as probabilities (8), and a mask.
LOGIT_BYTES = 32
MAX_BATCH_TOKENS = 4096
# A beginning that texts share is read apart from them where that saves so many tokens: on a CPU the
# time of two passes more, on a GPU, which waits for its launches, what a batch holds.
LEAST_SAVED = {"cpu": 64}


class Span(NamedTuple):
    """Logits for the response of one prompt: row t predicts response token t."""

    prompt: int  # position in the traffic
    first_token: int  # of the response, when a long response comes in pieces
    logits: Tensor  # (tokens, vocab) float32
    response: Response


def acceptance_probabilities(
    draft: Any,
    traffic: Traffic,
    rule: AcceptanceRule,
    progress: Callable[[int], None] = lambda num_prompts: None,
    store: ProbabilityStore | None = None,
) -> list[NDArray[np.float64]]:
    """Return an array (num_response_tokens,) float64 of acceptance probabilities for each prompt.

    The rules are DESIGN's: `greedy` and `greedy_draft` need token ids alone; `rejection` also needs
    the target's processed log-probabilities and the sampling they came from; `exact_match` needs
    the sampling. Raises TrafficError where the traffic does not carry them.

    store: what an earlier replay of the same has left; batches that it finished are not run again

    A token whose logits are not finite has NaN: `replay_rounds` refuses it by the prompt's name.
    """
    sampling = _sampling_of(traffic, rule)
    num_tokens = token_counts(traffic.responses).response.tolist()
    store = store or MemoryStore(num_tokens)
    progress(sum(store.has(prompt) for prompt in range(len(num_tokens))))
    for span in response_logits(draft, traffic.responses, store.has):
        last = span.first_token + len(span.logits)
        values = _probabilities_of(span.logits, span.response, span.first_token, rule, sampling)
        store.put(span.prompt, span.first_token, values)
        if last == num_tokens[span.prompt]:
            progress(1)
    return store.arrays()


def _probabilities_of(
    logits: Tensor, response: Response, first: int, rule: AcceptanceRule, sampling: Sampling
) -> NDArray[np.float64]:
    last = first + len(logits)
    ids = torch.tensor(response.response_token_ids[first:last], device=logits.device)
    if rule in ("greedy", "greedy_draft"):
        return greedy_probabilities(logits, ids)
    draft = processed_logprobs(logits, sampling).gather(-1, ids[:, None])[:, 0].double()
    if rule == "exact_match":
        return draft.exp().cpu().numpy()
    assert response.logprobs is not None
    target = torch.tensor(response.logprobs[first:last], device=logits.device).double()
    return (draft - target).exp().clamp(max=1.0).cpu().numpy()


def greedy_probabilities(logits: Tensor, ids: Tensor) -> NDArray[np.float64]:
    """Return 1 where a token is the draft's most probable one, else 0; NaN without finite logits.

    logits: (tokens, vocab) float32, ids: (tokens,) int64
    """
    likeliest = logits.max(-1)
    # A NaN counts as the largest: its token would be "kept" or not by accident.
    kept = torch.where(likeliest.values.isfinite(), likeliest.indices == ids, torch.nan)
    return kept.double().cpu().numpy()


def _sampling_of(traffic: Traffic, rule: AcceptanceRule) -> Sampling:
    sampling = traffic.sampling
    if rule in ("greedy", "greedy_draft"):
        return sampling or Sampling()
    if sampling is None or sampling.is_greedy:
        raise TrafficError(
            f"acceptance rule '{rule}' needs traffic sampled at a known temperature above 0. "
            "Capture it with `quantdraft capture --temperature 0.8`, or use the rule 'greedy'."
        )
    if rule == "rejection" and any(r.logprobs is None for r in traffic.responses):
        raise TrafficError(
            "acceptance rule 'rejection' needs the target's log-probability of every token, which "
            "this traffic lacks. Log them (vLLM: --logprobs-mode processed_logprobs), or use "
            "--acceptance-rule greedy_draft."
        )
    return sampling


@torch.inference_mode()
def response_logits(
    model: Any,
    responses: Sequence[Response],
    is_done: Callable[[int], bool] = lambda prompt: False,
) -> Iterator[Span]:
    """Yield the logits that predict each response's tokens, batch by batch.

    What texts have in common is read once; see `shared_beginnings`. Batches in which every prompt
    is done are left out; the others are those of a whole run. Padding is on the right of a causal
    model: a padded row's numbers are those of its own length.
    """
    reader = _Reader(model, responses, is_done)
    yield from reader.read(reader.shared.tree(_least_saved(model)), None, 0)


def _least_saved(model: Any) -> int | None:
    """Return the tokens that a shared beginning must save; None where none is read apart.

    A pass over a cache is known to be right for the library's own models which read on from one.
    """
    if not type(model).__module__.startswith("transformers.") or not reads_on(model):
        return None
    return LEAST_SAVED.get(model.device.type, MAX_BATCH_TOKENS)


class _Reader:
    """One model's passes over the texts of some responses."""

    def __init__(
        self, model: Any, responses: Sequence[Response], is_done: Callable[[int], bool]
    ) -> None:
        self.model, self.responses, self.is_done = model, responses, is_done
        self.vocab_size = model.config.get_text_config().vocab_size
        self.max_logits = logits_in_memory(model.device)
        self.shared = SharedBeginnings(responses)

    def read(self, branch: Branch, cache: Any, num_read: int) -> Iterator[Span]:
        """Yield the logits of a branch's texts, the shortest first, then those of its branches.

        cache: holds the `num_read` tokens that they begin with, in one row; it grows
        """
        if self._are_done(branch.all_texts()):
            return
        if branch.num_shared > num_read:
            some = tokens_read(self.responses[next(branch.all_texts())])[
                num_read : branch.num_shared
            ]
            ids = torch.tensor([some], device=self.model.device)
            out = read_tokens(self.model, ids, cache, num_read, logits_to_keep=1)
            cache = out[cache_name(self.model)]
        for batch in _batches(branch.texts, self.shared.lengths, self.vocab_size):
            if not self._are_done(batch):
                yield from self._read_batch(batch, cache, branch.num_shared)
        for each in branch.branches:
            is_last = each is branch.branches[-1]
            own = cache if is_last or cache is None else copy.deepcopy(cache)
            yield from self.read(each, own, branch.num_shared)

    def _read_batch(self, batch: Sequence[int], cache: Any, num_read: int) -> Iterator[Span]:
        """Yield the logits of all responses in a batch of texts, padded on the right."""
        ids = torch.zeros((len(batch), max(self.shared.lengths[text] for text in batch))).long()
        for row, text in zip(ids, batch, strict=True):
            row[: self.shared.lengths[text]] = torch.tensor(tokens_read(self.responses[text]))
        assert (ids[:, :num_read] == ids[:1, :num_read]).all()
        first = min(map(self.shared.first, batch))
        num_tokens = self.max_logits // (len(batch) * self.vocab_size)
        own = None if cache is None else _in_rows(cache, len(batch))
        for start, logits in _pieces(
            self.model, ids.to(self.model.device), first, num_tokens, own, num_read
        ):
            for row, text in enumerate(batch):
                for index in self.shared.inside(text):
                    span = _own_part(logits[row], start, index, self.responses[index])
                    if span is not None:
                        yield span

    def _are_done(self, texts: Iterable[int]) -> bool:
        return all(self.is_done(each) for text in texts for each in self.shared.inside(text))


def _in_rows(cache: Any, num_rows: int) -> Any:
    """Return a copy of a cache of one row with that row so many times."""
    copied = copy.deepcopy(cache)
    copied.reorder_cache(torch.zeros(num_rows, dtype=torch.long))
    return copied


def _own_part(logits: Tensor, start: int, index: int, response: Response) -> Span | None:
    """Return the logits, of those at positions start.., that predict this response's tokens."""
    begin = len(response.prompt_token_ids) - 1
    end = begin + len(response.response_token_ids)
    low, high = max(begin, start), min(end, start + len(logits))
    if low >= high:
        return None
    return Span(index, low - begin, logits[low - start : high - start].float(), response)


def logits_in_memory(device: torch.device) -> int:
    """Return how many logits a pass may have: a power of two, so that small changes change nothing.

    MAX_LOGITS where memory is not short, or where nobody knows.
    """
    free = available_bytes(torch.device(device))
    if free is None:
        return MAX_LOGITS
    fitting = 1 << max(1, free // LOGIT_BYTES).bit_length() - 1
    return min(MAX_LOGITS, max(MIN_LOGITS, fitting))


def _pieces(
    model: Any, ids: Tensor, first: int, num_tokens: int, cache: Any = None, num_read: int = 0
) -> Iterator[tuple[int, Tensor]]:
    """Yield (start position, logits (rows, tokens, vocab)) from position `first` on.

    num_tokens: whose logits fit into memory at a time
    cache: holds the first `num_read` tokens of every row; None: nothing has been read

    One pass where the logits fit; else pieces, so that memory stays bounded: over a cache, or each
    from the beginning where the model reads only single tokens on top of one.
    """
    width = ids.shape[1]
    tokens_per_piece = max(1, num_tokens)
    if width - first <= tokens_per_piece:
        options: dict[str, Any] = {"logits_to_keep": width - first}
        if cache is None:
            yield first, model(input_ids=ids, use_cache=False, **options).logits
        else:
            yield first, read_tokens(model, ids[:, num_read:], cache, num_read, **options).logits
        return
    starts = range(first, width, tokens_per_piece)
    if not reads_on(model):
        for start in starts:
            end = min(start + tokens_per_piece, width)
            out = model(input_ids=ids[:, :end], use_cache=False, logits_to_keep=end - start)
            yield start, out.logits
        return
    name = cache_name(model)
    if first > num_read:
        before = ids[:, num_read:first]
        cache = read_tokens(model, before, cache, num_read, logits_to_keep=1)[name]
    for start in starts:
        piece = ids[:, start : start + tokens_per_piece]
        out = read_tokens(model, piece, cache, start)
        cache = out[name]
        yield start, out.logits


def _batches(texts: Iterable[int], lengths: Sequence[int], vocab_size: int) -> Iterator[list[int]]:
    """Yield texts of similar length, under the limits of tokens and logits.

    lengths: tokens read of each text
    """
    batch: list[int] = []
    for text in sorted(texts, key=lengths.__getitem__):
        size = (len(batch) + 1) * (lengths[text] + 1)
        if batch and (size > MAX_BATCH_TOKENS or size * vocab_size > MAX_LOGITS):
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch
