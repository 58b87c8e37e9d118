"""Asks a llama-server for greedy completions, and reads what it counted for each. HTTP alone.

Proposed and accepted tokens come with every answer (`timings.draft_n`, `draft_n_accepted`), rounds
from the difference of /metrics around it: requests are sent one at a time.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quantdraft.engines.process import DIRECT
from quantdraft.errors import EngineError

REQUEST_SECONDS = 600.0
NUM_DRAFTS = re.compile(r"^llamacpp:spec_decode_num_drafts_total ([-+.\deE]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, answered greedily. Text is tokenized by the server as its GGUF says."""

    prompt: str | tuple[int, ...]
    max_tokens: int
    ignores_end: bool = False  # True: the length alone ends the answer


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer and what llama.cpp counted for it.

    Accepted tokens exclude the target's own one that ends every round. The first token comes from
    the prompt's pass and belongs to no round. A server without a draft has zeros.
    """

    token_ids: tuple[int, ...]
    num_draft_tokens: int
    num_accepted_tokens: int
    num_drafts: int | None  # None: this version does not count rounds
    seconds: float  # from the first token to the last, by the server's clock

    @property
    def num_timed_tokens(self) -> int:
        """The tokens that `seconds` were for: all but the first."""
        return max(len(self.token_ids) - 1, 0)


@dataclass(frozen=True, slots=True)
class Client:
    """One server. Raises EngineError for whatever it does not answer as llama-server does."""

    url: str
    timeout: float = REQUEST_SECONDS

    def ask(self, request: Request) -> Answer:
        """One answer with its own counters."""
        before = self.num_drafts()
        reply = self._json("/completion", _body(request))
        after = self.num_drafts()
        tokens, timings = reply.get("tokens"), reply.get("timings") or {}
        if not tokens or "predicted_ms" not in timings:
            raise EngineError(
                f"{self.url}/completion sends no token ids or no timings: this llama-server is too "
                "old (return_tokens, timings)."
            )
        return Answer(
            token_ids=tuple(int(token) for token in tokens),
            num_draft_tokens=int(timings.get("draft_n", 0)),  # left out where nothing was proposed
            num_accepted_tokens=int(timings.get("draft_n_accepted", 0)),
            num_drafts=None if before is None or after is None else after - before,
            seconds=float(timings["predicted_ms"]) / 1000,
        )

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Token ids of a text by the server's own tokenizer, special tokens added as it would."""
        reply = self._json("/tokenize", {"content": text, "add_special": True})
        return tuple(int(token) for token in reply["tokens"])

    def num_drafts(self) -> int | None:
        """Rounds since the server started; None where this version has no such counter."""
        found = NUM_DRAFTS.search(self._request("/metrics", None))
        return int(float(found.group(1))) if found else None

    def _json(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        text = self._request(path, json.dumps(body).encode())
        try:
            reply = json.loads(text)
        except ValueError as error:
            raise EngineError(f"{self.url}{path} answered no JSON: {text[:100]!r}.") from error
        if not isinstance(reply, dict):
            raise EngineError(f"{self.url}{path} answered no JSON object: {text[:100]!r}.")
        return reply

    def _request(self, path: str, data: bytes | None) -> str:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with DIRECT.open(request, timeout=self.timeout) as reply:
                return str(reply.read().decode("utf-8", "replace"))
        except urllib.error.HTTPError as error:
            said = _message(error.read().decode("utf-8", "replace"))
            raise EngineError(f"{self.url}{path} answered {error.code}: {said}") from error
        except OSError as error:
            raise EngineError(f"{self.url} does not answer: {error}.") from error


def _body(request: Request) -> dict[str, Any]:
    """Every setting that changes the text is sent, so that no default of the server decides."""
    prompt: str | Sequence[int] = request.prompt
    return {
        "prompt": prompt if isinstance(prompt, str) else list(prompt),
        "n_predict": request.max_tokens,
        "temperature": 0.0,
        "samplers": ["temperature"],  # no penalties, no top-k: the target's own argmax
        "ignore_eos": request.ignores_end,
        "cache_prompt": False,
        "return_tokens": True,
        "stream": False,
    }


def _message(text: str) -> str:
    """The message in a server's error, or the beginning of what it said."""
    try:
        found = json.loads(text)["error"]
        text = str(found["message"] if isinstance(found, dict) else found)
    except (ValueError, KeyError, TypeError):
        pass
    return " ".join(text.split())[:300] or "nothing"
