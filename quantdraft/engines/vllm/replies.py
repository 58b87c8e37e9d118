"""What a vLLM server sends, read without trust: it need not be vLLM that listens there."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import Any

from quantdraft.common.documents import parse_json
from quantdraft.errors import EngineError

SAMPLE = re.compile(r"^(vllm:\w+?)(?:\{(.*)\})? ([-+.\deE]+)$", re.MULTILINE)
POSITION = re.compile(r'position="([0-9]{1,6})"')
USER_IN_URL = re.compile(r"(?<=:)//[^/\s'\"]*@")
NUM_TOKENS = "vllm:generation_tokens_total"
NUM_DRAFTS = "vllm:spec_decode_num_drafts_total"
NUM_DRAFT_TOKENS = "vllm:spec_decode_num_draft_tokens_total"
NUM_ACCEPTED_PER_POS = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
COUNTED = {NUM_TOKENS, NUM_DRAFTS, NUM_DRAFT_TOKENS, NUM_ACCEPTED_PER_POS}


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


def without_password(text: str) -> str:
    """A URL, or a command line with URLs, as it may be shown and recorded."""
    return USER_IN_URL.sub("//", text)


def parse_event(line: bytes) -> dict[str, Any] | None:
    """The JSON of a line of a server-sent stream; None for its other lines. EngineError."""
    data = line.removeprefix(b"data: ").strip()
    if not line.startswith(b"data: ") or data == b"[DONE]":
        return None
    try:
        event = parse_json(data)
    except ValueError as error:
        raise EngineError(f"the server sent what is not JSON: {error}.") from error
    if not isinstance(event, dict):
        raise EngineError(f"the server sent {data[:60]!r}, which is no event of vLLM's.")
    if "error" in event:
        raise EngineError(f"the server stopped: {error_message(data.decode())}")
    return event


def completion_piece(event: dict[str, Any]) -> list[int]:
    """The token ids that an event brings, in order. EngineError where it has none to bring."""
    choices = event.get("choices") or []
    if not choices:
        return []
    choice = choices[0] if isinstance(choices, list) else None
    if not isinstance(choice, dict) or choice.get("token_ids") is None:
        raise EngineError(
            "the server returns no token ids: `return_token_ids` needs vLLM 0.11 or later."
        )
    ids = choice["token_ids"]
    if not isinstance(ids, list) or any(type(token) is not int or token < 0 for token in ids):
        raise EngineError(f"the server sent {str(ids)[:60]!r} for token ids.")
    return ids


def parse_counters(text: str) -> Counters:
    """The counters in a server's /metrics, summed over its engines.

    Raises EngineError for a counter that is no count.
    """
    totals: dict[str, int] = {}
    per_pos: dict[int, int] = {}
    for name, labels, value in SAMPLE.findall(text):
        if name not in COUNTED:
            continue
        count = _count(name, value)
        totals[name] = totals.get(name, 0) + count
        position = POSITION.search(labels)
        if name == NUM_ACCEPTED_PER_POS and position:
            at = int(position.group(1))
            per_pos[at] = per_pos.get(at, 0) + count
    return Counters(
        totals.get(NUM_TOKENS, 0),
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


def error_message(text: str) -> str:
    """The message in a server's error, or the beginning of what it said."""
    with contextlib.suppress(ValueError, AttributeError):
        plain = parse_json(text)
        found = plain.get("error", plain)
        text = str(found.get("message", found)) if isinstance(found, dict) else str(found)
    return " ".join(text.split())[:300] or "nothing"
