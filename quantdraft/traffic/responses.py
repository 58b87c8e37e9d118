"""Responses of a log: a prompt's token ids and the target's answer, from one line's exchange.

`formats` reads the line; this module makes token ids of it, and knows why one is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from quantdraft.common.documents import require_unicode
from quantdraft.common.files import file_sha256
from quantdraft.errors import TrafficError
from quantdraft.traffic.formats.exchange import Exchange, UnusableLineError
from quantdraft.traffic.templates import (
    RefusedChatError,
    has_template,
    prompt_and_answer,
)

Turns = Literal["last", "all"]
MAX_TOKEN_ID = 1 << 31
MIN_RESPONSE_TOKENS = 2  # the first comes from the prefill: one more is needed for a round
NO_ANSWER = "the chat does not end with an assistant's turn after another"
UNANSWERED = "a prompt without an answer"
ONLY_LENGTHS = "it holds lengths alone, without text"


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """How a log is read; what is not given is found out."""

    format_name: str | None = None
    turns: Turns | None = None  # None: all of a conversation, the reply alone of a request
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    requests: Path | None = None  # the input file of a batch, whose output the log is

    def as_record(self) -> dict[str, Any]:
        """Return what was given, as JSON values; it decides the content beside the file."""
        given = {
            "format": self.format_name,
            "turns": self.turns,
            "chat_template_kwargs": dict(self.template_kwargs) or None,
            "requests_sha256": None if self.requests is None else file_sha256(self.requests),
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Response:
    """One prompt and what the target answered; the last token may be the end-of-sequence token."""

    prompt_id: str
    prompt_token_ids: tuple[int, ...]
    response_token_ids: tuple[int, ...]
    # Of each response token, after temperature, top-p and top-k; None when the log has none.
    logprobs: tuple[float, ...] | None = None
    domain: str = "default"
    conversation: str | None = None  # what it is resampled with; None: it stands alone
    traits: tuple[tuple[str, str], ...] = ()  # ("model", "m"), …: what its tokens are parted by


class RoundTripError(UnusableLineError):
    """A text that differs from decode(encode(text))."""


class Texts(NamedTuple):
    """A prompt and its answer, as token ids or as texts."""

    prompt: Any
    response: Any
    is_chat: bool = False


def responses_of(
    where: str, place: str, exchange: Exchange, tokenizer: Any, settings: ReadSettings
) -> Iterator[Response | UnusableLineError]:
    """Yield the responses of an exchange, and for each that is left out the reason.

    Token ids are taken as they are; text is tokenized by the target's tokenizer. TrafficError
    where there is none for it.
    """
    name = exchange.name or place.replace(" ", "-")
    if exchange.lengths is not None:
        yield UnusableLineError(ONLY_LENGTHS)
        return
    ends = answer_places(exchange, settings.turns)
    if exchange.messages is not None and not ends:
        yield UnusableLineError(NO_ANSWER)
        return
    if exchange.messages is not None:
        _require_tokenizer(where, tokenizer)
    session = exchange.conversation or (name if len(ends) > 1 else None)
    for number, end in enumerate(ends or (None,), start=1):
        own = name if number == max(1, len(ends)) else f"{name}/turn-{number}"
        try:
            yield _response(where, own, session, exchange, end, tokenizer, settings)
        except UnusableLineError as reason:
            yield reason
        except RefusedChatError as refusal:
            yield UnusableLineError(str(refusal))


def answer_places(exchange: Exchange, turns: Turns | None) -> tuple[int, ...]:
    """Return where the assistant's turns stand that are read; () where there is none."""
    messages = exchange.messages or ()
    found = tuple(at for at, turn in enumerate(messages) if at and turn["role"] == "assistant")
    if (turns or ("last" if exchange.has_one_answer else "all")) == "all":
        return found
    return found[-1:] if found and found[-1] == len(messages) - 1 else ()


def _response(
    where: str,
    name: str,
    session: str | None,
    exchange: Exchange,
    end: int | None,
    tokenizer: Any,
    settings: ReadSettings,
) -> Response:
    prompt_ids, response_ids = _token_ids(where, exchange, end, tokenizer, settings)
    if not prompt_ids:
        raise UnusableLineError("the prompt has no token")
    if len(response_ids) < MIN_RESPONSE_TOKENS:
        raise UnusableLineError(
            f"the response has {len(response_ids)} tokens, and {MIN_RESPONSE_TOKENS} are needed"
        )
    domain = exchange.domain or "default"
    _require_characters(name + domain)
    is_last = end is None or end == len(exchange.messages or ()) - 1
    traits = exchange.traits if is_last else exchange.traits | {"finish reason": ""}
    return Response(
        prompt_id=name,
        prompt_token_ids=prompt_ids,
        response_token_ids=response_ids,
        logprobs=_logprobs(exchange.logprobs if is_last else None, len(response_ids)),
        domain=domain,
        conversation=session,
        traits=tuple((name, value) for name, value in traits.items() if value),
    )


def _require_characters(text: str) -> None:
    try:
        require_unicode(text)
    except ValueError as error:  # a log that cuts texts by length cuts emojis too
        raise UnusableLineError(str(error)) from error


def _token_ids(
    where: str, exchange: Exchange, end: int | None, tokenizer: Any, settings: ReadSettings
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if exchange.response_token_ids is not None:
        return (
            token_ids_of(exchange.prompt_token_ids, "prompt_token_ids"),
            token_ids_of(exchange.response_token_ids, "response_token_ids"),
        )
    if exchange.messages is None:
        if exchange.prompt is None or exchange.response is None:
            raise UnusableLineError(UNANSWERED)
        _require_tokenizer(where, tokenizer)
        return _tokenize(exchange.prompt, exchange.response, tokenizer, add_special_tokens=True)
    assert end is not None
    messages = exchange.messages[: end + 1]
    if exchange.is_plain and not has_template(tokenizer):
        texts = messages[-2]["content"], messages[-1]["content"]
        return _tokenize(*texts, tokenizer, add_special_tokens=True)
    kwargs = {**settings.template_kwargs, **exchange.template_kwargs}
    prompt, answer = prompt_and_answer(messages, tokenizer, exchange.tools, kwargs)
    return _tokenize(prompt, answer, tokenizer, add_special_tokens=False)


def token_ids_of(ids: Any, name: str) -> tuple[int, ...]:
    """Return token ids as a log has them; UnusableLineError names the field that is none."""
    is_list = isinstance(ids, list)
    # bool is an int to Python, and a mistake in a log
    if not is_list or any(type(token) is not int or not 0 <= token < MAX_TOKEN_ID for token in ids):
        raise UnusableLineError(f"'{name}' is not a list of token ids")
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
    """Return the token ids of prompt and response, cut where the target began to speak.

    Both are tokenized as one text where the prompt's own tokens are a prefix of it, so that
    tokenizers which mark the start of a text do not mark the response's. Where a token would
    span the border, they are tokenized separately, as the target saw them.
    """

    def encode(text: str, special: bool) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=special)["input_ids"])

    _require_characters(prompt + response)
    prompt_ids, both = encode(prompt, False), encode(prompt + response, False)
    is_prefix = both[: len(prompt_ids)] == prompt_ids
    response_ids = both[len(prompt_ids) :] if is_prefix else encode(response, False)
    spelled = tokenizer.decode([*prompt_ids, *response_ids], clean_up_tokenization_spaces=False)
    if spelled != prompt + response:
        raise RoundTripError("the tokens do not spell the text (decode(encode(text)) differs)")
    return (encode(prompt, True) if add_special_tokens else prompt_ids), response_ids


def _logprobs(value: Any, num_tokens: int) -> tuple[float, ...] | None:
    if value is None:
        return None
    is_list = isinstance(value, list) and len(value) == num_tokens
    # A little above 0 is rounding of a probability of 1; NaN fails the comparison. The target said
    # the token, so its probability was not 0.
    if not is_list or any(type(x) not in {int, float} or not -1e300 < x <= 1e-3 for x in value):
        raise UnusableLineError("'logprobs' is not one log-probability for each response token")
    return tuple(min(0.0, float(x)) for x in value)
