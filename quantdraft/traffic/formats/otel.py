"""Spans and events of OpenTelemetry's GenAI conventions, as exporters write them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from quantdraft.common.documents import parse_json
from quantdraft.traffic.formats.exchange import Exchange, Format, UnusableLineError
from quantdraft.traffic.formats.requests import read_request
from quantdraft.traffic.formats.turns import read_turns

INPUT, OUTPUT = "gen_ai.input.messages", "gen_ai.output.messages"
GROUPS = (
    *("resourceSpans", "resource_spans", "scopeSpans", "scope_spans", "spans", "batches"),
    *("resourceLogs", "resource_logs", "scopeLogs", "scope_logs", "logRecords", "log_records"),
)
SESSIONS = ("gen_ai.conversation.id", "session.id")
PARAMETERS = (
    *("temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty", "max_tokens"),
    *("seed", "stop_sequences"),
)


def _is_span(entry: Mapping[str, Any]) -> bool:
    if any(isinstance(entry.get(key), list) for key in GROUPS):
        return True
    found = entry.get("attributes")
    names = [entry] if found is None else [entry, _attributes(found)]
    return any(str(key).startswith("gen_ai.") for each in names for key in each)


def _spans(entry: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return tuple(_leaves(entry))


def _leaves(entry: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the spans of a model's answers; those of other work are no lines of a log."""
    if not isinstance(entry, Mapping):
        return
    inner = [each for key in GROUPS if isinstance(entry.get(key), list) for each in entry[key]]
    if not any(isinstance(entry.get(key), list) for key in GROUPS):
        yield entry
    for each in inner:
        yield from _leaves(each)


def _attributes(found: Any) -> dict[str, Any]:
    """Return attributes as plain values: OTLP writes a list of keys and wrapped values."""
    if isinstance(found, Mapping):
        return dict(found)
    if not isinstance(found, list):
        return {}
    pairs = [each for each in found if isinstance(each, Mapping) and "key" in each]
    return {str(each["key"]): _plain(each.get("value")) for each in pairs}


def _plain(value: Any) -> Any:
    if not isinstance(value, Mapping) or len(value) > 1:
        return value
    if not value:  # OTLP's null
        return None
    kind, inner = next(iter(value.items()))
    if kind == "intValue":
        return int(inner) if str(inner).lstrip("-").isdigit() else inner
    if kind == "arrayValue" and isinstance(inner, Mapping):
        return [_plain(each) for each in inner.get("values", [])]
    if kind == "kvlistValue" and isinstance(inner, Mapping):
        return _attributes(inner.get("values", []))
    return inner


def _read_span(span: Mapping[str, Any]) -> list[Exchange]:
    known = {**span, **_attributes(span.get("attributes"))}
    for event in span.get("events") or ():  # messages may be in an event of the span
        if isinstance(event, Mapping):
            known |= _attributes(event.get("attributes"))
    if INPUT not in known and OUTPUT not in known:
        names = [key for key in known if key.startswith("gen_ai.")]
        raise UnusableLineError(
            "a span whose messages were not captured" if names else "a span of other work"
        )
    system = _decoded(known.get("gen_ai.system_instructions")) or []
    turns = [_openai_turn({"role": "system", "parts": system})] if system else []
    turns += [_openai_turn(each) for each in _messages(known.get(INPUT))]
    request = {name: known.get(f"gen_ai.request.{name}") for name in PARAMETERS}
    request |= {"messages": turns, "tools": _tools(known.get("gen_ai.tool.definitions"))}
    if known.get("gen_ai.output.type") == "json":
        request["response_format"] = {"type": "json_schema"}
    asked = read_request({key: each for key, each in request.items() if each is not None})
    line = _line(span, known)
    answers = _messages(known.get(OUTPUT))
    if not answers:
        return [Exchange(**line, **asked, has_one_answer=True)]
    return [_answered(line, asked, answer) for answer in answers]


def _answered(line: dict[str, Any], asked: dict[str, Any], answer: Any) -> Exchange:
    turn = read_turns([{**_openai_turn(answer), "role": "assistant"}])
    reason = answer.get("finish_reason") or line["finish_reason"]
    fields = {**line, "finish_reason": reason if isinstance(reason, str) else None}
    fields |= asked | {"messages": (*asked["messages"], *turn)}
    return Exchange(**fields, has_one_answer=True)


def _line(span: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    model = known.get("gen_ai.request.model") or known.get("gen_ai.response.model")
    reasons = known.get("gen_ai.response.finish_reasons")
    one = reasons[0] if isinstance(reasons, list) and len(reasons) == 1 else None
    session = next((known[key] for key in SESSIONS if known.get(key)), None)
    context = span.get("context")
    inner = context if isinstance(context, Mapping) else {}
    name = _id(span, inner, "spanId", "span_id")
    trace = _id(span, inner, "traceId", "trace_id")
    return {
        "name": name,
        "model": model if isinstance(model, str) else None,
        "conversation": str(session) if session else trace,
        "finish_reason": one if isinstance(one, str) else None,
    }


def _id(span: Mapping[str, Any], context: Mapping[str, Any], *keys: str) -> str | None:
    """Return an id; one of zeros alone is that of an event outside of any span."""
    found = next((each[key] for each in (span, context) for key in keys if each.get(key)), None)
    text = str(found) if found else ""
    return text if text.removeprefix("0x").strip("0") else None


def _decoded(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except ValueError:
        raise UnusableLineError("its messages are not whole JSON: they were cut") from None


def _messages(value: Any) -> list[Mapping[str, Any]]:
    found = _decoded(value) or []
    if not isinstance(found, list) or not all(isinstance(each, Mapping) for each in found):
        raise UnusableLineError("its messages are no list")
    return found


def _openai_turn(message: Any) -> dict[str, Any]:
    """Return a message of parts as a chat turn."""
    parts = message.get("parts")
    if not isinstance(parts, list):
        return dict(message)
    turn: dict[str, Any] = {"role": message.get("role"), "content": None}
    texts, calls = [], []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            texts.append(part.get("content"))
        elif kind == "tool_call":
            calls.append({"id": part.get("id"), "function": dict(part)})
        elif kind == "tool_call_response":
            texts.append(_as_text(part.get("response", part.get("result"))))
            turn |= {"role": "tool", "tool_call_id": part.get("id")}
        elif kind == "reasoning":
            turn["reasoning_content"] = part.get("content")
        else:
            raise UnusableLineError(f"a message has a part of type '{str(kind)[:40]}'")
    if texts:
        turn["content"] = [{"type": "text", "text": text} for text in texts]
    return {**turn, "tool_calls": calls} if calls else turn


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _tools(value: Any) -> list[Any]:
    found = _decoded(value) or []
    if not isinstance(found, list) or not all(isinstance(tool, Mapping) for tool in found):
        raise UnusableLineError("'tools' is not a list of objects")
    bare = ({key: each for key, each in tool.items() if key != "type"} for tool in found)
    return [
        tool if "function" in tool else {"type": "function", "function": inner}
        for tool, inner in zip(found, bare, strict=True)
    ]


OTEL = Format("otel", "OpenTelemetry GenAI spans", _is_span, _read_span, _spans)
