"""Whether llama.cpp's own server loads a draft's GGUF and speculates with it, and how well.

The target is asked alone and then with the draft, the same prompts, greedily. Nothing is judged
here: counts and texts are what the engine gave. A server that cannot use a draft goes on without it
and says so in its log alone, so an answer without a proposed token counts as not loaded.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from quantdraft.engines.counters import Counters
from quantdraft.engines.llamacpp.client import LlamacppClient
from quantdraft.engines.llamacpp.server import require_server, start_server, version
from quantdraft.engines.measured import Completion, Request, ServerPlan, ask, decode_ms_per_token
from quantdraft.engines.process import Server
from quantdraft.errors import EngineError
from quantdraft.traffic.traffic import Sampling

MAX_TOKENS = 64
HEALTH_SECONDS = 300.0
OWN_ENDS = (0,)  # any: llama-server reads the ids that end a text from its GGUF

Prompts = Sequence[str | tuple[int, ...]]


class Counted(NamedTuple):
    """One answer, and what the server counted for it."""

    completion: Completion
    counters: Counters


@dataclass(frozen=True, slots=True)
class Speculation:
    """What llama.cpp's server did with one draft; None where it did not come so far."""

    loaded: bool  # the server used the draft: it proposed at least one token
    error: str | None  # one line, the server's own reason where it gave one
    accepted: int | None = None  # draft tokens; the target's own, one a round, are not in it
    proposed: int | None = None
    rounds: int | None = None
    text_equal: bool | None = None  # every text is the target's own, token by token
    num_equal_texts: int | None = None
    num_prompts: int | None = None
    num_tokens: int | None = None  # emitted, the first ones of every prompt included
    ms_per_token: float | None = None  # by the server's clock, one run: no measurement of speed
    version: str | None = None  # the server's own


def load_and_speculate(
    target: Path,
    draft: Path,
    *,
    prompts: Prompts,
    num_speculative_tokens: int = 4,
    max_tokens: int = MAX_TOKENS,
    llamacpp: Path | None = None,
    arguments: Sequence[str] = (),
    log_dir: Path | None = None,
) -> Speculation:
    """Serve `target` alone, then with `draft`, ask both the same prompts, and compare.

    target, draft: GGUF files
    prompts: texts, or token ids of the target
    llamacpp: a directory of llama.cpp with its server built; None looks in $QUANTDRAFT_LLAMACPP
        and on PATH
    arguments: more arguments of both servers
    log_dir: where the servers' logs stay; None leaves none behind

    A draft that does not load or propose is a result (`loaded`, `error`), not an exception.
    Raises EngineError where there is no server, or where the target alone is not served.
    """
    program = require_server(llamacpp)
    about, longest = version(program), max_model_len(prompts, max_tokens)
    plan = ServerPlan(target, "auto", num_speculative_tokens, longest)

    def requests(client: LlamacppClient) -> list[Request]:
        texts = [client.tokenize(p) if isinstance(p, str) else p for p in prompts]
        return [Request(ids, max_tokens, Sampling(), 0, OWN_ENDS) for ids in texts]

    with _logs(log_dir) as logs:
        try:
            log = logs / "llamacpp-target.log"
            own = answers(program, plan, None, requests, log, arguments)
        except EngineError as error:
            raise EngineError(f"the target alone: {_without_log(error, log_dir)}") from error
        try:
            log = logs / "llamacpp-draft.log"
            found = answers(program, plan, draft, requests, log, arguments)
        except EngineError as error:
            return Speculation(False, _without_log(error, log_dir), version=about)
    return _compared(own, found, about)


def answers(
    program: Path,
    plan: ServerPlan,
    draft: Path | None,
    requests: Callable[[LlamacppClient], Sequence[Request]],
    log: Path,
    arguments: Sequence[str] = (),
) -> list[Counted]:
    """Return what one server answers, a warm-up left out.

    requests: given the server's client, which tokenizes texts
    Raises EngineError when the server does not start, or serves without its draft.
    """
    with start_server(program, plan, draft, log, arguments) as server:
        server.wait_until_healthy(HEALTH_SECONDS)
        found = _ask(server, requests)
        if draft is not None and not any(each.counters.num_draft_tokens for each in found):
            errors = server.format.errors_in(server.log)
            reason = errors[0][:300] if errors else "its log names no reason"
            raise EngineError(f"llama-server proposed no draft token: {reason} (log: '{log}')")
        return found


def _ask(server: Server, requests: Callable[[LlamacppClient], Sequence[Request]]) -> list[Counted]:
    client = LlamacppClient(server.url)
    try:
        asked = requests(client)
        client.complete(asked[0])
        return [Counted(*ask(client, request)) for request in asked]
    except EngineError as error:
        if server.has_failed():
            raise EngineError(f"llama-server failed while answering: {server.reason()}") from error
        raise


def max_model_len(prompts: Prompts, max_tokens: int) -> int:
    """Return the most tokens of a prompt and its answer; a byte of text is taken for a token."""
    lengths = [len(each.encode() if isinstance(each, str) else each) for each in prompts]
    return max(lengths) + max_tokens + 16  # a draft looks a few tokens ahead


def _compared(own: Sequence[Counted], found: Sequence[Counted], about: str) -> Speculation:
    texts = [each.completion.token_ids for each in found]
    equal = [each.completion.token_ids == text for each, text in zip(own, texts, strict=True)]
    return Speculation(
        loaded=True,
        error=None,
        accepted=sum(each.counters.num_accepted_tokens for each in found),
        proposed=sum(each.counters.num_draft_tokens for each in found),
        rounds=sum(each.counters.num_drafts for each in found),
        text_equal=all(equal),
        num_equal_texts=sum(equal),
        num_prompts=len(found),
        num_tokens=sum(map(len, texts)),
        ms_per_token=decode_ms_per_token([each.completion for each in found]),
        version=about,
    )


def _without_log(error: EngineError, log_dir: Path | None) -> str:
    """Return the error's text, without the path of a log that is gone with its directory."""
    return str(error) if log_dir is not None else str(error).partition(" (log: ")[0]


@contextlib.contextmanager
def _logs(log_dir: Path | None) -> Iterator[Path]:
    if log_dir is not None:
        yield log_dir
        return
    with tempfile.TemporaryDirectory(prefix="quantdraft-llamacpp-") as directory:
        yield Path(directory)
