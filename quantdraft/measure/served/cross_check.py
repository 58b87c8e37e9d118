"""What an engine answered beside what replay says of the same text, prompt by prompt.

The engine writes its own text; its rounds are those of that text under the draft. The text itself
is held against the traffic's: where they part, the target's own logits say whether it was a tie.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.tensors.devices import DTYPES
from quantdraft.checkpoints.tensors.loading import load_model
from quantdraft.engines.counters import Counters
from quantdraft.engines.findings import float_type
from quantdraft.engines.kernels.dense import type_name
from quantdraft.errors import EngineError
from quantdraft.judge.acceptance import replay_rounds
from quantdraft.measure.live import known_status, with_logprobs
from quantdraft.measure.near_ties import (
    TextStatus,
    bounded_rounds,
    coarsest,
    text_status,
    widest_step,
)
from quantdraft.measure.replay import acceptance_probabilities, response_logits
from quantdraft.measure.served.fleet import ArmAnswer
from quantdraft.measure.served.served_run import Serve
from quantdraft.record import AcceptanceRule, Served, ServedArm, ServedRequest
from quantdraft.traffic.responses import Response
from quantdraft.traffic.traffic import Sampling, Traffic

Texts = Mapping[tuple[int, tuple[int, ...]], TextStatus]  # (prompt, token ids) -> what they are


class Rounds(NamedTuple):
    """Of one text under one draft, and between what numbers near-ties may move them."""

    replayed: float | None
    low: float | None = None
    high: float | None = None


NO_ROUNDS = Rounds(None)  # of the target alone


def cross_check(
    run: Serve, served: Served, answers: Mapping[str, Sequence[ArmAnswer]]
) -> dict[str, ServedArm]:
    """Return every arm's answers as records, with replayed rounds and the text's status.

    Raises EngineError for a server that does not do what its arm says: no draft where there should
    be one, or another k.
    """
    for arm, found in answers.items():
        _require_counted(run, arm, found)
    texts = _texts(run, served, [answer for found in answers.values() for answer in found])
    return {arm: _arm(run, served, arm, found, texts) for arm, found in answers.items()}


def rounds_replayed(
    draft: Any, responses: Sequence[Response], rule: AcceptanceRule, sampling: Sampling, k: int
) -> list[float]:
    """Return the rounds that a draft needs for texts, one number for each response."""
    probabilities = acceptance_probabilities(draft, Traffic(tuple(responses), sampling), rule)
    ids = [response.prompt_id for response in responses]
    return [float(n) for n in replay_rounds(ids, probabilities, [k]).num_drafts[0]]


def replay_dtype(given: torch.dtype, served: str) -> torch.dtype:
    """Return the float type in which the servers computed, or the given one if they do not tell."""
    return DTYPES.get(served, given)


def _texts(run: Serve, served: Served, answers: Sequence[ArmAnswer]) -> Texts:
    """Return what each text is against the traffic's; the target is loaded once."""
    asked = {(answer.prompt, answer.completion.token_ids) for answer in answers}
    if not run.subject.sampling.is_greedy:
        return dict.fromkeys(asked, "sampled")
    on = replay_dtype(run.subject.dtype, served.dtype)
    target = load_model(run.target.path, on, run.subject.device) if answers else None
    stored = float_type(run.target.config)
    traffic = run.subject.traffic
    dtype = coarsest(_compared_in(run, served), traffic.dtype or stored)
    return {(prompt, ids): _text(target, traffic, prompt, ids, dtype) for prompt, ids in asked}


def _text(
    target: Any, traffic: Traffic, prompt: int, found: tuple[int, ...], dtype: str
) -> TextStatus:
    response = traffic.responses[prompt]
    wanted = response.response_token_ids

    def logits_before(at: int) -> Tensor:
        until = replace(response, response_token_ids=wanted[: at + 1], logprobs=None)
        return [span.logits for span in response_logits(target, [until])][-1][-1]

    return known_status(traffic.sampling, text_status(wanted, found, logits_before, dtype))


def _compared_in(run: Serve, served: Served) -> str:
    """Return the float type in whose last places the engine and replay may differ.

    Of servers that the user runs it is what --dtype says; without a word they may be in 16 bits.
    """
    if served.dtype in DTYPES:
        return served.dtype
    return "bfloat16" if run.settings.models.dtype == "auto" else type_name(run.subject.dtype)


def _arm(
    run: Serve, served: Served, arm: str, answers: Sequence[ArmAnswer], texts: Texts
) -> ServedArm:
    checkpoint = run.checkpoint(arm)
    step = 0.0 if checkpoint is None else widest_step(run.measured.input_types(checkpoint))
    is_exact = _compared_in(run, served) == "float32" and step == 0
    rounds = [NO_ROUNDS] * len(answers)
    if checkpoint is not None and not served.is_synthetic:
        rounds = _replay_texts(run, served, checkpoint, step, answers)
    requests = tuple(
        _record(run, answer, texts[answer.prompt, answer.completion.token_ids], expected)
        for answer, expected in zip(answers, rounds, strict=True)
    )
    return ServedArm(arm, requests, is_exact)


def _require_counted(run: Serve, arm: str, answers: Sequence[ArmAnswer]) -> None:
    """Raise EngineError for a server that proposes another number of tokens than its arm says."""
    num_drafts = sum(answer.counters.num_drafts for answer in answers)
    num_proposed = sum(answer.counters.num_draft_tokens for answer in answers)
    if arm == "autoregressive":
        if num_drafts:
            raise EngineError("the server given for autoregressive serves with a draft.")
        return
    if not num_drafts:
        raise EngineError(f"the server of {arm} counted no round: it serves without a draft.")
    width = max(len(answer.counters.num_accepted_tokens_per_pos) for answer in answers)
    if width != run.num_speculative_tokens:
        raise EngineError(
            f"the server of {arm} proposes {num_proposed / num_drafts:.3g} tokens a round. "
            f"Give -k {width}, or serve with k = {run.num_speculative_tokens}."
        )


def _replay_texts(
    run: Serve, served: Served, checkpoint: Checkpoint, step: float, answers: Sequence[ArmAnswer]
) -> list[Rounds]:
    """Return the rounds of each answer's text under the draft; equal texts are replayed once."""
    texts = dict.fromkeys((answer.prompt, answer.completion.token_ids) for answer in answers)
    responses = tuple(_round_text(run, prompt, ids) for prompt, ids in texts)
    k, on = run.num_speculative_tokens, replay_dtype(run.subject.dtype, served.dtype)
    if served.is_expectation:
        target = load_model(run.target.path, on, run.subject.device)
        responses = with_logprobs(target, responses, run.subject.sampling)
        del target
        gc.collect()
    draft_type = run.measured.replay_type(checkpoint, type_name(on))
    draft = load_model(checkpoint.path, DTYPES[draft_type], run.subject.device)
    is_exact = _compared_in(run, served) == "float32" and step == 0
    if is_exact or served.is_expectation:
        found = rounds_replayed(draft, responses, run.subject.rule, run.subject.sampling, k)
        rounds = [Rounds(number) for number in found]
    else:
        bounds = bounded_rounds(draft, responses, k, _compared_in(run, served), step)
        rounds = [Rounds(*each) for each in zip(*bounds, strict=True)]
    by_text = dict(zip(texts, rounds, strict=True))
    return [by_text[answer.prompt, answer.completion.token_ids] for answer in answers]


def _round_text(run: Serve, prompt: int, ids: tuple[int, ...]) -> Response:
    """Return an answer as a response, without the tokens that come from no round."""
    asked = run.subject.traffic.responses[prompt]
    is_cut = len(ids) >= len(asked.response_token_ids)
    num_tokens = run.measured.num_round_tokens(len(ids), is_cut)
    return replace(asked, response_token_ids=ids[:num_tokens], logprobs=None)


def _record(run: Serve, answer: ArmAnswer, status: TextStatus, rounds: Rounds) -> ServedRequest:
    completion, counters = answer.completion, answer.counters
    return ServedRequest(
        prompt_id=run.subject.traffic.responses[answer.prompt].prompt_id,
        num_tokens=len(completion.token_ids),
        num_first_tokens=completion.num_first_tokens,
        seconds=completion.seconds,
        first_token_seconds=completion.first_token_seconds,
        num_drafts=counters.num_drafts,
        num_draft_tokens=counters.num_draft_tokens,
        num_accepted_tokens_per_pos=_padded(run, counters),
        num_drafts_replayed=rounds.replayed,
        text=status,
        num_drafts_low=rounds.low,
        num_drafts_high=rounds.high,
        load=answer.load,
    )


def _padded(run: Serve, counters: Counters) -> tuple[int, ...]:
    """Return accepted tokens by position; a server may list positions from its first round on."""
    found = counters.num_accepted_tokens_per_pos
    return found + (0,) * (run.num_speculative_tokens - len(found)) * bool(counters.num_drafts)
