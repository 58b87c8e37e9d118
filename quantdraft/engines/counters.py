"""The counters of speculative decoding in a server's /metrics, read without trust.

vLLM and llama.cpp give them the same names under their own prefixes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from quantdraft.engines.http_client import HttpClient
from quantdraft.errors import EngineError

SAMPLE = re.compile(r"^(\w+:)(\w+?)(?:\{(.*)\})? ([-+.\deE]+)$", re.MULTILINE)
POSITION = re.compile(r'position="([0-9]{1,6})"')
NUM_DRAFTS = "spec_decode_num_drafts_total"
NUM_DRAFT_TOKENS = "spec_decode_num_draft_tokens_total"
NUM_ACCEPTED_PER_POS = "spec_decode_num_accepted_tokens_per_pos_total"


@dataclass(frozen=True, slots=True)
class CounterNames:
    """How one engine spells its counters."""

    prefix: str
    num_tokens: str  # of the generated tokens, without the prefix
    advice: str  # where a server has none of them


@dataclass(frozen=True, slots=True)
class Counters:
    """A server's counters since it started; one that serves without a draft has zeros."""

    num_tokens: int
    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens_per_pos: tuple[int, ...]  # (num_speculative_tokens,), empty without rounds

    @property
    def num_accepted_tokens(self) -> int:
        """The target's own token, which ends every round, is not in it."""
        return sum(self.num_accepted_tokens_per_pos)

    def since(self, before: Counters) -> Counters:
        """Return what was counted after `before`."""
        earlier = before.num_accepted_tokens_per_pos or (0,) * len(self.num_accepted_tokens_per_pos)
        if len(earlier) != len(self.num_accepted_tokens_per_pos):
            raise EngineError(
                f"the server counted {len(earlier)} positions, and now "
                f"{len(self.num_accepted_tokens_per_pos)}: was it restarted?"
            )
        per_pos = zip(self.num_accepted_tokens_per_pos, earlier, strict=True)
        return Counters(
            self.num_tokens - before.num_tokens,
            self.num_drafts - before.num_drafts,
            self.num_draft_tokens - before.num_draft_tokens,
            tuple(now - then for now, then in per_pos),
        )


def read_counters(http: HttpClient, names: CounterNames) -> Counters:
    """Return the counters of a server as they stand. Raises EngineError where it has none."""
    text, num_tokens = http.get("/metrics"), names.prefix + names.num_tokens
    if num_tokens not in text:
        raise EngineError(f"{http.url}/metrics has no {num_tokens}. {names.advice}")
    return parse_counters(text, names)


def parse_counters(text: str, names: CounterNames) -> Counters:
    """Return the counters in a server's /metrics, summed over its engines.

    Raises EngineError for a counter that is no count.
    """
    counted = {names.num_tokens, NUM_DRAFTS, NUM_DRAFT_TOKENS, NUM_ACCEPTED_PER_POS}
    totals: dict[str, int] = {}
    per_pos: dict[int, int] = {}
    for prefix, name, labels, value in SAMPLE.findall(text):
        if prefix != names.prefix or name not in counted:
            continue
        count = _count(prefix + name, value)
        totals[name] = totals.get(name, 0) + count
        position = POSITION.search(labels)
        if name == NUM_ACCEPTED_PER_POS and position:
            at = int(position.group(1))
            per_pos[at] = per_pos.get(at, 0) + count
    return Counters(
        totals.get(names.num_tokens, 0),
        totals.get(NUM_DRAFTS, 0),
        totals.get(NUM_DRAFT_TOKENS, 0),
        tuple(per_pos[at] for at in sorted(per_pos)),
    )


def _count(name: str, value: str) -> int:
    try:
        return int(float(value))
    except (ValueError, OverflowError) as error:
        raise EngineError(
            f"the server's counter {name} is {value!r}, which is no count."
        ) from error
