"""What an engine answered beside what replay says of the same text, prompt by prompt.

The engine writes its own text; its rounds are those of that text under the draft. The text itself
is held against the traffic's: where they part, the target's own logits say whether it was a tie.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from quantdraft.acceptance import replay_rounds
from quantdraft.checkpoint import Checkpoint
from quantdraft.engines.vllm.run import Answer
from quantdraft.engines.vllm.settings import is_synthetic
from quantdraft.errors import EngineError
from quantdraft.live import NEAR_TIE_LOGITS, NEAR_TIE_LOGITS_16_BIT, target_logprobs
from quantdraft.models import load_model
from quantdraft.replay import keep_probabilities, response_logits
from quantdraft.responses import Response
from quantdraft.results import AcceptanceRule, Served, ServedArm, ServedRequest
from quantdraft.served_run import Serve
from quantdraft.traffic import Sampling, Traffic
from quantdraft.unpacking import rounds_activations

TextStatus = Literal["identical", "near-tie", "divergent", "sampled"]
Texts = Mapping[tuple[int, tuple[int, ...]], TextStatus]  # (prompt, token ids) -> what they are


def crosschecked(
    run: Serve, served: Served, answers: Mapping[str, Sequence[Answer]]
) -> dict[str, ServedArm]:
    """Every arm's answers as records, with replayed rounds and the text's status.

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
    """Rounds that a draft needs for texts, one number a response."""
    keeps = keep_probabilities(draft, Traffic(tuple(responses), sampling), rule)
    ids = [response.prompt_id for response in responses]
    return [float(n) for n in replay_rounds(ids, keeps, [k]).num_drafts[0]]


def text_status(
    target: Any, response: Response, found: tuple[int, ...], sampling: Sampling, limit: float
) -> TextStatus:
    """An engine's text against the traffic's: where they part, is it a near-tie of the target?

    limit: logits by which two tokens may differ and still be a tie
    """
    if not sampling.is_greedy:
        return "sampled"
    wanted = response.response_token_ids
    if found == wanted:
        return "identical"
    at = next((i for i, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b), None)
    if at is None:  # one is the other's beginning: an end-of-sequence rule differs
        return "divergent"
    until = replace(response, response_token_ids=wanted[: at + 1], logprobs=None)
    logits = [span.logits for span in response_logits(target, [until])][-1][-1]
    gap = abs(float(logits[wanted[at]] - logits[found[at]]))
    return "near-tie" if gap <= limit else "divergent"


def _texts(run: Serve, served: Served, answers: Sequence[Answer]) -> Texts:
    """What each text is against the traffic's; the target is in memory once."""
    target = load_model(run.target.path, run.dtype, run.device) if answers else None
    is_wide = served.dtype == "float32" and run.dtype == torch.float32
    limit = NEAR_TIE_LOGITS["float32"] if is_wide else NEAR_TIE_LOGITS_16_BIT
    responses = run.traffic.responses
    return {
        (prompt, ids): text_status(target, responses[prompt], ids, run.sampling, limit)
        for prompt, ids in {(answer.prompt, answer.completion.token_ids) for answer in answers}
    }


def _arm(
    run: Serve, served: Served, arm: str, answers: Sequence[Answer], texts: Texts
) -> ServedArm:
    checkpoint = run.checkpoint(arm)
    rounds: Sequence[float | None] = [None] * len(answers)
    if checkpoint is not None and not is_synthetic(served.speculative):
        rounds = _replayed(run, checkpoint, answers)
    is_exact = (
        served.dtype == "float32"
        and run.dtype == torch.float32
        and (checkpoint is None or not rounds_activations(checkpoint))
    )
    requests = tuple(
        _record(run, answer, texts[answer.prompt, answer.completion.token_ids], expected)
        for answer, expected in zip(answers, rounds, strict=True)
    )
    return ServedArm(arm, requests, is_exact)


def _require_counted(run: Serve, arm: str, answers: Sequence[Answer]) -> None:
    """The server does what its arm says: proposes k tokens a round, or nothing at all."""
    num_drafts = sum(answer.counters.num_drafts for answer in answers)
    num_proposed = sum(answer.counters.num_draft_tokens for answer in answers)
    if arm == "autoregressive":
        if num_drafts:
            raise EngineError("the server given for autoregressive serves with a draft.")
        return
    if not num_drafts:
        raise EngineError(f"the server of {arm} counted no round: it serves without a draft.")
    width = len(answers[0].counters.num_accepted_tokens_per_pos)
    if width != run.num_speculative_tokens:
        raise EngineError(
            f"the server of {arm} proposes {num_proposed / num_drafts:.3g} tokens a round. "
            f"Give -k {width}, or serve with k = {run.num_speculative_tokens}."
        )


def _replayed(run: Serve, checkpoint: Checkpoint, answers: Sequence[Answer]) -> list[float]:
    """Rounds of each answer's own text under the draft; equal texts are replayed once."""
    texts = dict.fromkeys((answer.prompt, answer.completion.token_ids) for answer in answers)
    responses = [
        replace(run.traffic.responses[prompt], response_token_ids=ids, logprobs=None)
        for prompt, ids in texts
    ]
    if run.rule == "rejection":
        responses = _with_logprobs(run, responses)
    draft = load_model(checkpoint.path, run.dtype, run.device)
    rounds = rounds_replayed(draft, responses, run.rule, run.sampling, run.num_speculative_tokens)
    by_text = dict(zip(texts, rounds, strict=True))
    return [by_text[answer.prompt, answer.completion.token_ids] for answer in answers]


def _with_logprobs(run: Serve, responses: Sequence[Response]) -> list[Response]:
    target = load_model(run.target.path, run.dtype, run.device)
    logprobs = target_logprobs(target, responses, run.sampling)
    del target
    gc.collect()
    return [
        replace(r, logprobs=tuple(p.tolist())) for r, p in zip(responses, logprobs, strict=True)
    ]


def _record(run: Serve, answer: Answer, status: TextStatus, rounds: float | None) -> ServedRequest:
    completion, counters = answer.completion, answer.counters
    return ServedRequest(
        prompt_id=run.traffic.responses[answer.prompt].prompt_id,
        num_tokens=len(completion.token_ids),
        num_first_tokens=completion.num_first_tokens,
        seconds=completion.seconds,
        first_token_seconds=completion.first_token_seconds,
        num_drafts=counters.num_drafts,
        num_draft_tokens=counters.num_draft_tokens,
        num_accepted_tokens_per_pos=counters.num_accepted_tokens_per_pos,
        num_drafts_replayed=rounds,
        text=status,
    )
