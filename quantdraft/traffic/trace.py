"""A trace: when requests arrive and how long they are, without text; and what is in flight of it.

A request is in flight from its arrival until its last token. All that are in flight share one
batch: each gets its next token in the time that a batch of so many takes. Prefill takes no time
here, and nobody waits: a server with less room has fewer in flight, and a queue.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantdraft.errors import TrafficError
from quantdraft.traffic.formats.exchange import UnusableLineError
from quantdraft.traffic.formats.known import Reader
from quantdraft.traffic.jsonl import located_entries
from quantdraft.traffic.ledger import Reading, Tally

BINS_AN_OCTAVE = 4  # of contexts: each stands for those within 9 %
NO_TIME = "it has no time of arrival"
HAS_TEXT = "it is no line of a trace: give logs as --traffic"

# Number of requests in flight -> ms in which each of them gets a token.
Pace = Callable[[int], float]


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests by their arrival. A context is a request's prompt and half of its response."""

    path: Path
    sha256: str
    reading: Reading
    arrivals_ms: NDArray[np.float64]  # (requests,), ascending
    num_tokens: NDArray[np.int64]  # (requests,), of the response
    contexts: NDArray[np.int64]  # (requests,)

    def context_quantiles(self, shares: tuple[float, ...]) -> tuple[int, ...]:
        """Return contexts below which so many of the response tokens are decoded."""
        order = np.argsort(self.contexts, kind="stable")
        passed = np.cumsum(self.num_tokens[order]) / self.num_tokens.sum()
        places = np.minimum(np.searchsorted(passed, shares), len(order) - 1)
        return tuple(int(self.contexts[order[place]]) for place in places)


@dataclass(frozen=True, slots=True)
class ServedTrace:
    """A trace, and how it is served."""

    trace: Trace
    num_servers: int = 1  # that share its requests
    ms_per_token: float | None = None  # of each request, at any number in flight; None: as timed


class InFlight(NamedTuple):
    """Tokens that are decoded while so many requests are in flight, at one context."""

    num_requests: int
    context_length: float
    num_tokens: float


def read_trace(path: Path) -> Trace:
    """Read a trace of any format that has lengths and times; TrafficError where none is left."""
    tally, logs, digest = Tally(), Reader(), hashlib.sha256()
    found: list[tuple[float, int, int]] = []
    for at in located_entries(path, digest, tally.leave_out_line):
        for kind, part in logs.parts(at.entry):
            tally.num_lines += 1
            try:
                (exchange, *_) = logs.read(kind, part)
                if exchange.lengths is None:
                    raise UnusableLineError(HAS_TEXT)
                if exchange.arrival_s is None:
                    raise UnusableLineError(NO_TIME)
                prompt, response = exchange.lengths
                if prompt < 0 or response < 1:
                    raise UnusableLineError("no token was answered")
            except UnusableLineError as reason:
                tally.leave_out(at.place, reason)
                continue
            assert kind is not None  # it was read
            tally.use(kind.title, exchange)
            found.append((exchange.arrival_s * 1e3, response, prompt + response // 2))
    if not found:
        why = f"The first reason: {tally.skipped[0]}." if tally.skipped else "It is empty."
        raise TrafficError(
            f"'{path}' is no trace of requests with lengths and times of arrival. {why}"
        )
    found.sort()
    times, tokens, contexts = zip(*found, strict=True)
    return Trace(
        path,
        digest.hexdigest(),
        tally.reading(),
        np.array(times, np.float64),
        np.array(tokens, np.int64),
        np.array(contexts, np.int64),
    )


def in_flight(trace: Trace, pace: Pace, num_servers: int = 1) -> tuple[InFlight, ...]:
    """Return how many tokens of a trace are decoded at which number in flight and context.

    pace: the time that a token takes, by the number in flight
    num_servers: that share the trace, request by request; numbers in flight are of one server
    """
    bins = np.rint(BINS_AN_OCTAVE * np.log2(np.maximum(1, trace.contexts))).astype(np.int64)
    decoded: dict[int, NDArray[np.float64]] = defaultdict(lambda: np.zeros(int(bins.max()) + 1))
    for number in range(min(num_servers, len(bins))):
        server, own = _Server(pace, decoded), slice(number, None, num_servers)
        columns = (trace.arrivals_ms[own], trace.num_tokens[own], bins[own])
        for arrival, tokens, place in zip(*(each.tolist() for each in columns), strict=True):
            server.run_until(arrival)
            server.take(tokens, place)
        server.run_until(math.inf)
    return tuple(
        InFlight(number, 2.0 ** (place / BINS_AN_OCTAVE), float(tokens[place]))
        for number, tokens in sorted(decoded.items())
        for place in np.flatnonzero(tokens).tolist()
    )


class _Server:
    """One server. All in flight get as many tokens as each other, whenever they came."""

    def __init__(self, pace: Pace, decoded: dict[int, NDArray[np.float64]]) -> None:
        """decoded: by number in flight the tokens by context bin, which are added to."""
        self.pace, self.decoded = pace, decoded
        self.flying: list[tuple[float, int]] = []  # (`passed` when it ends, its bin), a heap
        self.counts = np.zeros_like(decoded[1])  # in flight by bin
        self.now_ms = self.passed = 0.0  # passed: tokens of one that was in flight throughout

    def take(self, num_tokens: int, place: int) -> None:
        """Let a request arrive."""
        heapq.heappush(self.flying, (self.passed + num_tokens, place))
        self.counts[place] += 1

    def run_until(self, time_ms: float) -> None:
        """Decode until a time, or until nothing is left."""
        while self.flying and self.now_ms < time_ms:
            number, first = len(self.flying), self.flying[0][0]
            step_ms = self.pace(number)
            tokens = min(first - self.passed, (time_ms - self.now_ms) / step_ms)
            is_end = tokens == first - self.passed
            self.decoded[number] += tokens * self.counts
            self.now_ms = self.now_ms + tokens * step_ms if is_end else time_ms
            self.passed = first if is_end else self.passed + tokens
            while self.flying and self.flying[0][0] <= self.passed:
                self.counts[heapq.heappop(self.flying)[1]] -= 1
        self.now_ms = max(self.now_ms, time_ms)
