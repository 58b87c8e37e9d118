"""Asks a llama-server for greedy completions by token ids, and reads its counters."""

from __future__ import annotations

from typing import Any

from quantdraft.engines.counters import CounterNames, Counters, read_counters
from quantdraft.engines.http_client import HttpClient, token_ids
from quantdraft.engines.measured import Completion, Request
from quantdraft.errors import EngineError

COUNTERS = CounterNames("llamacpp:", "tokens_predicted_total", "Start it with --metrics.")


class LlamacppClient:
    """One llama-server. Raises EngineError for whatever it does not answer as one does."""

    def __init__(self, url: str) -> None:
        self.http = HttpClient(url)
        self.url = self.http.url

    def version(self) -> str:
        """Return the server's build number and commit."""
        return str(self.http.get_value("/props", "build_info"))

    def complete(self, request: Request) -> Completion:
        """Return one answer, with the times of the server's own clock."""
        reply = self.http.post("/completion", _body(request))
        ids, timings = token_ids(reply.get("tokens") or []), reply.get("timings")
        if not ids or not isinstance(timings, dict) or "predicted_ms" not in timings:
            raise EngineError(
                f"{self.url}/completion sends no token ids or no timings: this llama-server is too "
                "old (return_tokens, timings)."
            )
        first_token_seconds = float(timings.get("prompt_ms", 0.0)) / 1000
        return Completion(
            token_ids=tuple(ids),
            num_first_tokens=1,
            first_token_seconds=first_token_seconds,
            seconds=first_token_seconds + float(timings["predicted_ms"]) / 1000,
        )

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a text, with the special tokens that the server adds."""
        reply = self.http.post("/tokenize", {"content": text, "add_special": True})
        return tuple(token_ids(reply.get("tokens")))

    def counters(self) -> Counters:
        """Return the counters as they stand."""
        return read_counters(self.http, COUNTERS)


def _body(request: Request) -> dict[str, Any]:
    """Return every setting that changes the text, so that no default of the server decides."""
    return {
        "prompt": list(request.prompt_token_ids),
        "n_predict": request.max_tokens,
        "temperature": 0.0,
        "samplers": ["temperature"],  # no penalties, no top-k: the target's own argmax
        "ignore_eos": not request.stop_token_ids,
        "cache_prompt": False,
        "return_tokens": True,
        "stream": False,
    }
