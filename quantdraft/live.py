"""The live loop on a few prompts, beside replay: do they emit the target's text and count alike?

At temperature 0 the text must be the traffic's own and the rounds equal, prompt by prompt. When
tokens are drawn, the loop writes its own text; replaying that text gives the expected rounds, and
the two agree in the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quantdraft.engines.native import NativeModel
from quantdraft.engines.session import Mode, Session
from quantdraft.replay import keep_probabilities, response_logits
from quantdraft.responses import Response
from quantdraft.results import AcceptanceRule
from quantdraft.sampling import processed_logprobs
from quantdraft.speculation import LiveRun, logit_gap, speculate
from quantdraft.traffic import Sampling, Traffic
from quantdraft.verification import Plan

# By how much two correct kernels may differ in a logit: float32 sums of a few thousand terms, and
# bfloat16's 8 bits of a logit around 16.
NEAR_TIE_LOGITS = {"float32": 1e-3}
NEAR_TIE_LOGITS_16_BIT = 0.125


@dataclass(frozen=True, slots=True)
class LivePrompt:
    """One prompt of the live loop: what it counted, and the text that replay is to count."""

    response: Response  # the prompt with the text the loop emitted
    run: LiveRun
    text: str  # "identical" | "near-tie" | "divergent" | "sampled"


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
    plan = Plan(num_speculative_tokens, rule, sampling)
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
            text = _text_against(target, response, run, sampling)
            results.append(LivePrompt(emitted, run, text))
        progress(len(some))
    return results


def _sessions(
    models: Sequence[NativeModel], some: Sequence[Response], k: int, mode: Mode
) -> list[Session]:
    """One session a model, with slots for the longest text and one round beyond it."""
    longest = max(len(r.prompt_token_ids) + len(r.response_token_ids) for r in some)
    return [Session(model, len(some), longest + k + 1, mode) for model in models]


def live_keep(
    target: Any, draft: Any, prompts: Sequence[LivePrompt], rule: AcceptanceRule, sampling: Sampling
) -> list[NDArray[np.float64]]:
    """Keep probabilities of the text the loop itself emitted, (num_response_tokens,) per prompt."""
    responses = tuple(prompt.response for prompt in prompts)
    if rule == "rejection":
        logprobs = target_logprobs(target, responses, sampling)
        responses = tuple(
            replace(r, logprobs=tuple(lp.tolist()))
            for r, lp in zip(responses, logprobs, strict=True)
        )
    return keep_probabilities(draft, Traffic(responses, sampling), rule)


def target_logprobs(
    target: Any, responses: Sequence[Response], sampling: Sampling
) -> list[NDArray[np.float64]]:
    """Processed log-probability of every response token under the target, teacher-forced."""
    values: list[NDArray[np.float64]] = [np.empty(len(r.response_token_ids)) for r in responses]
    for span in response_logits(target, responses):
        last = span.first_token + len(span.logits)
        ids = torch.tensor(responses[span.prompt].response_token_ids[span.first_token : last])
        logprobs = processed_logprobs(span.logits, sampling)
        picked = logprobs.gather(-1, ids.to(logprobs.device)[:, None])[:, 0]
        values[span.prompt][span.first_token : last] = picked.double().cpu().numpy()
    return values


def _text_against(target: NativeModel, response: Response, run: LiveRun, sampling: Sampling) -> str:
    if not sampling.is_greedy:
        return "sampled"
    wanted, found = response.response_token_ids, run.token_ids
    if found == wanted:
        return "identical"
    at = next((i for i, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b), None)
    if at is None:  # one text is the other's beginning: an end-of-sequence rule differs
        return "divergent"
    prefix = response.prompt_token_ids + wanted[:at]
    gap = logit_gap(Session(target, 1, len(prefix)), prefix, wanted[at], found[at])
    limit = NEAR_TIE_LOGITS.get(target.compute_dtype, NEAR_TIE_LOGITS_16_BIT)
    return "near-tie" if abs(gap) <= limit else "divergent"
