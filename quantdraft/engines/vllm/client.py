"""Asks a vLLM server for completions by token ids, and reads its counters. HTTP alone.

Requests are sent one at a time, so the difference of the counters around one is that request's.
"""

from __future__ import annotations

import base64
import http.client
import json
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from quantdraft.common.documents import parse_json
from quantdraft.engines.vllm.replies import (
    NUM_TOKENS,
    Counters,
    completion_piece,
    error_message,
    parse_counters,
    parse_event,
    without_password,
)
from quantdraft.errors import EngineError
from quantdraft.traffic.traffic import Sampling

REQUEST_SECONDS = 600.0
# The counters are written a moment after the last token is sent.
SETTLE_SECONDS = 5.0
MAX_REPLY_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, and how it is to be answered."""

    prompt_token_ids: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    seed: int
    stop_token_ids: tuple[int, ...]  # empty: the length alone ends the answer


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer, and when it came. Times are seconds from sending the request."""

    token_ids: tuple[int, ...]
    num_first_tokens: int  # that came with the first piece
    first_token_seconds: float
    seconds: float


class Client:
    """One server. Raises EngineError for whatever it does not answer as vLLM does."""

    def __init__(self, url: str, timeout: float = REQUEST_SECONDS) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EngineError(
                f"'{without_password(url)}' is no address of a server. Write http://host:port."
            )
        self.url, self.timeout, self._parts = without_password(url).rstrip("/"), timeout, parts
        self._model: str | None = None

    @property
    def model(self) -> str:
        """The name under which the server serves its target."""
        if self._model is None:
            self._model = str(self._get("/v1/models", "data", 0, "id"))
        return self._model

    def num_positions(self) -> int | None:
        """Of a prompt and its answer together, where the server tells."""
        models = self._get("/v1/models", "data")
        told = models[0].get("max_model_len") if models else None
        return told if isinstance(told, int) else None

    def version(self) -> str:
        """The server's own version."""
        return str(self._get("/version", "version"))

    def ask(self, request: Request) -> tuple[Completion, Counters]:
        """One answer, and what the server counted for it.

        Raises EngineError when it counted other tokens than it sent: somebody else uses it.
        """
        before = self.counters()
        completion = self.complete(request)
        counted = self._settled(before, len(completion.token_ids))
        if counted.num_tokens != len(completion.token_ids):
            raise EngineError(
                f"{self.url} counted {counted.num_tokens} tokens for an answer of "
                f"{len(completion.token_ids)}: others use this server too. Give one that serves "
                "nobody else."
            )
        return completion, counted

    def complete(self, request: Request) -> Completion:
        """One answer, streamed so that its first token has a time of its own."""
        pieces: list[tuple[float, list[int]]] = []
        started = time.perf_counter()
        for event in self._stream("/v1/completions", _body(self.model, request)):
            ids = completion_piece(event)
            if ids:
                pieces.append((time.perf_counter() - started, ids))
        if not pieces:
            raise EngineError(f"{self.url} answered without a token.")
        return Completion(
            token_ids=tuple(token for _, ids in pieces for token in ids),
            num_first_tokens=len(pieces[0][1]),
            first_token_seconds=pieces[0][0],
            seconds=pieces[-1][0],
        )

    def counters(self) -> Counters:
        """The counters as they stand."""
        text = self._request("GET", "/metrics")
        if NUM_TOKENS not in text:
            raise EngineError(
                f"{self.url}/metrics has no {NUM_TOKENS}. Start the server without "
                "--disable-log-stats."
            )
        return parse_counters(text)

    def _settled(self, before: Counters, num_tokens: int) -> Counters:
        deadline = time.monotonic() + SETTLE_SECONDS
        counted = self.counters().since(before)
        while counted.num_tokens < num_tokens and time.monotonic() < deadline:
            time.sleep(0.01)
            counted = self.counters().since(before)
        return counted

    def _get(self, path: str, *keys: str | int) -> Any:
        """A value inside the JSON that a path answers."""
        try:
            value = parse_json(self._request("GET", path))
            for key in keys:
                value = value[key]
            return value
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise EngineError(f"{self.url}{path} is not what vLLM answers: {error!r}.") from error

    def _request(self, method: str, path: str) -> str:
        connection = self._connection()
        try:
            connection.request(
                method, self._parts.path.rstrip("/") + path, headers=self._credentials()
            )
            reply = connection.getresponse()
            text = reply.read(MAX_REPLY_BYTES).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(
                f"{self.url} does not answer: {error or type(error).__name__}."
            ) from error
        finally:
            connection.close()
        if reply.status != 200:
            raise EngineError(f"{self.url}{path} answered {reply.status}: {error_message(text)}")
        return text

    def _stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The JSON of every event of a server-sent stream."""
        connection = self._connection()
        try:
            headers = {"Content-Type": "application/json", **self._credentials()}
            connection.request(
                "POST", self._parts.path.rstrip("/") + path, json.dumps(body), headers
            )
            reply = connection.getresponse()
            if reply.status != 200:
                text = reply.read(MAX_REPLY_BYTES).decode("utf-8", "replace")
                raise EngineError(
                    f"{self.url}{path} answered {reply.status}: {error_message(text)}"
                )
            while line := reply.readline(MAX_REPLY_BYTES):
                event = parse_event(line)
                if event is not None:
                    yield event
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise EngineError(f"{self.url} broke off: {error or type(error).__name__}.") from error
        finally:
            connection.close()

    def _credentials(self) -> dict[str, str]:
        """What user:password@ in the URL asks for; it stands in no message and in no record."""
        if self._parts.username is None:
            return {}
        given = (self._parts.username, self._parts.password or "")
        pair = ":".join(urllib.parse.unquote(part) for part in given)
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}

    def _connection(self) -> http.client.HTTPConnection:
        kind = (
            http.client.HTTPSConnection
            if self._parts.scheme == "https"
            else http.client.HTTPConnection
        )
        assert self._parts.hostname is not None
        return kind(self._parts.hostname, self._parts.port, timeout=self.timeout)


def _body(model: str, request: Request) -> dict[str, Any]:
    """Every setting that changes the text is sent, so that no default of the server decides."""
    stop_ids: Sequence[int] = request.stop_token_ids
    return {
        "model": model,
        "prompt": list(request.prompt_token_ids),
        "max_tokens": request.max_tokens,
        "temperature": request.sampling.temperature,
        "top_p": request.sampling.top_p,
        "top_k": request.sampling.top_k,
        "repetition_penalty": 1.0,
        "seed": request.seed,
        "ignore_eos": not stop_ids,
        "stop_token_ids": list(stop_ids),
        "stream": True,
        "return_token_ids": True,
    }
