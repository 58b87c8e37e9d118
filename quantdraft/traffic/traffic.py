"""Traffic: prompts with the target's own responses, as token ids. Plain data, JSON lines.

A traffic file made by `capture` begins with one header line; a production log has none, and each of
its lines is a prompt and a response.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantdraft.errors import OptionError, TrafficError
from quantdraft.traffic.jsonl import LineReader, StoredLines, located_entries
from quantdraft.traffic.responses import Response, RoundTripError, UnusableLineError, read_response

TRAFFIC_VERSION = 1
HEADER_KINDS: dict[str, tuple[type, ...]] = {
    "target": (dict,),
    "skipped": (list,),
    "num_prompts": (int,),
    "sampling": (dict, type(None)),
}


@dataclass(frozen=True, slots=True)
class Sampling:
    """The target's sampling settings. Temperature 0 is greedy. OptionError on bad values."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise OptionError(f"temperature {self.temperature!r} must be 0 (greedy) or above.")
        if not 0 < self.top_p <= 1:
            raise OptionError(f"top-p {self.top_p!r} must be above 0 and at most 1 (1: no limit).")
        if self.top_k < 0:
            raise OptionError(f"top-k {self.top_k!r} must be 0 (no limit) or above.")

    @property
    def is_greedy(self) -> bool:
        """True when the target took its most probable token."""
        return self.temperature == 0.0


@dataclass(frozen=True, slots=True)
class Traffic:
    """Responses, and what is known of the target and the sampling that made them."""

    responses: Sequence[Response]  # a tuple, or lines of a file that is too large for memory
    sampling: Sampling | None  # None: a log that does not say
    target: dict[str, Any] = field(default_factory=dict)  # name, revision, dtype, weights' sha256
    sha256: str = ""
    skipped: tuple[str, ...] = ()  # one "line 7: why" for each line or prompt left out
    num_round_trip_failures: int = 0  # of those, texts that decode(encode(text)) does not return

    @property
    def dtype(self) -> str | None:
        """The float type in which the target wrote the responses, where that is known."""
        found = self.target.get("dtype")
        return found if isinstance(found, str) else None

    @property
    def num_tokens(self) -> int:
        """Response tokens over all prompts."""
        return int(token_counts(self.responses).response.sum())


def read_traffic(path: Path, tokenizer: Any = None) -> Traffic:
    """Read captured traffic or a production log.

    A line holds `prompt_token_ids` and `response_token_ids`, taken as they are; or `prompt` and
    `response` text; or chat `messages` that end with the assistant's turn. Text needs the
    target's tokenizer: it is tokenized, and left out where decoding does not give it back.
    Lines with a response under 2 tokens, or with invalid ids or log-probabilities, are left
    out too; `Traffic.skipped` says which and why. Raises TrafficError, with the line number, on
    broken JSON and on lines of no known kind, on truncated captures, and when nothing is left.
    """
    header: dict[str, Any] = {}
    num_lines, skipped, num_round_trip_failures = 0, [], 0

    def parse(place: str, entry: dict[str, Any]) -> Response:
        return read_response(f"{path}:{place}", place, entry, tokenizer)

    digest = hashlib.sha256()
    reader = LineReader(path, parse, _num_tokens)
    for found in located_entries(path, digest):
        if not header and not num_lines and "quantdraft_traffic" in found.entry:
            header = found.entry
            _require_header(path, header)
            skipped = [str(reason) for reason in header.get("skipped", ())]
            continue
        num_lines += 1
        try:
            reader.add(found)
        except UnusableLineError as reason:
            skipped.append(f"{found.place}: {reason}")
            num_round_trip_failures += isinstance(reason, RoundTripError)
    _require_whole(path, header, num_lines)
    if not reader.names:
        raise TrafficError(
            f"'{path}' holds no usable response. The first reason: {skipped[0]}"
            if skipped
            else f"'{path}' is an empty array. Give a file with prompts and responses."
        )
    return Traffic(
        responses=reader.items(),
        sampling=_read_sampling(path, header),
        target=dict(header.get("target", {})),
        sha256=digest.hexdigest(),
        skipped=tuple(skipped),
        num_round_trip_failures=num_round_trip_failures,
    )


class TokenCounts(NamedTuple):
    """Numbers of tokens of every prompt and response: (responses,) int64 each."""

    prompt: NDArray[np.int64]
    response: NDArray[np.int64]


def token_counts(responses: Sequence[Response]) -> TokenCounts:
    """Count the tokens of prompts and responses; responses on the disk are not read for it."""
    if isinstance(responses, StoredLines):
        return TokenCounts(*(np.array(column, np.int64) for column in responses.sizes))
    counts = np.array([_num_tokens(each) for each in responses], np.int64).reshape(-1, 2)
    return TokenCounts(*counts.T)


def _num_tokens(response: Response) -> tuple[int, int]:
    return len(response.prompt_token_ids), len(response.response_token_ids)


def header_line(
    sampling: Sampling | None,
    target: dict[str, Any],
    num_prompts: int,
    skipped: Iterable[str] = (),
    **settings: Any,
) -> str:
    """Return the first line of a traffic file: how the responses after it were made.

    skipped: a reason for each prompt that the target was not asked
    settings: anything else that decides the content, kept for `capture` to compare
    """
    header = {
        "quantdraft_traffic": TRAFFIC_VERSION,
        "sampling": asdict(sampling) if sampling else None,
        "target": target,
        "num_prompts": num_prompts,
        "skipped": list(skipped),
        **settings,
    }
    return json.dumps(header, ensure_ascii=False, allow_nan=False) + "\n"


def response_line(response: Response, prompt: str = "", text: str = "") -> str:
    """Return one line of a traffic file. Only its token ids are read; the texts are for people."""
    line: dict[str, Any] = asdict(response)
    if prompt or text:
        line |= {"prompt": prompt, "response": text}
    return json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"


def _require_header(path: Path, header: dict[str, Any]) -> None:
    if header["quantdraft_traffic"] != TRAFFIC_VERSION:
        raise TrafficError(
            f"'{path}' is traffic of version {header['quantdraft_traffic']!r}; this quantdraft "
            f"reads {TRAFFIC_VERSION}. Run `quantdraft capture` again."
        )
    for key, kinds in HEADER_KINDS.items():
        if key in header and not isinstance(header[key], kinds):
            raise TrafficError(
                f"{path}:line 1: {key!r} of the header is {type(header[key]).__name__}. "
                "Run `quantdraft capture` again."
            )


def _require_whole(path: Path, header: dict[str, Any], num_lines: int) -> None:
    expected = header.get("num_prompts", num_lines)
    if expected != num_lines:
        raise TrafficError(
            f"'{path}' is incomplete: its header says {expected} prompts, it holds {num_lines}. "
            "Run `quantdraft capture` again; it continues where it stopped."
        )
    if num_lines == 0:
        raise TrafficError(
            f"'{path}' holds a header and no response. Run `quantdraft capture` again."
        )


def _read_sampling(path: Path, header: dict[str, Any]) -> Sampling | None:
    if not header.get("sampling"):
        return None
    try:
        return Sampling(**header["sampling"])
    except (TypeError, OverflowError, OptionError) as error:
        raise TrafficError(f"{path}:line 1: 'sampling' cannot be used: {error}") from error
