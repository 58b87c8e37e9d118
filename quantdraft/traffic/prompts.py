"""Prompts: plain text or chat turns, read from JSON lines or ShareGPT files. No model in here.

A tokenizer is only ever passed in. It is whatever `transformers` calls one: callable on a text,
with `apply_chat_template` for chats.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from quantdraft.common.documents import parse_json, require_unicode
from quantdraft.errors import TrafficError, nearest, nearest_path
from quantdraft.traffic.jsonl import StoredLines, is_large, numbered_lines

PROMPT_KEYS = ("prompt", "messages", "conversations")
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant"}
_ROLES |= {"assistant": "assistant", "model": "assistant", "bing": "assistant", "bard": "assistant"}
_ROLES |= {"system": "system"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the target is asked: a text, or the chat turns before its answer. One of them is set."""

    prompt_id: str
    text: str | None = None
    messages: tuple[dict[str, str], ...] | None = None
    domain: str = "default"


def read_prompts(path: Path) -> Sequence[Prompt]:
    """Read prompts from JSON lines, a JSON array, or a ShareGPT file of either kind.

    An entry holds `prompt`, or chat `messages`, or ShareGPT `conversations`, and may hold `id`
    and `domain`. A chat that ends with the assistant's answer is asked without that answer; a
    ShareGPT conversation is asked up to its first answer. ShareGPT conversations in which no
    human speaks are left out with a logged warning. Large files of lines stay on the disk, each
    prompt read when it is asked for. Raises TrafficError with the line number.
    """
    is_stored, prompts, numbers, offsets, names = is_large(path), [], [], [], []
    speechless, num_entries = [], 0
    for found in located_entries(path):
        num_entries += 1
        prompt = _read_entry(path, found.place, found.entry)
        if prompt is None:
            speechless.append(found.place)
            continue
        names.append(prompt.prompt_id)
        if is_stored and found.offset is not None:
            numbers.append(found.number)
            offsets.append(found.offset)
        else:
            prompts.append(prompt)
    if speechless:
        _log.warning(
            "%s: left out %d of %d conversations in which no human speaks (first: %s).",
            path,
            len(speechless),
            num_entries,
            speechless[0],
        )
    if not names:
        raise TrafficError(f"'{path}' holds no prompt. Give entries with 'prompt' or 'messages'.")
    unique = unique_ids(names)
    if not offsets:
        return [replace(p, prompt_id=name) for name, p in zip(unique, prompts, strict=True)]
    renamed = dict(zip(numbers, unique, strict=True))

    def parse(number: int, entry: dict[str, Any]) -> Prompt:
        prompt = _read_entry(path, f"line {number}", entry)
        assert prompt is not None  # it was not, when the file was indexed
        return replace(prompt, prompt_id=renamed[number])

    return StoredLines(path, offsets, numbers, parse)


class Located(NamedTuple):
    """An object of a file, and where it stands."""

    number: int  # of the line, or of the item of an array, from 1
    offset: int | None  # of the line, in bytes; None in an array
    entry: dict[str, Any]

    @property
    def place(self) -> str:
        """`line 3` of JSON lines, `item 3` of an array."""
        return f"{'item' if self.offset is None else 'line'} {self.number}"


def json_entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a file with their places: `line 3` of JSON lines, `item 3` of an array.

    Raises TrafficError when the file is missing, empty, not UTF-8, or an entry is no JSON object.
    """
    return ((found.place, found.entry) for found in located_entries(path))


def located_entries(path: Path) -> Iterator[Located]:
    """The same with numbers and offsets, one at a time; an array alone is read as a whole."""
    is_empty = True
    try:
        for number, offset, line in numbered_lines(path):
            text = line.decode("utf-8-sig" if offset == 0 else "utf-8")
            if not text.strip():
                continue
            if is_empty and text.lstrip().startswith("["):
                whole = path.read_text(encoding="utf-8-sig")
                for item, entry in enumerate(_array_items(path, whole), start=1):
                    yield Located(item, None, entry)
                return
            is_empty = False
            yield Located(number, offset, _parse_line(path, number, text))
    except FileNotFoundError:
        hint = nearest_path(path)
        raise TrafficError(f"no such file: '{path}'.{hint} Give a JSON lines file.") from None
    except UnicodeDecodeError as error:
        raise TrafficError(f"'{path}' is not UTF-8 text. Give a JSON lines file.") from error
    except OSError as error:
        raise TrafficError(f"'{path}' cannot be read: {error.strerror}.") from error
    if is_empty:
        raise TrafficError(f"'{path}' is empty. Give a file with one JSON object a line.")


def unique_ids(ids: Iterable[str]) -> list[str]:
    """The ids in order; a repeated `x` becomes `x#2`, `x#3`, … so that pairs can be told apart."""
    given = list(ids)
    taken, seen = set(given), Counter[str]()
    unique = []
    for name in given:
        seen[name] += 1
        if seen[name] > 1:
            numbered = (f"{name}#{number}" for number in count(seen[name]))
            name = next(other for other in numbered if other not in taken)  # noqa: PLW2901
            taken.add(name)
        unique.append(name)
    return unique


def read_messages(value: Any, where: str) -> tuple[dict[str, str], ...]:
    """Check chat turns: a list of objects with a `role` and a text `content`.

    where: file and line, for the error message.
    """
    if not isinstance(value, list) or not value:
        raise TrafficError(f"{where}: 'messages' must be a list of chat turns.")
    for turn in value:
        is_turn = isinstance(turn, dict) and isinstance(turn.get("role"), str)
        if not is_turn or not isinstance(turn.get("content"), str):
            raise TrafficError(
                f"{where}: a chat turn needs 'role' and 'content', both text. Found {_short(turn)}."
            )
    return tuple({"role": turn["role"], "content": turn["content"]} for turn in value)


def chat_text(messages: Iterable[dict[str, str]], tokenizer: Any) -> str:
    """The chat as the tokenizer's template writes it, up to where the assistant begins.

    Raises TrafficError when the tokenizer has no chat template, or it refuses these turns.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise TrafficError(
            "the prompts are chats, but the target's tokenizer has no chat template. Give prompts "
            "as 'prompt' text, or put a chat_template.jinja into the target's directory."
        )
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # templates raise what they like: jinja2, ValueError, TypeError
        raise TrafficError(f"the tokenizer's chat template refuses a chat: {error}") from error
    return str(text)


def encode_prompts(prompts: Iterable[Prompt], tokenizer: Any) -> list[tuple[int, ...]]:
    """Token ids of each prompt, with the BOS token where the tokenizer itself puts one.

    Raises TrafficError when a chat has no template, or a prompt has no token at all.
    """
    return [encode_prompt(prompt, tokenizer) for prompt in prompts]


def encode_prompt(prompt: Prompt, tokenizer: Any) -> tuple[int, ...]:
    """Token ids of one prompt; see `encode_prompts`."""
    if prompt.messages is None:
        ids = tokenizer(prompt.text)["input_ids"]
    else:
        # A template writes the special tokens itself; the tokenizer would write BOS twice.
        text = chat_text(prompt.messages, tokenizer)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise TrafficError(
            f"prompt {prompt.prompt_id!r} has no token. Remove it or give it a text."
        )
    return tuple(ids)


def _read_entry(path: Path, place: str, entry: dict[str, Any]) -> Prompt | None:
    """The entry's prompt; None for a ShareGPT conversation in which no human speaks."""
    where = f"{path}:{place}"
    try:
        require_unicode(entry)
    except ValueError as error:
        raise TrafficError(f"{where}: {error}. Repair or remove it.") from error
    prompt_id = str(entry.get("id", entry.get("prompt_id", place.replace(" ", "-"))))
    domain = str(entry.get("domain", "default"))
    if isinstance(entry.get("prompt"), str):
        if not entry["prompt"]:
            raise TrafficError(f"{where}: 'prompt' is empty. Remove the line or give it a text.")
        return Prompt(prompt_id, text=entry["prompt"], domain=domain)
    if "messages" in entry:
        asked = _asked(read_messages(entry["messages"], where), where)
        return Prompt(prompt_id, messages=asked, domain=domain)
    if "conversations" in entry:
        opening = _opening(entry["conversations"], where)
        return Prompt(prompt_id, messages=opening, domain=domain) if opening else None
    keys = ", ".join(repr(key) for key in entry) or "nothing"
    hints = [hint for key in entry if (hint := nearest(key, PROMPT_KEYS, cutoff=0.8))]
    raise TrafficError(
        f"{where}: needs 'prompt' or 'messages' or 'conversations'; it has {keys}."
        f"{hints[0] if hints else ''}"
    )


def _asked(messages: tuple[dict[str, str], ...], where: str) -> tuple[dict[str, str], ...]:
    asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    if not asked:
        raise TrafficError(f"{where}: 'messages' holds no turn before the assistant's.")
    return asked


def _opening(conversation: Any, where: str) -> tuple[dict[str, str], ...]:
    """The turns before the first answer that follows a human; () when no human speaks."""
    if not isinstance(conversation, list):
        raise TrafficError(f"{where}: 'conversations' must be a list of turns.")
    opening: list[dict[str, str]] = []
    for turn in conversation:
        role = _ROLES.get(str(turn.get("from"))) if isinstance(turn, dict) else None
        if role is None or not isinstance(turn.get("value"), str):
            raise TrafficError(f"{where}: a turn needs 'from' and 'value'. Found {_short(turn)}.")
        has_asked = any(message["role"] == "user" for message in opening)
        if role == "assistant" and has_asked:
            return tuple(opening)
        if role != "assistant":  # cut conversations of ShareGPT may open with an answer
            opening.append({"role": role, "content": turn["value"]})
    return tuple(opening) if any(message["role"] == "user" for message in opening) else ()


def _array_items(path: Path, text: str) -> Iterator[dict[str, Any]]:
    try:
        items = parse_json(text)
    except ValueError as error:
        raise TrafficError(f"'{path}' is not a whole JSON array: {error}.") from error
    for number, item in enumerate(items, start=1):
        if not isinstance(item, dict):
            raise TrafficError(f"{path}:item {number}: not an object but {_short(item)}.")
        yield item


def _parse_line(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        entry = parse_json(line, is_unicode=False)
    except ValueError as error:
        raise TrafficError(f"{path}:line {number}: broken JSON: {error}.") from error
    if not isinstance(entry, dict):
        raise TrafficError(f"{path}:line {number}: not a JSON object but {_short(entry)}.")
    return entry


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
