"""Prompts: plain text, chat turns or token ids, from any format of a log. No model is loaded.

The tokenizer is an argument, of the kind that `transformers` has: callable on a text,
with `apply_chat_template` for chats.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from quantdraft.common.documents import require_unicode
from quantdraft.errors import TrafficError, nearest
from quantdraft.traffic.formats.exchange import Exchange, UnusableLineError
from quantdraft.traffic.formats.known import Reader
from quantdraft.traffic.formats.server_logs import server_log_refusal
from quantdraft.traffic.jsonl import BROKEN, LineReader, located_entries
from quantdraft.traffic.ledger import Reading, Tally
from quantdraft.traffic.responses import ONLY_LENGTHS, ReadSettings, answer_places, token_ids_of
from quantdraft.traffic.templates import chat_text, has_template

PROMPT_KEYS = ("prompt", "messages", "conversations")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt for the target: a text, or the chat turns before its answer, or token ids."""

    prompt_id: str
    text: str | None = None
    messages: tuple[dict[str, Any], ...] | None = None
    domain: str = "default"
    token_ids: tuple[int, ...] | None = None
    tools: tuple[Any, ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    conversation: str | None = None
    is_plain: bool = False  # a lone user's turn, which stays a text where there is no template


class PromptFile(NamedTuple):
    """The prompts of a file, and how it was read."""

    prompts: Sequence[Prompt]
    reading: Reading
    skipped: tuple[str, ...]  # one "line 7: why" for each line that is left out


def read_prompts(path: Path, settings: ReadSettings | None = None) -> Sequence[Prompt]:
    """Read the prompts of a file; what is left out is logged. See `read_prompt_file`."""
    found = read_prompt_file(path, settings)
    if found.skipped:
        _log.warning("%s: %s", path, found.reading.sentence)
    return found.prompts


def read_prompt_file(path: Path, settings: ReadSettings | None = None) -> PromptFile:
    """Read prompts from a file of any known format, line by line.

    A chat that ends with the assistant's answer is asked without that answer; a conversation of
    ShareGPT, LMSYS or WildChat is asked up to its first answer; with turns "all" each is asked up
    to every one of its answers. What cannot be asked is left out and counted. Large files of lines
    stay on the disk, each prompt read when it is asked for. Raises TrafficError where nothing is
    left.
    """
    settings = settings or ReadSettings()
    tally, logs = Tally(), Reader(settings.format_name, settings.requests)
    logs.prepare(path)

    def parse(place: str, entry: dict[str, Any]) -> Sequence[Prompt]:
        return _prompts(logs, place, entry, settings, Tally())

    reader = LineReader(path, parse)
    for found in located_entries(path, skip=tally.leave_out_line):
        if not logs.stands_for_another(found.entry):
            reader.add(found, _prompts(logs, found.place, found.entry, settings, tally))
    if not reader.names:
        raise TrafficError(_no_prompt(path, tally))
    return PromptFile(reader.items(), tally.reading(), tuple(tally.skipped))


def encode_prompt(prompt: Prompt, tokenizer: Any) -> tuple[int, ...]:
    """Return a prompt's token ids, with the BOS token where the tokenizer itself puts one.

    Raises TrafficError when a chat has no template, or the prompt has no token at all.
    """
    if prompt.token_ids is not None:
        return prompt.token_ids
    if prompt.messages is None:
        ids = tokenizer(prompt.text)["input_ids"]
    elif prompt.is_plain and not has_template(tokenizer):
        ids = tokenizer(prompt.messages[-1]["content"])["input_ids"]
    else:
        # A template writes the special tokens itself; the tokenizer would write BOS twice.
        text = chat_text(prompt.messages, tokenizer, prompt.tools, prompt.template_kwargs)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise TrafficError(
            f"prompt {prompt.prompt_id!r} has no token. Remove it or give it a text."
        )
    return tuple(ids)


def _prompts(
    logs: Reader, place: str, entry: dict[str, Any], settings: ReadSettings, tally: Tally
) -> list[Prompt]:
    """Return the prompts of one object of the file; the tally counts its lines."""
    found: list[Prompt] = []
    for kind, part in logs.parts(entry):
        tally.num_lines += 1
        try:
            exchanges = logs.read(kind, part)
            for exchange in exchanges:
                found += _asked(place, exchange, settings)
        except UnusableLineError as reason:
            tally.leave_out(place, reason)
            continue
        assert kind is not None  # it was read
        tally.use(kind.title, exchanges[0])
    return found


def _asked(place: str, exchange: Exchange, settings: ReadSettings) -> list[Prompt]:
    name = exchange.name or place.replace(" ", "-")
    if exchange.lengths is not None:
        raise UnusableLineError(ONLY_LENGTHS)
    fields: dict[str, Any] = {
        "domain": exchange.domain or "default",
        "tools": exchange.tools,
        "template_kwargs": {**settings.template_kwargs, **exchange.template_kwargs},
        "conversation": exchange.conversation,
        "is_plain": exchange.is_plain,
    }
    try:
        require_unicode([name, fields["domain"], exchange.prompt or ""])
    except ValueError as error:
        raise UnusableLineError(str(error)) from error
    if exchange.prompt_token_ids is not None:
        token_ids = token_ids_of(exchange.prompt_token_ids, "prompt_token_ids")
        if not token_ids:
            raise UnusableLineError("the prompt has no token")
        return [Prompt(name, token_ids=token_ids, **fields)]
    if exchange.messages is None:
        return [Prompt(name, text=exchange.prompt, **fields)]
    ends = _ends(exchange, settings)
    if len(ends) > 1:
        fields["conversation"] = exchange.conversation or name
    names = [f"{name}/turn-{number}" for number in range(1, len(ends))] + [name]
    asked = zip(names, ends, strict=True)
    return [Prompt(own, messages=exchange.messages[:end], **fields) for own, end in asked]


def _ends(exchange: Exchange, settings: ReadSettings) -> list[int]:
    """Return how many turns each prompt of a chat has."""
    messages = exchange.messages or ()
    answers = answer_places(exchange, "all")
    ends = list(answers) if settings.turns == "all" else []
    if settings.turns is None and exchange.asks_first_answer and answers:
        ends = [next((at for at in answers if _has_user(messages[:at])), answers[-1])]
    if not ends or (settings.turns == "all" and messages[-1]["role"] != "assistant"):
        ends.append(len(messages) - (messages[-1]["role"] == "assistant"))
    if ends == [0]:
        raise UnusableLineError("'messages' holds no turn before the assistant's")
    return ends


def _has_user(messages: Sequence[Mapping[str, Any]]) -> bool:
    return any(turn["role"] == "user" for turn in messages)


def _no_prompt(path: Path, tally: Tally) -> str:
    if not tally.skipped:
        return f"'{path}' holds no prompt. Give entries with 'prompt' or 'messages'."
    is_broken = all(each.endswith(BROKEN) for each in tally.skipped)
    if is_broken and (refusal := server_log_refusal(path)):
        return refusal
    hints = (hint for word in tally.skipped[0].split("'") if (hint := nearest(word, PROMPT_KEYS)))
    return f"'{path}' holds no prompt. The first reason: {tally.skipped[0]}.{next(hints, '')}"
