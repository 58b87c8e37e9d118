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
from quantdraft.traffic.doubts import warnings_of
from quantdraft.traffic.formats.known import Reader
from quantdraft.traffic.formats.server_logs import server_log_refusal
from quantdraft.traffic.jsonl import BROKEN, LineReader, StoredLines, located_entries
from quantdraft.traffic.ledger import Reading, Tally, left_out_of
from quantdraft.traffic.responses import (
    NO_ANSWER,
    ONLY_LENGTHS,
    UNANSWERED,
    ReadSettings,
    Response,
    RoundTripError,
    responses_of,
)

__all__ = ["Response", "read_traffic"]

TRAFFIC_VERSION = 1
ASKABLE = {NO_ANSWER, UNANSWERED}  # reasons for which the file is one of prompts
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
    reading: Reading | None = None  # how a log was read; None: a file of `capture`
    # What decides the responses beside the file, as JSON values: how it was read. {}: nothing does.
    read_with: dict[str, Any] = field(default_factory=dict)
    part: dict[str, Any] = field(default_factory=dict)  # what was held out of it; {}: nothing

    @property
    def dtype(self) -> str | None:
        """The float type in which the target wrote the responses, where that is known."""
        found = self.target.get("dtype")
        return found if isinstance(found, str) else None

    @property
    def num_tokens(self) -> int:
        """Response tokens over all prompts."""
        return int(token_counts(self.responses).response.sum())


def read_traffic(
    path: Path, tokenizer: Any = None, settings: ReadSettings | None = None
) -> Traffic:
    """Read captured traffic or a production log, of any format in `formats`.

    Token ids are taken as they are. Text needs the target's tokenizer: it is tokenized, and left
    out where decoding does not give it back. Lines with a response under 2 tokens, with invalid
    ids or log-probabilities, of no known kind or broken are left out too; `Traffic.skipped` says
    which and why. Raises TrafficError on truncated captures, and when nothing is left.
    """
    settings = settings or ReadSettings()
    header: dict[str, Any] = {}
    tally, logs = Tally(), Reader(settings.format_name, settings.requests)
    num_round_trip_failures = num_objects = 0
    logs.prepare(path)

    def parse(place: str, entry: dict[str, Any]) -> Sequence[Response]:
        return _responses(path, logs, place, entry, tokenizer, settings, Tally()).usable

    digest = hashlib.sha256()
    reader = LineReader(path, parse, _num_tokens)
    for found in located_entries(path, digest, tally.leave_out_line):
        if not header and not tally.num_lines and "quantdraft_traffic" in found.entry:
            header = found.entry
            _require_header(path, header)
            continue
        if logs.stands_for_another(found.entry):
            continue
        num_objects += 1
        read = _responses(path, logs, found.place, found.entry, tokenizer, settings, tally)
        num_round_trip_failures += read.num_round_trip_failures
        reader.add(found, read.usable)
    require_whole(path, header, num_objects, tally)
    if not reader.names:
        raise TrafficError(_nothing_usable(path, tally))
    given = settings.as_record()
    if len(reader.names) > tally.num_used and "turns" not in given:
        given["turns"] = "all"
    sampling, is_mixed = _stated_sampling(tally, reader)
    doubts = warnings_of(tally, tokenizer, settings, is_mixed)
    return Traffic(
        responses=reader.items(),
        sampling=_read_sampling(path, header) if header else sampling,
        target=dict(header.get("target", {})),
        sha256=digest.hexdigest(),
        skipped=(*(str(each) for each in header.get("skipped", ())), *tally.skipped),
        num_round_trip_failures=num_round_trip_failures,
        reading=None if header else tally.reading(doubts),
        read_with=given,
    )


class _Read(NamedTuple):
    """What one object of a file gave."""

    usable: list[Response]
    num_round_trip_failures: int


def _responses(
    path: Path,
    logs: Reader,
    place: str,
    entry: dict[str, Any],
    tokenizer: Any,
    settings: ReadSettings,
    tally: Tally,
) -> _Read:
    """Return the responses of one object; the tally counts its lines."""
    usable: list[Response] = []
    num_failures = 0
    for kind, exchanges in tally.read(logs, place, entry):
        before = len(usable)
        for exchange in exchanges:
            for found in responses_of(f"{path}:{place}", place, exchange, tokenizer, settings):
                if isinstance(found, Response):
                    usable.append(found)
                else:
                    tally.leave_out(place, found)
                    num_failures += isinstance(found, RoundTripError)
        if len(usable) > before:
            tally.use(kind.title, exchanges[0])
    return _Read(usable, num_failures)


def _nothing_usable(path: Path, tally: Tally) -> str:
    if not tally.skipped:
        return f"'{path}' is an empty array. Give a file with prompts and responses."
    reasons = {each.reason for each in left_out_of(tally.skipped)}
    if reasons == {BROKEN} and (refusal := server_log_refusal(path)):
        return refusal
    if reasons == {ONLY_LENGTHS}:
        return (
            f"'{path}' is a trace of lengths without text: no acceptance can be replayed on it. "
            "Give it as --trace, beside a log: the verdict is then weighed by it."
        )
    hint = " Give it as --prompts: the target answers them." if reasons <= ASKABLE else ""
    first = tally.skipped[0]
    more = f" ({len(reasons)} reasons in all)" if len(reasons) > 1 else ""
    return f"'{path}' holds no usable response. The first reason: {first}{more}.{hint}"


def _stated_sampling(tally: Tally, reader: LineReader[Response]) -> tuple[Sampling | None, bool]:
    """Return the sampling that every line of a log states, and whether lines differ in it.

    That a text was greedy is not taken from a log: its tokens may be others than the target's.
    """
    stated = [dict(each) for each in tally.samplings]
    temperatures = {each.get("temperature") for each in stated}
    if len(stated) != 1 or None in temperatures:
        return None, len(temperatures) > 1
    try:
        known = stated[0]
        top_k = max(0, int(known.get("top_k", 0)))
        found = Sampling(known["temperature"], known.get("top_p", 1.0), top_k)
    except (OptionError, OverflowError, ValueError):
        return None, False
    return None if found.is_greedy else found, False


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
    if response.conversation is None:
        del line["conversation"]
    line["traits"] = dict(response.traits)
    if not response.traits:
        del line["traits"]
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


def require_whole(path: Path, header: dict[str, Any], num_lines: int, tally: Tally) -> None:
    """Raise TrafficError for a capture that lost a line; a log has no header, and no length."""
    if not header:
        return
    broken = next((each for each in tally.skipped if each.endswith(BROKEN)), None)
    if broken is not None:
        raise TrafficError(f"{path}:{broken}. Run `quantdraft capture` again.")
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
