"""Logs of servers and gateways: a request and its reply in each one's own wrapping."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

from quantdraft.common.documents import parse_json
from quantdraft.traffic.formats.exchange import Exchange, Format, UnusableLineError
from quantdraft.traffic.formats.requests import (
    NO_PROMPT,
    of_line,
    read_pair,
    read_request,
    reason_of,
    session_of,
)
from quantdraft.traffic.formats.turns import read_turn

ENGINE_ANSWERS = ("choices", "outputs", "output_ids")


def _is_reply(entry: Mapping[str, Any]) -> bool:
    has_ids = "prompt_token_ids" in entry or "output_ids" in entry
    is_vllm = isinstance(entry.get("outputs"), list) and has_ids
    return isinstance(entry.get("choices"), list) or is_vllm or "output_ids" in entry


def _read_reply(entry: Mapping[str, Any]) -> list[Exchange]:
    """Read a whole reply with token ids: of the API, of vLLM's RequestOutput, or of SGLang."""
    line = of_line(entry)
    if "choices" in entry:
        has_request = "messages" in entry or isinstance(entry.get("prompt"), str)
        return read_pair(entry if has_request else None, entry, line)
    answers = [entry] if "output_ids" in entry else entry["outputs"]
    prompt_ids = entry.get("prompt_token_ids", entry.get("input_ids"))
    if not prompt_ids:
        raise UnusableLineError(NO_PROMPT)
    return [_engine_answer(line, prompt_ids, answer) for answer in answers]


def _engine_answer(line: dict[str, Any], prompt_ids: Any, answer: Any) -> Exchange:
    if not isinstance(answer, Mapping):
        raise UnusableLineError("an output of it is no object")
    meta = answer.get("meta_info")
    name = line["name"] or (meta.get("id") if isinstance(meta, Mapping) else None)
    reason = reason_of(meta) if isinstance(meta, Mapping) else reason_of(answer)
    ids = answer.get("output_ids", answer.get("token_ids"))
    fields = {**line, "name": name, "finish_reason": reason}
    return Exchange(
        **fields, prompt_token_ids=prompt_ids, response_token_ids=ids, has_one_answer=True
    )


def _is_logged_pair(entry: Mapping[str, Any]) -> bool:
    return _pair_keys(entry) is not None


def _pair_keys(entry: Mapping[str, Any]) -> tuple[str, str] | None:
    pairs = (("request", "response"), ("body", "response"), ("request", "reply"))
    both = (pair for pair in pairs if all(isinstance(entry.get(key), Mapping) for key in pair))
    return next(both, None)


def _read_logged_pair(entry: Mapping[str, Any]) -> list[Exchange]:
    keys = _pair_keys(entry)
    assert keys is not None  # it was recognised
    request, reply = (_body(entry[key]) for key in keys)
    line = of_line(entry)
    line["conversation"] = line["conversation"] or session_of(request)
    line["model"] = line["model"] or request.get("model")
    return read_pair(request, reply, line)


def _body(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the body of what was sent, which some logs wrap with its headers or its status."""
    status = message.get("status_code")
    if isinstance(status, int) and status >= 400:
        raise UnusableLineError(f"its request failed with status {status}")
    inner = message.get("body")
    return inner if isinstance(inner, Mapping) else message


def _is_sagemaker(entry: Mapping[str, Any]) -> bool:
    return isinstance(entry.get("captureData"), Mapping)


def _read_sagemaker(entry: Mapping[str, Any]) -> list[Exchange]:
    captured, about = entry["captureData"], entry.get("eventMetadata")
    request = _captured(captured.get("endpointInput"), "request")
    reply = _captured(captured.get("endpointOutput"), "reply")
    event = about.get("eventId") if isinstance(about, Mapping) else None
    line: dict[str, Any] = {"name": event, "conversation": session_of(request)}
    if "inputs" in request:  # of the text generation containers
        answer = reply[0] if isinstance(reply, list) and reply else reply
        text = answer.get("generated_text") if isinstance(answer, Mapping) else None
        if not isinstance(request["inputs"], str) or not isinstance(text, str):
            raise UnusableLineError("its reply does not fit its request")
        parameters = request.get("parameters")
        known = parameters if isinstance(parameters, Mapping) else {}
        return [
            Exchange(
                **line,
                prompt=request["inputs"],
                response=text.removeprefix(request["inputs"]),
                parameters=known,
                has_one_answer=True,
            )
        ]
    return read_pair(request, reply, line)


def _captured(part: Any, what: str) -> Any:
    data = part.get("data") if isinstance(part, Mapping) else None
    if data is None:
        raise UnusableLineError(f"its {what} was not captured")
    encoding = str(part.get("encoding", "BASE64")).upper()
    if encoding not in {"JSON", "BASE64"}:
        raise UnusableLineError(f"its {what} is encoded as {encoding[:20]}")
    try:
        text = base64.b64decode(data, validate=True) if encoding == "BASE64" else data
        found = parse_json(text) if isinstance(text, (str, bytes)) else text
    except (binascii.Error, ValueError, TypeError):
        raise UnusableLineError(f"its {what} is not JSON") from None
    if not isinstance(found, (dict, list)) or (what == "request" and not isinstance(found, dict)):
        raise UnusableLineError(f"its {what} is no object")
    return found


def _is_litellm(entry: Mapping[str, Any]) -> bool:
    return "call_type" in entry and ("messages" in entry or "response" in entry)


def _read_litellm(entry: Mapping[str, Any]) -> list[Exchange]:
    if entry.get("status") not in ("success", None):
        raise UnusableLineError("its request failed")
    messages, reply = entry.get("messages"), entry.get("response")
    parameters = entry.get("model_parameters")
    known = parameters if isinstance(parameters, Mapping) else {}
    line = of_line(entry)
    line["conversation"] = line["conversation"] or _text_of(entry.get("trace_id"))
    if isinstance(messages, str):
        return read_pair({**known, "prompt": messages}, reply, line)
    if "text_completion" in str(entry.get("call_type")) and isinstance(messages, list):
        return read_pair({**known, "prompt": _completed(messages)}, reply, line)
    if isinstance(messages, Mapping):
        messages = messages.get("messages", messages)
    return read_pair({**known, "messages": messages}, reply, line)


def _completed(messages: list[Any]) -> Any:
    """Return the text that was completed, which litellm writes as a lone user's turn."""
    only = messages[0] if len(messages) == 1 else None
    return only.get("content") if isinstance(only, Mapping) else None


def _text_of(value: Any) -> str | None:
    return str(value) if value else None


def _is_langfuse(entry: Mapping[str, Any]) -> bool:
    has_trace = any(key in entry for key in ("traceId", "trace_id"))
    return "input" in entry and "output" in entry and (has_trace or "modelParameters" in entry)


def _read_langfuse(entry: Mapping[str, Any]) -> list[Exchange]:
    kind = str(entry.get("type", "GENERATION")).upper()
    if kind != "GENERATION":
        raise UnusableLineError(f"an observation of type {kind[:20]}, which is no generation")
    given, said = _decoded(entry["input"]), _decoded(entry["output"])
    parameters = entry.get("modelParameters", entry.get("model_parameters"))
    known = dict(parameters) if isinstance(parameters, Mapping) else {}
    line = of_line(entry)
    session = entry.get("sessionId") or line["conversation"] or entry.get("traceId")
    line["conversation"] = _text_of(session or entry.get("trace_id"))
    if isinstance(given, Mapping):
        known |= given
    elif isinstance(given, list):
        known["messages"] = given
    elif isinstance(given, str):
        if not isinstance(said, str):
            said = _answer_turn(said)["content"]
        return [Exchange(**line, prompt=given, response=said, has_one_answer=True)]
    else:
        raise UnusableLineError("its input is neither text nor chat turns")
    asked = read_request(known)
    if isinstance(said, Mapping) and "choices" in said:
        return read_pair(known, said, line)
    if "messages" not in asked:
        raise UnusableLineError("its input is neither text nor chat turns")
    asked["messages"] = (*asked["messages"], _answer_turn(said))
    return [Exchange(**line, **asked, has_one_answer=True)]


def _answer_turn(said: Any) -> dict[str, Any]:
    if isinstance(said, str):
        return {"role": "assistant", "content": said}
    if isinstance(said, list) and len(said) == 1:
        said = said[0]
    if isinstance(said, Mapping) and isinstance(said.get("message"), Mapping):
        said = said["message"]
    if not isinstance(said, Mapping):
        raise UnusableLineError("it has no answer")
    if "role" not in said and isinstance(said.get("completion"), str):
        return {"role": "assistant", "content": said["completion"]}
    return read_turn({"role": "assistant", **said})


def _decoded(value: Any) -> Any:
    """Return a value that an export wrote as JSON text."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return parse_json(value)
        except ValueError:
            return value
    return value


def _is_aiperf(entry: Mapping[str, Any]) -> bool:
    return isinstance(entry.get("payload"), Mapping) or isinstance(entry.get("payloads"), list)


def _payloads(entry: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    payloads = entry.get("payloads")
    if not isinstance(payloads, list):
        return (entry,)
    session = entry.get("session_id")
    return [{"payload": each, "session_id": session} for each in payloads]


def _read_aiperf(entry: Mapping[str, Any]) -> list[Exchange]:
    payload = entry.get("payload")
    line = of_line(entry)
    if isinstance(payload, Mapping):
        line["model"] = line["model"] or payload.get("model")
    return [Exchange(**line, **read_request(payload), has_one_answer=True)]


def _is_results(entry: Mapping[str, Any]) -> bool:
    return isinstance(entry.get("metrics"), Mapping) and isinstance(entry.get("metadata"), Mapping)


def _read_results(entry: Mapping[str, Any]) -> list[Exchange]:
    raise UnusableLineError("figures of a request, without its text: give aiperf's inputs.json")


REPLY = Format("replies", "whole replies of vLLM or SGLang", _is_reply, _read_reply)
PAIR = Format("pairs", "requests with replies", _is_logged_pair, _read_logged_pair)
SAGEMAKER = Format("sagemaker", "SageMaker Data Capture", _is_sagemaker, _read_sagemaker)
LITELLM = Format("litellm", "litellm", _is_litellm, _read_litellm)
LANGFUSE = Format("langfuse", "Langfuse", _is_langfuse, _read_langfuse)
AIPERF = Format("aiperf", "aiperf payloads", _is_aiperf, _read_aiperf, _payloads)
RESULTS = Format("aiperf-results", "aiperf results", _is_results, _read_results)
