"""The live loop on a few prompts: what it writes, what it counts, and is it the target's text?

At temperature 0 the text must be the traffic's own, but for near-ties. When tokens are drawn, and
when nobody knows how the traffic was sampled, the loop writes text of its own. Whatever it wrote is
what replay counts: the rounds are equal, prompt by prompt, or agree in the mean where the draft
draws too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantdraft.engines.native.model import NativeModel
from quantdraft.engines.native.session import Session
from quantdraft.measure.near_ties import TextStatus, coarsest, text_status
from quantdraft.measure.replay import acceptance_probabilities, response_logits
from quantdraft.measure.sampling import processed_logprobs
from quantdraft.measure.speculation import LiveRun, next_logits, speculate
from quantdraft.measure.verification import RoundPlan
from quantdraft.record import AcceptanceRule
from quantdraft.record.choices import Mode
from quantdraft.traffic.responses import Response
from quantdraft.traffic.traffic import Sampling, Traffic


@dataclass(frozen=True, slots=True)
class LivePrompt:
    """One prompt of the live loop: what it counted, and the text that replay is to count."""

    response: Response  # the prompt with the text the loop emitted
    run: LiveRun
    text: TextStatus


def run_live(
    target: NativeModel,
    draft: NativeModel,
    traffic: Traffic,
    *,
    num_speculative_tokens: int,
    rule: AcceptanceRule,
    seed: int = 0,
    batch_size: int = 1,
    mode: Mode = "eager",
    progress: Callable[[int], None] = lambda num_prompts: None,
) -> list[LivePrompt]:
    """Decode every prompt of `traffic` speculatively, at most as many tokens as its response."""
    sampling = traffic.sampling or Sampling()
    plan = RoundPlan(num_speculative_tokens, rule, sampling)
    results: list[LivePrompt] = []
    for start in range(0, len(traffic.responses), batch_size):
        some = traffic.responses[start : start + batch_size]
        verifier, proposer = _sessions((target, draft), some, num_speculative_tokens, mode)
        batch = speculate(
            verifier,
            proposer,
            [response.prompt_token_ids for response in some],
            plan,
            max_new_tokens=[len(response.response_token_ids) for response in some],
            eos_token_ids=frozenset(target.end_token_ids),
            seeds=[seed + start + row for row in range(len(some))],
        )
        for response, run in zip(some, batch.runs, strict=True):
            emitted = replace(response, response_token_ids=run.token_ids, logprobs=None)
            text = _text_against(target, response, run, traffic)
            results.append(LivePrompt(emitted, run, text))
        progress(len(some))
    return results


def _sessions(
    models: Sequence[NativeModel], some: Sequence[Response], k: int, mode: Mode
) -> list[Session]:
    """Return one session a model, with slots for the longest text and one round beyond it."""
    longest = max(len(r.prompt_token_ids) + len(r.response_token_ids) for r in some)
    return [Session(model, len(some), longest + k + 1, mode) for model in models]


def live_probabilities(
    target: Any, draft: Any, prompts: Sequence[LivePrompt], rule: AcceptanceRule, sampling: Sampling
) -> list[NDArray[np.float64]]:
    """Return the probabilities of the loop's own texts, (num_response_tokens,) for each prompt."""
    responses = tuple(prompt.response for prompt in prompts)
    if rule == "rejection":
        responses = with_logprobs(target, responses, sampling)
    return acceptance_probabilities(draft, Traffic(responses, sampling), rule)


def with_logprobs(
    target: Any, responses: Sequence[Response], sampling: Sampling
) -> tuple[Response, ...]:
    """Return the responses with the log-probability of every token under the target."""
    logprobs = target_logprobs(target, responses, sampling)
    return tuple(
        replace(r, logprobs=tuple(each.tolist()))
        for r, each in zip(responses, logprobs, strict=True)
    )


def target_logprobs(
    target: Any, responses: Sequence[Response], sampling: Sampling
) -> list[NDArray[np.float64]]:
    """Return the processed log-probability of every response token under the target."""
    values: list[NDArray[np.float64]] = [np.empty(len(r.response_token_ids)) for r in responses]
    for span in response_logits(target, responses):
        last = span.first_token + len(span.logits)
        ids = torch.tensor(responses[span.prompt].response_token_ids[span.first_token : last])
        logprobs = processed_logprobs(span.logits, sampling)
        picked = logprobs.gather(-1, ids.to(logprobs.device)[:, None])[:, 0]
        values[span.prompt][span.first_token : last] = picked.double().cpu().numpy()
    return values


def _text_against(
    target: NativeModel, response: Response, run: LiveRun, traffic: Traffic
) -> TextStatus:
    """Return what the loop's text is against the traffic's."""
    if traffic.sampling is not None and not traffic.sampling.is_greedy:
        return "sampled"
    wanted = response.response_token_ids

    def logits_before(at: int) -> Tensor:
        prefix = response.prompt_token_ids + wanted[:at]
        return next_logits(Session(target, 1, len(prefix)), prefix)

    dtype = coarsest(target.compute_dtype, traffic.dtype or _stored_dtype(target))
    return known_status(traffic.sampling, text_status(wanted, run.token_ids, logits_before, dtype))


def known_status(sampling: Sampling | None, status: TextStatus) -> TextStatus:
    """Return "own" for a text that parts from traffic of unknown sampling: it may have been drawn.

    No greedy text is held against such traffic.
    """
    return "own" if sampling is None and status == "divergent" else status


def _stored_dtype(target: NativeModel) -> str | None:
    """Return the type that a checkpoint is stored in, and that engines serve it in by default."""
    config = {} if target.source is None else target.source.config
    return str(config.get("dtype") or config.get("torch_dtype"))
