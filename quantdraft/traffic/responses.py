"""Read one response, a prompt's token ids and the target's answer, from a line of traffic or a log.

This module knows the forms of a line, and why one is left out; `traffic` reads the files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quantdraft.common.documents import require_unicode
from quantdraft.errors import TrafficError
from quantdraft.traffic.prompts import chat_text, read_messages

MAX_TOKEN_ID = 1 << 31
MIN_RESPONSE_TOKENS = 2  # the first comes from the prefill: one more is needed for a round


@dataclass(frozen=True, slots=True)
class Response:
    """One prompt and what the target answered; the last token may be the end-of-sequence token."""

    prompt_id: str
    prompt_token_ids: tuple[int, ...]
    response_token_ids: tuple[int, ...]
    # Of each response token, after temperature, top-p and top-k; None when the log has none.
    logprobs: tuple[float, ...] | None = None
    domain: str = "default"


class UnusableLineError(Exception):
    """A line that is left out and counted. Its message is the reason."""


class RoundTripError(UnusableLineError):
    """A text that differs from decode(encode(text))."""


def read_response(where: str, place: str, entry: dict[str, Any], tokenizer: Any) -> Response:
    """Return the response in a line; UnusableLineError where it is left out, else TrafficError.

    Token ids are taken as they are; text is tokenized by the target's tokenizer.
    """
    prompt_ids, response_ids = _token_ids(where, entry, tokenizer)
    if not prompt_ids:
        raise UnusableLineError("the prompt has no token")
    if len(response_ids) < MIN_RESPONSE_TOKENS:
        raise UnusableLineError(
            f"the response has {len(response_ids)} tokens, and {MIN_RESPONSE_TOKENS} are needed"
        )
    prompt_id = str(entry.get("prompt_id", entry.get("id", place.replace(" ", "-"))))
    domain = str(entry.get("domain", "default"))
    _require_characters(prompt_id + domain)
    return Response(
        prompt_id=prompt_id,
        prompt_token_ids=prompt_ids,
        response_token_ids=response_ids,
        logprobs=_logprobs(entry.get("logprobs"), len(response_ids)),
        domain=domain,
    )


def _require_characters(text: str) -> None:
    try:
        require_unicode(text)
    except ValueError as error:  # a log that cuts texts by length cuts emojis too
        raise UnusableLineError(str(error)) from error


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
            raise UnusableLineError("the chat does not end with an assistant's turn after another")
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
