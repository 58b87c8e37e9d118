"""Whether llama.cpp's own server loads a draft's GGUF and speculates with it, and how well.

The target is asked alone and then with the draft, the same prompts, greedily. Nothing is judged
here: counts and texts are what the engine gave. A server that cannot use a draft goes on without it
and says so in its log alone, so an answer without a proposed token counts as not loaded.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantdraft.engines.llamacpp.client import Answer, Client, Request
from quantdraft.engines.llamacpp.server import (
    LOG,
    Serving,
    require_server,
    server_command,
    server_variables,
    version,
)
from quantdraft.engines.process import Server, free_port, running
from quantdraft.errors import EngineError

MAX_TOKENS = 64
HEALTH_SECONDS = 300.0
MIN_CONTEXT = 512

Prompts = Sequence[str | tuple[int, ...]]


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
    target_ms_per_token: float | None = None  # the same, without a draft
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
    about = version(program)
    requests = [Request(prompt, max_tokens) for prompt in prompts]
    with _logs(log_dir) as logs:
        alone = Serving(target, None, 0, context_length(requests), tuple(arguments))
        try:
            own = answers(program, alone, requests, logs / "llamacpp-target.log")
        except EngineError as error:
            raise EngineError(f"the target alone: {_told(error, log_dir)}") from error
        with_draft = Serving(
            target, draft, num_speculative_tokens, alone.context_length, tuple(arguments)
        )
        try:
            found = answers(program, with_draft, requests, logs / "llamacpp-draft.log")
        except EngineError as error:
            return Speculation(False, _told(error, log_dir), version=about)
    return _compared(own, found, about)


def answers(
    program: Path, serving: Serving, requests: Sequence[Request], log: Path
) -> list[Answer]:
    """What one server answers; EngineError when it does not start, or serves without its draft."""
    with started(program, serving, log) as server:
        server.wait_until_healthy(HEALTH_SECONDS)
        found = _asked(server, requests)
        if serving.draft is not None and not any(each.num_draft_tokens for each in found):
            raise EngineError(
                f"llama-server proposed no draft token: {_why_none(server)} (log: '{log}')"
            )
        return found


def _asked(server: Server, requests: Sequence[Request]) -> list[Answer]:
    client = Client(server.url)
    try:
        client.ask(requests[0])  # a warm-up that counts for nothing
        return [client.ask(request) for request in requests]
    except EngineError as error:
        if server.has_failed():
            raise EngineError(f"llama-server failed while answering: {server.reason()}") from error
        raise


@contextlib.contextmanager
def started(program: Path, serving: Serving, log: Path) -> Iterator[Server]:
    """One llama-server, started and not yet healthy, on a free port of the loopback."""
    port = free_port()
    command = server_command(program, serving, port)
    with running(command, port, log, server_variables(), LOG) as server:
        yield server


def context_length(requests: Sequence[Request]) -> int:
    """Tokens that any of the requests can fill; a byte of text is taken for a token."""
    lengths = [
        len(each.prompt.encode() if isinstance(each.prompt, str) else each.prompt) + each.max_tokens
        for each in requests
    ]
    return max(MIN_CONTEXT, max(lengths) + 16)  # a draft looks a few tokens ahead


def _compared(own: Sequence[Answer], found: Sequence[Answer], about: str) -> Speculation:
    rounds = [each.num_drafts for each in found if each.num_drafts is not None]
    equal = [a.token_ids == b.token_ids for a, b in zip(own, found, strict=True)]
    return Speculation(
        loaded=True,
        error=None,
        accepted=sum(each.num_accepted_tokens for each in found),
        proposed=sum(each.num_draft_tokens for each in found),
        rounds=sum(rounds) if len(rounds) == len(found) else None,
        text_equal=all(equal),
        num_equal_texts=sum(equal),
        num_prompts=len(found),
        num_tokens=sum(len(each.token_ids) for each in found),
        ms_per_token=ms_per_token(found),
        target_ms_per_token=ms_per_token(own),
        version=about,
    )


def ms_per_token(found: Sequence[Answer]) -> float | None:
    """Milliseconds a token after the first of every answer; None where there is no other."""
    tokens = sum(each.num_timed_tokens for each in found)
    return 1000 * sum(each.seconds for each in found) / tokens if tokens else None


def _why_none(server: Server) -> str:
    errors = server.format.errors_in(server.log)
    return errors[0][:300] if errors else "its log names no reason"


def _told(error: EngineError, log_dir: Path | None) -> str:
    """What the error says, without the path of a log that is gone with its directory."""
    return str(error) if log_dir is not None else str(error).partition(" (log: ")[0]


@contextlib.contextmanager
def _logs(log_dir: Path | None) -> Iterator[Path]:
    if log_dir is not None:
        yield log_dir
        return
    with tempfile.TemporaryDirectory(prefix="quantdraft-llamacpp-") as directory:
        yield Path(directory)
