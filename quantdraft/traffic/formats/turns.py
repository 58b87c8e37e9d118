"""Chat turns as logs have them, brought to what chat templates read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from quantdraft.common.documents import parse_json, require_unicode
from quantdraft.traffic.formats.exchange import UnusableLineError

# vLLM reads either name of the first two, and gives the template both.
REASONING = ("reasoning_content", "reasoning", "thinking")
TEXT_PARTS = ("text", "input_text", "output_text")
MEDIA = {"image": "an image", "audio": "audio", "video": "a video", "file": "a file"}


class CallArguments(dict[str, Any]):
    """Arguments of a tool call: an object to templates that dump it, its JSON text to others.

    Engines hand templates the object; templates that print it as it is, or add it to a text, are
    written for the JSON text.
    """

    def __init__(self, text: str, value: Mapping[str, Any]) -> None:
        super().__init__(value)
        self.text = text

    def __str__(self) -> str:
        return self.text

    def __add__(self, other: str) -> str:
        return self.text + other

    def __radd__(self, other: str) -> str:
        return other + self.text


def read_turns(value: Any) -> tuple[dict[str, Any], ...]:
    """Return chat turns with text contents; UnusableLineError names what cannot be one."""
    if not isinstance(value, list) or not value:
        raise UnusableLineError("'messages' is not a list of chat turns")
    return tuple(read_turn(turn) for turn in value)


def read_turn(turn: Any) -> dict[str, Any]:
    """Return one chat turn; its unknown fields are kept, since the template may print them."""
    if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str):
        raise UnusableLineError("a chat turn has no role")
    try:
        require_unicode(dict(turn))
    except ValueError as error:  # a log that cuts texts by length cuts emojis too
        raise UnusableLineError(str(error)) from error
    kept = {key: each for key, each in turn.items() if each is not None and each != []}
    calls = _calls(kept.pop("tool_calls", None), kept.pop("function_call", None))
    found = {"role": turn["role"], "content": None, **kept}
    if calls:
        found["tool_calls"] = calls
    thought = next((kept[key] for key in REASONING if isinstance(kept.get(key), str)), None)
    if thought:
        found |= dict.fromkeys(REASONING, thought)
    says_something = bool(calls) or bool(thought) or "refusal" in kept
    found["content"] = text_of(kept.get("content"), may_be_absent=says_something)
    return found


def text_of(content: Any, *, may_be_absent: bool = False) -> str:
    """Return the text of a turn's content: a text, or parts that are texts, joined as vLLM does."""
    if isinstance(content, str):
        return content
    if content is None and may_be_absent:
        return ""
    if content is None:
        raise UnusableLineError("a chat turn has no content")
    parts = content if isinstance(content, list) else [content]
    return "\n".join(map(_part_text, parts))


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise UnusableLineError("a chat turn's content is no text")
    kind = str(part.get("type"))
    if kind in TEXT_PARTS and isinstance(part.get("text"), str):
        return str(part["text"])
    for name, words in MEDIA.items():
        if name in kind:
            raise UnusableLineError(f"it holds {words}")
    raise UnusableLineError(f"a chat turn has a content part of type '{kind[:40]}'")


def _calls(calls: Any, function_call: Any) -> list[dict[str, Any]]:
    """Return tool calls with their arguments as objects."""
    if function_call:
        calls = [{"type": "function", "function": function_call}]
    if not calls:
        return []
    if not isinstance(calls, list):
        raise UnusableLineError("'tool_calls' is not a list")
    return [_call(call) for call in calls]


def _call(call: Any) -> dict[str, Any]:
    inner = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise UnusableLineError("a tool call has no name")
    function = {**inner, "arguments": _arguments(inner.get("arguments"))}
    if "function" not in call:
        function = {key: each for key, each in function.items() if key not in {"id", "type"}}
    named = {key: each for key, each in call.items() if key in {"id", "index"}}
    return {**named, "type": "function", "function": function}


def _arguments(value: Any) -> Any:
    if value is None or value == "":
        return CallArguments("{}", {})
    if isinstance(value, Mapping):
        return CallArguments(json.dumps(value, ensure_ascii=False), value)
    if not isinstance(value, str):
        raise UnusableLineError("a tool call's arguments are no object")
    try:
        parsed = parse_json(value)
    except ValueError:
        return value
    return CallArguments(value, parsed) if isinstance(parsed, dict) else value
