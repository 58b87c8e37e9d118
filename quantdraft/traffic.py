"""Traffic: prompts with the target's own responses, as token ids. Plain data, JSON lines.

A traffic file made by `capture` opens with one header line; a production log has none and each of
its lines is a prompt and a response.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from quantdraft.errors import OptionError, TrafficError
from quantdraft.files import file_sha256, write_text
from quantdraft.prompts import chat_text, json_entries, read_messages, unique_ids

TRAFFIC_VERSION = 1
MIN_RESPONSE_TOKENS = 2  # the first comes from the prefill: one more is needed for a round


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the target chose its tokens. Temperature 0 is greedy. OptionError on bad values."""

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
class Response:
    """One prompt and what the target answered; the last token may be the end-of-sequence token."""

    prompt_id: str
    prompt_token_ids: tuple[int, ...]
    response_token_ids: tuple[int, ...]
    # Of each response token, after temperature, top-p and top-k; None when the log has none.
    logprobs: tuple[float, ...] | None = None
    domain: str = "default"


@dataclass(frozen=True, slots=True)
class Traffic:
    """Responses, and what is known of how they came about."""

    responses: tuple[Response, ...]
    sampling: Sampling | None  # None: a log that does not say
    target: dict[str, Any] = field(default_factory=dict)  # name, revision, dtype, weights' sha256
    sha256: str = ""
    skipped: tuple[str, ...] = ()  # one "line 7: why" for each line or prompt left out
    num_round_trip_failures: int = 0  # of those, texts that decode(encode(text)) does not return

    @property
    def num_tokens(self) -> int:
        """Response tokens over all prompts."""
        return sum(len(response.response_token_ids) for response in self.responses)


class _UnusableLineError(Exception):
    """A line that is left out and counted. Its message is the reason."""


class _RoundTripError(_UnusableLineError):
    """A text that its token ids do not spell."""


def read_traffic(path: Path, tokenizer: Any = None) -> Traffic:
    """Read captured traffic or a production log.

    A line holds `prompt_token_ids` and `response_token_ids`, taken as they are; or `prompt` and
    `response` text; or chat `messages` that end with the assistant's turn. Text needs the
    target's tokenizer: it is tokenized, and left out where the tokens do not spell it again.
    Lines with a response under 2 tokens, or with ids or log-probabilities that are none, are left
    out too; `Traffic.skipped` says which and why. Raises TrafficError, with the line number, on
    broken JSON and on lines of no known kind, on truncated captures, and when nothing is left.
    """
    entries = list(json_entries(path))
    has_header = "quantdraft_traffic" in entries[0][1]
    header = _check_header(path, entries[0][1]) if has_header else {}
    lines = entries[1:] if has_header else entries
    _check_whole(path, header, len(lines))
    responses: list[Response] = []
    skipped = [str(reason) for reason in header.get("skipped", ())]
    num_round_trip_failures = 0
    for place, entry in lines:
        try:
            responses.append(_read_response(f"{path}:{place}", place, entry, tokenizer))
        except _UnusableLineError as reason:
            skipped.append(f"{place}: {reason}")
            num_round_trip_failures += isinstance(reason, _RoundTripError)
    if not responses:
        raise TrafficError(f"'{path}' holds no usable response. The first reason: {skipped[0]}")
    return Traffic(
        responses=_with_unique_ids(responses),
        sampling=_read_sampling(path, header),
        target=dict(header.get("target", {})),
        sha256=file_sha256(path),
        skipped=tuple(skipped),
        num_round_trip_failures=num_round_trip_failures,
    )


def write_traffic(path: Path, traffic: Traffic) -> None:
    """Write traffic with its header, whole or not at all. Skipped lines are not written."""
    header = header_line(traffic.sampling, traffic.target, len(traffic.responses))
    lines = [header, *(response_line(response) for response in traffic.responses)]
    write_text(path, "".join(lines))


def header_line(
    sampling: Sampling | None,
    target: dict[str, Any],
    num_prompts: int,
    skipped: Iterable[str] = (),
    **settings: Any,
) -> str:
    """The first line of a traffic file: how the responses that follow came about.

    skipped: a reason for each prompt that was not put to the target
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
    """One line of a traffic file. The texts are for people; the token ids are what counts."""
    line: dict[str, Any] = asdict(response)
    if prompt or text:
        line |= {"prompt": prompt, "response": text}
    return json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"


def _check_header(path: Path, header: dict[str, Any]) -> dict[str, Any]:
    if header["quantdraft_traffic"] != TRAFFIC_VERSION:
        raise TrafficError(
            f"'{path}' is traffic of version {header['quantdraft_traffic']!r}; this quantdraft "
            f"reads {TRAFFIC_VERSION}. Run `quantdraft capture` again."
        )
    return header


def _check_whole(path: Path, header: dict[str, Any], num_lines: int) -> None:
    expected = header.get("num_prompts", num_lines)
    if expected != num_lines:
        raise TrafficError(
            f"'{path}' is not whole: it promises {expected} prompts and holds {num_lines}. "
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
    except (TypeError, OptionError) as error:
        raise TrafficError(f"{path}:line 1: 'sampling' cannot be used: {error}") from error


def _read_response(where: str, place: str, entry: dict[str, Any], tokenizer: Any) -> Response:
    prompt_ids, response_ids = _token_ids(where, entry, tokenizer)
    if not prompt_ids:
        raise _UnusableLineError("the prompt has no token")
    if len(response_ids) < MIN_RESPONSE_TOKENS:
        raise _UnusableLineError(
            f"the response has {len(response_ids)} tokens, and {MIN_RESPONSE_TOKENS} are needed"
        )
    return Response(
        prompt_id=str(entry.get("prompt_id", entry.get("id", place.replace(" ", "-")))),
        prompt_token_ids=prompt_ids,
        response_token_ids=response_ids,
        logprobs=_logprobs(entry.get("logprobs"), len(response_ids)),
        domain=str(entry.get("domain", "default")),
    )


def _token_ids(
    where: str, entry: dict[str, Any], tokenizer: Any
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if "prompt_token_ids" in entry and "response_token_ids" in entry:
        return _ids(entry, "prompt_token_ids"), _ids(entry, "response_token_ids")
    if isinstance(entry.get("prompt"), str) and isinstance(entry.get("response"), str):
        _require_tokenizer(where, tokenizer)
        return _tokenize(entry["prompt"], entry["response"], tokenizer, add_special_tokens=True)
    if "messages" in entry:
        messages = read_messages(entry["messages"], where)
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise _UnusableLineError("the chat does not end with an assistant's turn after another")
        _require_tokenizer(where, tokenizer)
        prompt = chat_text(messages[:-1], tokenizer)
        return _tokenize(prompt, messages[-1]["content"], tokenizer, add_special_tokens=False)
    keys = ", ".join(repr(key) for key in entry) or "nothing"
    raise TrafficError(
        f"{where}: needs 'prompt' and 'response', or 'prompt_token_ids' and 'response_token_ids', "
        f"or 'messages'; it has {keys}."
    )


def _ids(entry: dict[str, Any], name: str) -> tuple[int, ...]:
    ids = entry[name]
    is_list = isinstance(ids, list)
    # bool is an int to Python, and a mistake in a log
    if not is_list or any(type(token) is not int or token < 0 for token in ids):
        raise _UnusableLineError(f"'{name}' is not a list of token ids")
    return tuple(ids)


def _require_tokenizer(where: str, tokenizer: Any) -> None:
    if tokenizer is None:
        raise TrafficError(
            f"{where}: holds text, which needs the target's tokenizer. Give --target, or a log "
            "with 'prompt_token_ids' and 'response_token_ids'."
        )


def _tokenize(
    prompt: str, response: str, tokenizer: Any, add_special_tokens: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of prompt and response, cut where the target began to speak.

    Both are tokenized as one text where the prompt's own tokens are a prefix of it, so that
    tokenizers which mark the start of a text do not mark the response's. Where a token would
    span the border, they are tokenized apart, as the target saw them.
    """

    def encode(text: str, special: bool) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=special)["input_ids"])

    prompt_ids, both = encode(prompt, False), encode(prompt + response, False)
    is_prefix = both[: len(prompt_ids)] == prompt_ids
    response_ids = both[len(prompt_ids) :] if is_prefix else encode(response, False)
    spelled = tokenizer.decode([*prompt_ids, *response_ids], clean_up_tokenization_spaces=False)
    if spelled != prompt + response:
        raise _RoundTripError("the tokens do not spell the text (decode(encode(text)) differs)")
    return (encode(prompt, True) if add_special_tokens else prompt_ids), response_ids


def _logprobs(value: Any, num_tokens: int) -> tuple[float, ...] | None:
    if value is None:
        return None
    is_list = isinstance(value, list) and len(value) == num_tokens
    # A little above 0 is rounding of a probability of 1; NaN fails the comparison.
    if not is_list or any(type(x) not in {int, float} or not x <= 1e-3 for x in value):
        raise _UnusableLineError("'logprobs' is not one log-probability for each response token")
    return tuple(min(0.0, float(x)) for x in value)


def _with_unique_ids(responses: list[Response]) -> tuple[Response, ...]:
    names = unique_ids(response.prompt_id for response in responses)
    return tuple(
        replace(response, prompt_id=name) for response, name in zip(responses, names, strict=True)
    )
