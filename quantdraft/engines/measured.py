"""What a measured engine is: servers that are started, asked by token ids, and counted.

`Engine.measured` holds it. vLLM's and llama.cpp's are in their folders.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.engines.counters import Counters
from quantdraft.engines.process import Server
from quantdraft.engines.server_arguments import PassedOn
from quantdraft.engines.serving_settings import ServingSettings
from quantdraft.errors import EngineError
from quantdraft.record import AcceptanceRule
from quantdraft.record.step_bytes import Ledger
from quantdraft.traffic.traffic import Sampling

# The counters are written a moment after the last token is sent.
SETTLE_SECONDS = 5.0


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

    @property
    def num_decoded(self) -> int:
        """Tokens that came after the first ones."""
        return len(self.token_ids) - self.num_first_tokens


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """What the servers of all arms have in common."""

    target: Path  # as the engine loads it
    dtype: str
    num_speculative_tokens: int
    max_model_len: int  # tokens of the longest prompt and answer
    rule: AcceptanceRule = "greedy"
    seed: int = 0
    memory_share: float | None = None  # of a GPU; None: the engine's own default


class Client(Protocol):
    """A running server. Every method raises EngineError where it does not answer as it should."""

    url: str

    def complete(self, request: Request) -> Completion:
        """Return one answer."""

    def counters(self) -> Counters:
        """Return the counters as they stand."""

    def version(self) -> str:
        """Return the server's own version."""


class Installation(Protocol):
    """An engine as it is installed here, with the user's settings read and accepted."""

    version: str
    device_type: str  # "cpu" | "cuda" | …
    server_bytes: int  # of one server, besides its weights
    speculative: Mapping[str, Any] = MappingProxyType({})  # the user's own settings of it
    is_synthetic: bool = False  # True: it is told how much to accept, whatever the draft proposes

    def float_types(self, asked: str, target: Checkpoint) -> tuple[str, ...]:
        """Return the float types to serve in, the first that works."""

    def model_file(self, checkpoint: Checkpoint, dtype: str) -> Path:
        """Return what a server loads for a checkpoint; it is converted where that is needed."""
        return checkpoint.path.absolute()

    def start(
        self, plan: ServerPlan, draft: Path | None, log: Path
    ) -> AbstractContextManager[Server]:
        """Start one server, not yet healthy; `draft` None: the target alone."""


class MeasuredEngine(Protocol):
    """How an engine is served and counted on this machine.

    What is not defined by an engine of its own is that of one that loads checkpoints as they are.
    """

    title: str  # its name in sentences
    passed_on: PassedOn

    def open(self, settings: ServingSettings) -> Installation:
        """Return the engine as installed. Raises EngineError, or OptionError for its settings."""

    def client(self, url: str) -> Client:
        """Return a client of a running server."""

    def refusal(self, rule: AcceptanceRule, sampling: Sampling) -> str | None:
        """Return why the engine does not decode by this rule, or None."""
        return None

    def candidate(self, name: str, baseline: str | None, settings: ServingSettings) -> str:
        """Return the directory or Hub id of the candidate that a name stands for."""
        return name

    def served_ledger(self, checkpoint: Checkpoint) -> Ledger | None:
        """Return what a step reads of the file that is served for a checkpoint; None: of itself."""
        return None

    def input_types(self, checkpoint: Checkpoint) -> frozenset[str]:
        """Return the types to which the engine rounds the inputs of a draft's products."""
        from quantdraft.checkpoints.tensors.unpacking import quantized_modules  # imports torch

        formats = quantized_modules(checkpoint).values()
        return frozenset(fmt.activations for fmt in formats if fmt.activations)

    def replay_type(self, checkpoint: Checkpoint, dtype: str) -> str:
        """Return the float type in which a draft is replayed, where servers run in `dtype`."""
        return dtype

    def num_round_tokens(self, num_tokens: int, is_cut: bool) -> int:
        """Return how many of an answer's tokens its rounds and its prompt's pass have emitted.

        is_cut: the length limit ended the answer
        """
        return num_tokens


def ask(client: Client, request: Request) -> tuple[Completion, Counters]:
    """Return one answer, and what the server counted for it.

    Raises EngineError when it counted other tokens than it sent: somebody else uses it.
    """
    before = client.counters()
    completion = client.complete(request)
    counted = _settled_counters(client, before, len(completion.token_ids))
    if counted.num_tokens != len(completion.token_ids):
        raise EngineError(
            f"{client.url} counted {counted.num_tokens} tokens for an answer of "
            f"{len(completion.token_ids)}: others use this server too. Give one that serves "
            "nobody else."
        )
    return completion, counted


def _settled_counters(client: Client, before: Counters, num_tokens: int) -> Counters:
    deadline = time.monotonic() + SETTLE_SECONDS
    counted = client.counters().since(before)
    while counted.num_tokens < num_tokens and time.monotonic() < deadline:
        time.sleep(0.01)
        counted = client.counters().since(before)
    return counted


def decode_ms_per_token(completions: list[Completion]) -> float | None:
    """Return milliseconds for a token after the first of every answer; None without any."""
    tokens = sum(each.num_decoded for each in completions)
    seconds = sum(each.seconds - each.first_token_seconds for each in completions)
    return 1000 * seconds / tokens if tokens else None
