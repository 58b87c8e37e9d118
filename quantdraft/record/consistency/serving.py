"""Answers of an engine's servers, and the arms they belong to."""

from __future__ import annotations

from collections.abc import Iterator

from quantdraft.record.consistency.rules import Problem, falls
from quantdraft.record.evaluation import Evaluation
from quantdraft.record.served import Served, ServedRequest
from quantdraft.record.terms import ARMS


def check_request(request: ServedRequest) -> Iterator[Problem]:
    """Yield numbers of one answer that contradict each other."""
    if request.num_first_tokens > request.num_tokens:
        yield "num_first_tokens", f"more than the {request.num_tokens} tokens of the answer"
    if request.first_token_seconds > request.seconds:
        yield "first_token_seconds", f"later than the end, at {request.seconds:g} s"
    if not falls((request.num_drafts, *request.num_accepted_tokens_per_pos)):
        yield "num_accepted_tokens_per_pos", "more are kept at a position than came to it"
    if (request.num_drafts_low is None) != (request.num_drafts_high is None):
        yield "num_drafts_low", "one of the two ends is missing"
    _, low, high = request.replayed_rounds
    if low > high:
        yield "num_drafts_low", f"{low:g} lies above num_drafts_high, {high:g}"


def check_served(served: Served) -> Iterator[Problem]:
    """Yield arms under another name, or without an answer."""
    known = {"autoregressive", *ARMS, "control"}
    for name, arm in served.arms.items():
        if name not in known or arm.name != name:
            yield f"arms.{name}.name", f"it is {arm.name!r}; arms are {', '.join(sorted(known))}"
        if not arm.requests:
            yield f"arms.{name}.requests", "it is empty: an arm that was not served is undefined"
        lengths = {len(r.num_accepted_tokens_per_pos) for r in arm.replayed}
        if len(lengths) > 1 or max(lengths, default=0) > served.num_speculative_tokens:
            k = served.num_speculative_tokens
            yield f"arms.{name}.requests", f"lists of {sorted(lengths)} positions at k = {k}"


def check_served_k(made: Evaluation) -> Iterator[Problem]:
    """Yield a served k that was not replayed."""
    if made.served is None:
        return
    k = made.served.num_speculative_tokens
    if k not in made.num_speculative_tokens:
        yield "served.num_speculative_tokens", f"{k} is none of {list(made.num_speculative_tokens)}"
