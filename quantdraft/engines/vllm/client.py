"""Asks a vLLM server for completions by token ids, and reads its counters."""

from __future__ import annotations

import time
from typing import Any

from quantdraft.engines.counters import CounterNames, Counters, read_counters
from quantdraft.engines.http_client import HttpClient, token_ids
from quantdraft.engines.measured import Completion, Request
from quantdraft.errors import EngineError

COUNTERS = CounterNames(
    "vllm:", "generation_tokens_total", "Start the server without --disable-log-stats."
)


class VllmClient:
    """One vLLM server. Raises EngineError for whatever it does not answer as vLLM does."""

    def __init__(self, url: str) -> None:
        self.http = HttpClient(url)
        self.url = self.http.url
        self._model: str | None = None

    @property
    def model(self) -> str:
        """The name under which the server serves its target."""
        if self._model is None:
            self._model = str(self.http.get_value("/v1/models", "data", 0, "id"))
        return self._model

    def num_positions(self) -> int | None:
        """Return how long a prompt and its answer may be together, where the server says it."""
        models = self.http.get_value("/v1/models", "data")
        found = models[0].get("max_model_len") if models else None
        return found if isinstance(found, int) else None

    def version(self) -> str:
        """Return the server's own version."""
        return str(self.http.get_value("/version", "version"))

    def complete(self, request: Request) -> Completion:
        """Return one answer, streamed so that its first token has a time of its own."""
        pieces: list[tuple[float, list[int]]] = []
        started = time.perf_counter()
        for event in self.http.events("/v1/completions", _body(self.model, request)):
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
        """Return the counters as they stand."""
        return read_counters(self.http, COUNTERS)


def completion_piece(event: dict[str, Any]) -> list[int]:
    """Return the token ids of an event, in order. Raises EngineError for one without them."""
    choices = event.get("choices") or []
    if not choices:
        return []
    choice = choices[0] if isinstance(choices, list) else None
    if not isinstance(choice, dict) or choice.get("token_ids") is None:
        raise EngineError(
            "the server returns no token ids: `return_token_ids` needs vLLM 0.11 or later."
        )
    return token_ids(choice["token_ids"])


def _body(model: str, request: Request) -> dict[str, Any]:
    """Return every setting that changes the text, so that no default of the server decides."""
    return {
        "model": model,
        "prompt": list(request.prompt_token_ids),
        "max_tokens": request.max_tokens,
        "temperature": request.sampling.temperature,
        "top_p": request.sampling.top_p,
        "top_k": request.sampling.top_k,
        "repetition_penalty": 1.0,
        "seed": request.seed,
        "ignore_eos": not request.stop_token_ids,
        "stop_token_ids": list(request.stop_token_ids),
        "stream": True,
        "return_token_ids": True,
    }
