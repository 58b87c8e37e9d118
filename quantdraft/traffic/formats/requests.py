"""Requests and replies of the OpenAI API, which most logs hold in one wrapping or another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quantdraft.traffic.formats.exchange import Exchange, UnusableLineError
from quantdraft.traffic.formats.turns import read_turn, read_turns

# Fields of a request that vLLM hands to the chat template.
TEMPLATE_FIELDS = ("reasoning_effort", "documents", "enable_thinking")
SESSION_KEYS = (*("conversation_id", "session_id", "conversation_hash", "chat_id", "thread_id"),)
ID_KEYS = ("prompt_id", "id", "request_id", "custom_id", "question_id")
NO_PROMPT = (
    "a reply without its prompt: log the request beside it, or ask vLLM for return_token_ids"
)


def id_in(entry: Mapping[str, Any]) -> str | None:
    """Return the id that a line gives itself."""
    found = next((entry[key] for key in ID_KEYS if entry.get(key) is not None), None)
    return None if found is None else str(found)


def session_of(*entries: Any) -> str | None:
    """Return the conversation that a line says it is of, looked for in its metadata too."""
    for entry in entries:
        if not isinstance(entry, Mapping):
            continue
        for place in (entry, entry.get("metadata"), entry.get("extra_body")):
            if isinstance(place, Mapping):
                values = (place.get(key) for key in SESSION_KEYS)
                found = next((v for v in values if v and isinstance(v, (str, int))), None)
                if found is not None:
                    return str(found)
    return None


def of_line(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a line says of itself, as fields of its Exchange."""
    domain, model, reason = (entry.get(key) for key in ("domain", "model", "finish_reason"))
    return {
        "name": id_in(entry),
        "domain": None if domain is None else str(domain),
        "conversation": session_of(entry),
        "model": model if isinstance(model, str) and model else None,
        "finish_reason": reason if isinstance(reason, str) and reason else None,
    }


def read_request(body: Any) -> dict[str, Any]:
    """Return the prompt, the parameters and the template's arguments of a request."""
    if not isinstance(body, Mapping):
        raise UnusableLineError("its request is no object")
    extra = body.get("extra_body")
    merged = {**body, **extra} if isinstance(extra, Mapping) else dict(body)
    if merged.get("continue_final_message") or merged.get("add_generation_prompt") is False:
        raise UnusableLineError("its request continues a turn that was begun")
    found: dict[str, Any] = {
        "tools": _tools(merged),
        "template_kwargs": _template_kwargs(merged),
        "parameters": _parameters(merged),
    }
    prompt = merged.get("prompt")
    if "messages" in merged:
        found["messages"] = read_turns(merged["messages"])
    elif isinstance(prompt, str):
        found["prompt"] = prompt
    elif isinstance(prompt, list) and prompt and all(type(each) is int for each in prompt):
        found["prompt_token_ids"] = prompt
    elif isinstance(prompt, list) and prompt and isinstance(prompt[0], Mapping):
        found["messages"] = read_turns(prompt)
    else:
        raise UnusableLineError(_no_prompt(merged))
    return found


def read_pair(request: Any, reply: Any, line: Mapping[str, Any]) -> list[Exchange]:
    """Return an exchange for each choice of a reply; request None: the reply has token ids.

    line: fields of the Exchange that the line around them says, as from `of_line`
    """
    if not isinstance(reply, Mapping):
        raise UnusableLineError("its reply is no object")
    asked = None if request is None else read_request(request)
    choices = _choices(reply)
    known = {key: each for key, each in line.items() if each is not None}
    return [_exchange(asked, reply, choice, known) for choice in choices]


def _exchange(
    asked: dict[str, Any] | None, reply: Mapping[str, Any], choice: Mapping[str, Any], line: Any
) -> Exchange:
    model = line.get("model") or reply.get("model")
    fields = {
        "name": id_in(reply),
        **line,
        "model": model if isinstance(model, str) else None,
        "finish_reason": reason_of(choice),
        "has_one_answer": True,
    }
    prompt_ids = choice.get("prompt_token_ids") or reply.get("prompt_token_ids")
    response_ids = choice.get("token_ids")
    if prompt_ids and response_ids is not None:
        parameters = {} if asked is None else {"parameters": asked["parameters"]}
        tools = () if asked is None else asked["tools"]
        return Exchange(
            **fields, **parameters, tools=tools,
            prompt_token_ids=prompt_ids, response_token_ids=response_ids,
        )  # fmt: skip
    if asked is None:
        raise UnusableLineError(NO_PROMPT)
    message, text = choice.get("message"), choice.get("text")
    if "messages" in asked and isinstance(message, Mapping):
        turn = read_turn({"role": "assistant", **message})
        return Exchange(**fields, **asked | {"messages": (*asked["messages"], turn)})
    if "prompt" in asked and isinstance(text, str):
        return Exchange(**fields, **asked, response=text)
    raise UnusableLineError("its reply does not fit its request")


def reason_of(choice: Mapping[str, Any]) -> str | None:
    """Return why an answer ended, "stop" or "length"; SGLang writes an object."""
    found = choice.get("finish_reason")
    found = found.get("type") if isinstance(found, Mapping) else found
    return found if isinstance(found, str) and found else None


def _choices(reply: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    choices = reply.get("choices")
    if isinstance(reply.get("error"), (str, Mapping)) and not choices:
        raise UnusableLineError("its request failed")
    if isinstance(reply.get("output"), list) and reply.get("object") == "response":
        raise UnusableLineError("a reply of the Responses API, which is not read yet")
    if not isinstance(choices, list) or not choices:
        raise UnusableLineError("its reply has no choices")
    if not all(isinstance(choice, Mapping) for choice in choices):
        raise UnusableLineError("a choice of its reply is no object")
    if any("delta" in choice for choice in choices):
        raise UnusableLineError("a piece of a streamed reply: log whole replies")
    return choices


def _tools(body: Mapping[str, Any]) -> tuple[Any, ...]:
    tools = body.get("tools")
    if not tools:
        functions = body.get("functions") or []
        if not isinstance(functions, list):
            raise UnusableLineError("'functions' is not a list")
        return tuple({"type": "function", "function": each} for each in functions)
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise UnusableLineError("'tools' is not a list of objects")
    return tuple(tools)


def _template_kwargs(body: Mapping[str, Any]) -> dict[str, Any]:
    given = body.get("chat_template_kwargs") or {}
    if not isinstance(given, Mapping):
        raise UnusableLineError("'chat_template_kwargs' is no object")
    direct = {key: body[key] for key in TEMPLATE_FIELDS if body.get(key) is not None}
    return {**direct, **given}


def _parameters(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request without what is no setting of its sampling."""
    inner = body.get("sampling_params")
    settings = {**body, **inner} if isinstance(inner, Mapping) else body
    left_out = {"messages", "prompt", "tools", "functions", "metadata", "extra_body", "response"}
    return {key: value for key, value in settings.items() if key not in left_out}


def _no_prompt(body: Mapping[str, Any]) -> str:
    if "input" in body:
        return "a request of the Responses or Embeddings API, which is not read"
    return "its request has neither 'messages' nor 'prompt'"
