"""The live loop: a draft proposes, the target verifies, a prefix is kept; each row on its own.

It is the proof behind replay: on the same text both count the same rounds. Counting is the
engines': the first response token comes from the prefill and belongs to no round; every round
proposes k tokens, and a last round may be cut by the limit.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from quantdraft.engines.native.session import Session
from quantdraft.measure.sampling import draw, processed_logprobs
from quantdraft.measure.verification import RoundPlan, pick, verify


@dataclass(frozen=True, slots=True)
class LiveRun:
    """What one prompt's live loop emitted and counted."""

    token_ids: tuple[int, ...]
    num_drafts: int
    num_accepted_tokens_per_pos: tuple[int, ...]  # (k,), cut at the length limit


class LiveBatch(NamedTuple):
    """The runs of one batch, and the wall time of its rounds, prefill excluded."""

    runs: list[LiveRun]
    decode_seconds: float


@dataclass(slots=True)
class _Row:
    """One prompt under way."""

    tokens: list[int]
    num_prompt: int
    max_new_tokens: int
    accepted_per_pos: list[int]
    generator: torch.Generator
    num_drafts: int = 0
    is_done: bool = False
    kept_all: bool = False  # the draft has not read the last token it proposed

    @property
    def num_left(self) -> int:
        return self.max_new_tokens - (len(self.tokens) - self.num_prompt)


@torch.inference_mode()
def speculate(
    target: Session,
    draft: Session | None,
    prompts: Sequence[Sequence[int]],
    plan: RoundPlan,
    *,
    max_new_tokens: Sequence[int],
    eos_token_ids: frozenset[int],
    seeds: Sequence[int],
) -> LiveBatch:
    """Decode one prompt a row by speculative decoding; at temperature 0 it is the target's text.

    Every row accepts on its own and draws from its own generator, so a row's text does not depend
    on its neighbours. `draft` None, with k = 0, decodes with the target alone.
    """
    rows = [
        _Row(
            list(p), len(p), n, [0] * plan.num_speculative_tokens, torch.Generator().manual_seed(s)
        )
        for p, n, s in zip(prompts, max_new_tokens, seeds, strict=True)
    ]
    first = _prefill(target, draft, rows)
    uniform = _uniforms(rows, 1, plan).to(target.device)
    for row, token in zip(rows, pick(first, uniform, plan)[:, 0].tolist(), strict=True):
        _extend(row, [token], eos_token_ids)
    started = time.perf_counter()
    while not all(row.is_done for row in rows):
        _round(target, draft, rows, plan, eos_token_ids)
    seconds = time.perf_counter() - started
    return LiveBatch([_finished(row) for row in rows], seconds)


def _round(
    target: Session,
    draft: Session | None,
    rows: list[_Row],
    plan: RoundPlan,
    eos_token_ids: frozenset[int],
) -> None:
    k = plan.num_speculative_tokens
    given = _given(rows, plan, target.device)
    longest = max(len(row.tokens) for row in rows)
    # 1. The draft proposes k tokens, one pass each, from where its cache ends.
    last = given.tokens[:, 1:]
    proposed, draft_logprobs = last[:, :0], None
    if draft is not None and k > 0:
        proposed, draft_logprobs = _proposal(draft, rows, plan, longest, given)
    # 2. The target reads them all in one pass: k + 1 distributions.
    # 3. A prefix is kept, and one token of the target's follows it.
    fed = torch.cat([last, proposed], dim=1)
    positions = given.lengths + torch.arange(-1, k, device=target.device)
    emitted = _verification(
        target, plan, fed, positions, longest + k, draft_logprobs, given.uniforms[:, k:]
    )
    # 4. What was kept is emitted. Both caches step back by being fed from there.
    for row, (*tokens, num_accepted) in zip(rows, emitted.tolist(), strict=True):
        if not row.is_done:
            _keep(row, tokens[: num_accepted + 1], eos_token_ids)


def _keep(row: _Row, emitted: list[int], eos_token_ids: frozenset[int]) -> None:
    num_accepted = len(emitted) - 1
    num_emitted = _extend(row, emitted, eos_token_ids)
    for position in range(min(num_accepted, num_emitted)):
        row.accepted_per_pos[position] += 1
    row.num_drafts += 1
    row.kept_all = num_accepted == len(row.accepted_per_pos)


def _extend(row: _Row, emitted: list[int], eos_token_ids: frozenset[int]) -> int:
    """Append tokens up to the limit or an end token; return how many were appended."""
    kept = _cut(emitted, eos_token_ids)[: row.num_left]
    row.tokens += kept
    row.is_done = row.num_left == 0 or row.tokens[-1] in eos_token_ids
    return len(kept)


def _prefill(target: Session, draft: Session | None, rows: list[_Row]) -> Tensor:
    """Let both models read the prompts; return the target's logits, (batch, 1, vocab).

    Prompts are padded on the right: what a short row writes beyond its end is written again, by
    its own tokens, before anything reads it.
    """
    device, longest = target.device, max(row.num_prompt for row in rows)
    padded = [row.tokens + [0] * (longest - row.num_prompt) for row in rows]
    token_ids = torch.tensor(padded, device=device)
    positions = torch.arange(longest, device=device).expand(len(rows), -1)
    at = torch.tensor([[row.num_prompt - 1] for row in rows], device=device)
    if draft is not None:
        draft.forward(token_ids, positions, draft.num_live(longest), at)
    return target.forward(token_ids, positions, target.num_live(longest), at)


def _proposal(
    draft: Session, rows: list[_Row], plan: RoundPlan, longest: int, given: _Given
) -> tuple[Tensor, Tensor | None]:
    """Propose k tokens a row. A row whose proposals were all kept feeds the last one too."""
    width = 2 if any(row.kept_all and not row.is_done for row in rows) else 1
    fed, positions = (
        given.tokens[:, -width:],
        given.lengths + torch.arange(-width, 0, device=draft.device),
    )
    k = plan.num_speculative_tokens
    live = tuple(draft.num_live(longest + step) for step in range(k))
    if draft.slot_step > 1:  # one number for the whole round, so that one recording serves
        live = (live[-1],) * k

    def run(fed: Tensor, positions: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor | None]:
        return propose(draft, plan, fed, positions, live, uniforms)

    key = "propose", plan, live, width
    proposed, logprobs = draft.call(key, run, fed, positions, given.uniforms[:, :k])
    return proposed, logprobs


def propose(
    draft: Session,
    plan: RoundPlan,
    fed: Tensor,
    positions: Tensor,
    live: Sequence[int],
    uniforms: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """Run k draft steps, the first from `fed`, each next from the token before.

    fed, positions: (batch, width) int64
    live:     k numbers of slots to attend to
    uniforms: (batch, k) float64 in [0, 1), read where the draft draws
    Returns the proposed ids (batch, k), and the log-probabilities (batch, k, vocab) they were drawn
    from where `rejection` needs them.
    """
    proposed, rows = [], []
    # With one row whose cache ends where attention does, the newest token sees every slot.
    is_exact = draft.batch_size == 1 and draft.slot_step == 1
    for step, num_live in enumerate(live):
        at = torch.full((len(fed), 1), fed.shape[1] - 1, device=fed.device)
        sees_all = is_exact and fed.shape[1] == 1
        logits = draft.forward(fed, positions, num_live, at, sees_all)[:, 0]
        if plan.draft_draws:
            rows.append(processed_logprobs(logits, plan.sampling))
            token = draw(rows[-1], uniforms[:, step])
        else:
            token = logits.argmax(-1)
        proposed.append(token)
        fed, positions = token[:, None], positions[:, -1:] + 1
    logprobs = torch.stack(rows, dim=1) if plan.rule == "rejection" and rows else None
    return torch.stack(proposed, dim=1), logprobs


def _verification(
    target: Session,
    plan: RoundPlan,
    fed: Tensor,
    positions: Tensor,
    longest: int,
    draft_logprobs: Tensor | None,
    uniforms: Tensor,
) -> Tensor:
    """Return the tokens of each row, and how many of its proposals it keeps: (batch, k + 2)."""
    num_live = target.num_live(longest)
    sees_all = target.batch_size == target.slot_step == fed.shape[1] == 1
    inputs = (fed, positions, uniforms, *(() if draft_logprobs is None else (draft_logprobs,)))

    def run(fed: Tensor, positions: Tensor, uniforms: Tensor, *drawn: Tensor) -> Tensor:
        return verify_pass(
            target, plan, fed, positions, num_live, sees_all, uniforms, drawn[0] if drawn else None
        )

    packed: Tensor = target.call(("verify", plan, num_live), run, *inputs)
    return packed


def verify_pass(
    target: Session,
    plan: RoundPlan,
    fed: Tensor,
    positions: Tensor,
    num_live: int,
    sees_all: bool,
    uniforms: Tensor,
    draft_logprobs: Tensor | None,
) -> Tensor:
    """Run the target over its last token and the proposals, `fed`, and verify those.

    fed, positions: (batch, k + 1) int64
    Returns (batch, k + 2) int64: `Verification.emitted`, then `num_accepted`, for one copy to the
    host.
    """
    logits = target.forward(fed, positions, num_live, None, sees_all)
    found = verify(fed[:, 1:], draft_logprobs, logits, plan, uniforms)
    return torch.cat([found.emitted, found.num_accepted[:, None]], dim=1)


class _Given(NamedTuple):
    """What a round starts from, on the models' device.

    tokens:   (batch, 2) int64, the last two of each row
    lengths:  (batch, 1) int64, tokens of each row
    uniforms: (batch, 2 k + 1) float64 in [0, 1), each row's from its own generator; or zeros
    """

    tokens: Tensor
    lengths: Tensor
    uniforms: Tensor


def _given(rows: list[_Row], plan: RoundPlan, device: torch.device) -> _Given:
    """Bring what a round starts from to the device in one copy, as int64."""
    places = [[row.tokens[-2:][0], row.tokens[-1], len(row.tokens)] for row in rows]
    uniforms = _uniforms(rows, 2 * plan.num_speculative_tokens + 1, plan)
    packed = torch.cat([torch.tensor(places), uniforms.view(torch.int64)], dim=1)
    if device.type == "cuda":  # from pinned memory the host does not wait for the copy
        packed = packed.pin_memory()
    packed = packed.to(device, non_blocking=True)
    return _Given(packed[:, :2], packed[:, 2:3], packed[:, 3:].view(torch.float64))


def _uniforms(rows: list[_Row], count: int, plan: RoundPlan) -> Tensor:
    """Return (batch, count) float64 in [0, 1), each row's from its own generator; or zeros."""
    if not plan.is_drawn:
        return torch.zeros(len(rows), count, dtype=torch.float64)
    return torch.stack(
        [torch.rand(count, generator=row.generator, dtype=torch.float64) for row in rows]
    )


def _finished(row: _Row) -> LiveRun:
    token_ids = tuple(row.tokens[row.num_prompt :])
    return LiveRun(token_ids, row.num_drafts, tuple(row.accepted_per_pos))


def _cut(emitted: list[int], eos_token_ids: frozenset[int]) -> list[int]:
    """Return the tokens up to the first end-of-sequence token."""
    for position, token in enumerate(emitted):
        if token in eos_token_ids:
            return emitted[: position + 1]
    return emitted


@torch.inference_mode()
def next_logits(target: Session, prefix_token_ids: Sequence[int]) -> Tensor:
    """Return the target's logits for the token after the prefix, (vocab,) float32.

    target: of batch size 1
    """
    length = len(prefix_token_ids)
    ids = torch.tensor([list(prefix_token_ids)], device=target.device)
    positions = torch.arange(length, device=target.device)[None]
    at = torch.tensor([[length - 1]], device=target.device)
    return target.forward(ids, positions, target.num_live(length), at)[0, 0].float()
