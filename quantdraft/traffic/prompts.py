"""Prompts: plain text or chat turns, read from JSON lines or ShareGPT files. No model is loaded.

The tokenizer is an argument, of the kind that `transformers` has: callable on a text,
with `apply_chat_template` for chats.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from quantdraft.common.documents import require_unicode
from quantdraft.errors import TrafficError, nearest
from quantdraft.traffic.bounds import TookTooLong, bounded
from quantdraft.traffic.jsonl import LineReader, located_entries, shorten

MAX_TEMPLATE_SECONDS = 10.0  # of the processor, for one chat; a template takes a millisecond
MAX_TEMPLATE_BYTES = 1 << 30
MAX_CHAT_CHARACTERS = 64 * 2**20
_TOO_LARGE = (
    "the tokenizer's chat template makes a text of one chat that is larger than any model reads: "
    "it was stopped. Read chat_template of the target's directory."
)
PROMPT_KEYS = ("prompt", "messages", "conversations")
_ANSWERERS = ("assistant", "gpt", "chatgpt", "model", "bing", "bard")
_ROLES = {"human": "user", "user": "user", "system": "system"}
_ROLES |= dict.fromkeys(_ANSWERERS, "assistant")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt for the target: a text, or the chat turns before its answer, one of the two."""

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
    reader = LineReader(path, partial(_read_entry, path))
    without_human = [found.place for found in located_entries(path) if not reader.add(found)]
    if without_human:
        _log.warning(
            "%s: left out %d of %d conversations in which no human speaks (first: %s).",
            path,
            len(without_human),
            len(without_human) + len(reader.names),
            without_human[0],
        )
    if not reader.names:
        raise TrafficError(f"'{path}' holds no prompt. Give entries with 'prompt' or 'messages'.")
    return reader.items()


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
                f"{where}: a chat turn needs 'role' and 'content', both text. "
                f"Found {shorten(turn)}."
            )
    return tuple({"role": turn["role"], "content": turn["content"]} for turn in value)


def chat_text(messages: Iterable[dict[str, str]], tokenizer: Any) -> str:
    """Write a chat by the tokenizer's template, up to where the assistant begins.

    Raises TrafficError when the tokenizer has no chat template, or it refuses these turns.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise TrafficError(
            "the prompts are chats, but the target's tokenizer has no chat template. Give prompts "
            "as 'prompt' text, or put a chat_template.jinja into the target's directory."
        )
    turns = list(messages)
    try:
        with bounded(MAX_TEMPLATE_SECONDS, MAX_TEMPLATE_BYTES):
            text = str(
                tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            )
    except TookTooLong:
        raise TrafficError(
            f"the tokenizer's chat template needs more than {MAX_TEMPLATE_SECONDS:g} seconds for "
            "one chat: it was stopped. Read chat_template of the target's directory."
        ) from None
    except MemoryError:
        raise TrafficError(_TOO_LARGE) from None
    except Exception as error:  # templates raise many types: jinja2, ValueError, TypeError
        raise TrafficError(f"the tokenizer's chat template refuses a chat: {error}") from error
    if len(text) > MAX_CHAT_CHARACTERS:
        raise TrafficError(_TOO_LARGE)
    return text


def encode_prompt(prompt: Prompt, tokenizer: Any) -> tuple[int, ...]:
    """Return a prompt's token ids, with the BOS token where the tokenizer itself puts one.

    Raises TrafficError when a chat has no template, or the prompt has no token at all.
    """
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
    """Return the entry's prompt; None for a ShareGPT conversation in which no human speaks."""
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
        messages = read_messages(entry["messages"], where)
        asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
        if not asked:
            raise TrafficError(f"{where}: 'messages' holds no turn before the assistant's.")
        return Prompt(prompt_id, messages=asked, domain=domain)
    if "conversations" in entry:
        opening = _turns_before_answer(entry["conversations"], where)
        return Prompt(prompt_id, messages=opening, domain=domain) if opening else None
    keys = ", ".join(repr(key) for key in entry) or "nothing"
    hints = [hint for key in entry if (hint := nearest(key, PROMPT_KEYS, cutoff=0.8))]
    raise TrafficError(
        f"{where}: needs 'prompt' or 'messages' or 'conversations'; it has {keys}."
        f"{hints[0] if hints else ''}"
    )


def _turns_before_answer(conversation: Any, where: str) -> tuple[dict[str, str], ...]:
    """Return the turns before the first answer to a human; () when no human speaks."""
    if not isinstance(conversation, list):
        raise TrafficError(f"{where}: 'conversations' must be a list of turns.")
    opening: list[dict[str, str]] = []
    for turn in conversation:
        role = _ROLES.get(str(turn.get("from"))) if isinstance(turn, dict) else None
        if role is None or not isinstance(turn.get("value"), str):
            raise TrafficError(f"{where}: a turn needs 'from' and 'value'. Found {shorten(turn)}.")
        if role != "assistant":  # cut conversations of ShareGPT may open with an answer
            opening.append({"role": role, "content": turn["value"]})
        elif any(message["role"] == "user" for message in opening):
            return tuple(opening)
    return tuple(opening) if any(message["role"] == "user" for message in opening) else ()
