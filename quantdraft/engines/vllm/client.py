"""Asks a vLLM server for completions by token ids, and reads its counters. HTTP alone.

Requests are sent one at a time, so the difference of the counters around one is that request's.
"""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from quantdraft.errors import EngineError
from quantdraft.traffic import Sampling

REQUEST_SECONDS = 600.0
# The counters are written a moment after the last token is sent.
SETTLE_SECONDS = 5.0
SAMPLE = re.compile(r"^(vllm:\w+?)(?:\{(.*)\})? ([-+.\deE]+)$", re.MULTILINE)
POSITION = re.compile(r'position="(\d+)"')
NUM_TOKENS = "vllm:generation_tokens_total"
NUM_DRAFTS = "vllm:spec_decode_num_drafts_total"
NUM_DRAFT_TOKENS = "vllm:spec_decode_num_draft_tokens_total"
NUM_ACCEPTED_PER_POS = "vllm:spec_decode_num_accepted_tokens_per_pos_total"


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


@dataclass(frozen=True, slots=True)
class Counters:
    """The server's counters since it started; what is not served with a draft has zeros."""

    num_tokens: int
    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens_per_pos: tuple[int, ...]  # (num_speculative_tokens,), empty without a draft

    def since(self, before: Counters) -> Counters:
        """What was counted after `before`."""
        earlier = before.num_accepted_tokens_per_pos or (0,) * len(self.num_accepted_tokens_per_pos)
        per_pos = zip(self.num_accepted_tokens_per_pos, earlier, strict=True)
        return Counters(
            self.num_tokens - before.num_tokens,
            self.num_drafts - before.num_drafts,
            self.num_draft_tokens - before.num_draft_tokens,
            tuple(now - then for now, then in per_pos),
        )


class Client:
    """One server. Raises EngineError for whatever it does not answer as vLLM does."""

    def __init__(self, url: str, timeout: float = REQUEST_SECONDS) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EngineError(f"'{url}' is no address of a server. Write http://host:port.")
        self.url, self.timeout, self._parts = url.rstrip("/"), timeout, parts
        self._model: str | None = None

    @property
    def model(self) -> str:
        """The name under which the server serves its target."""
        if self._model is None:
            self._model = str(self._get_json("/v1/models")["data"][0]["id"])
        return self._model

    def version(self) -> str:
        """The server's own version."""
        return str(self._get_json("/version")["version"])

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
            choices = event.get("choices") or []
            if not choices:
                continue
            ids = choices[0].get("token_ids")
            if ids is None:
                raise EngineError(
                    f"{self.url} returns no token ids: `return_token_ids` needs vLLM 0.11 or later."
                )
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

    def _get_json(self, path: str) -> Any:
        try:
            return json.loads(self._request("GET", path))
        except (ValueError, KeyError, IndexError) as error:
            raise EngineError(f"{self.url}{path} is not what vLLM answers: {error!r}.") from error

    def _request(self, method: str, path: str) -> str:
        connection = self._connection()
        try:
            connection.request(method, self._parts.path.rstrip("/") + path)
            reply = connection.getresponse()
            text = reply.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(
                f"{self.url} does not answer: {error or type(error).__name__}."
            ) from error
        finally:
            connection.close()
        if reply.status != 200:
            raise EngineError(f"{self.url}{path} answered {reply.status}: {_message(text)}")
        return text

    def _stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The JSON of every event of a server-sent stream."""
        connection = self._connection()
        try:
            headers = {"Content-Type": "application/json"}
            connection.request(
                "POST", self._parts.path.rstrip("/") + path, json.dumps(body), headers
            )
            reply = connection.getresponse()
            if reply.status != 200:
                text = reply.read().decode("utf-8", "replace")
                raise EngineError(f"{self.url}{path} answered {reply.status}: {_message(text)}")
            for line in reply:
                data = line.removeprefix(b"data: ").strip()
                if not line.startswith(b"data: ") or data == b"[DONE]":
                    continue
                event = json.loads(data)
                if "error" in event:
                    raise EngineError(f"{self.url}{path}: {_message(data.decode())}")
                yield event
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise EngineError(f"{self.url} broke off: {error or type(error).__name__}.") from error
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        kind = (
            http.client.HTTPSConnection
            if self._parts.scheme == "https"
            else http.client.HTTPConnection
        )
        assert self._parts.hostname is not None
        return kind(self._parts.hostname, self._parts.port, timeout=self.timeout)


def parse_counters(text: str) -> Counters:
    """The counters in a server's /metrics, summed over its engines."""
    totals: dict[str, int] = {}
    per_pos: dict[int, int] = {}
    for name, labels, value in SAMPLE.findall(text):
        totals[name] = totals.get(name, 0) + int(float(value))
        position = POSITION.search(labels)
        if name == NUM_ACCEPTED_PER_POS and position:
            at = int(position.group(1))
            per_pos[at] = per_pos.get(at, 0) + int(float(value))
    return Counters(
        totals.get(NUM_TOKENS, 0),
        totals.get(NUM_DRAFTS, 0),
        totals.get(NUM_DRAFT_TOKENS, 0),
        tuple(per_pos[at] for at in sorted(per_pos)),
    )


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


def _message(text: str) -> str:
    """The message in a server's error, or the beginning of what it said."""
    try:
        plain = json.loads(text)
        found = plain.get("error", plain)
        text = str(found.get("message", found)) if isinstance(found, dict) else str(found)
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:300] or "nothing"
