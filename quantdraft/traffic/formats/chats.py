"""Lines that hold a prompt or a conversation themselves: chats, texts, token ids, questions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from quantdraft.common.documents import parse_json
from quantdraft.traffic.formats.exchange import Exchange, Format, UnusableLineError
from quantdraft.traffic.formats.requests import (
    of_line,
    read_pair,
    read_request,
    session_of,
)
from quantdraft.traffic.formats.turns import read_turns

RESPONSE_IDS = ("response_token_ids", "output_token_ids", "completion_token_ids")
ANSWERS = ("response", "completion", "output", "answer")
# As guidellm looks for them, and aiperf's text_input.
QUESTIONS = ("instruction", "question", "input", "text_input", "context", "content", "turn", "text")
SYSTEMS = ("system_prompt", "system", "prefix")
SHAREGPT_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(
        ("gpt", "assistant", "chatgpt", "model", "bing", "bard", "claude"), "assistant"
    ),
    **dict.fromkeys(("observation", "tool", "function_response", "ipython"), "tool"),
    **dict.fromkeys(("system", "developer"), "system"),
}


def _has_ids(entry: Mapping[str, Any]) -> bool:
    return "prompt_token_ids" in entry and any(key in entry for key in RESPONSE_IDS)


def _read_ids(entry: Mapping[str, Any]) -> list[Exchange]:
    response = next(entry[key] for key in RESPONSE_IDS if key in entry)
    return [
        Exchange(
            **of_line(entry),
            prompt_token_ids=entry["prompt_token_ids"],
            response_token_ids=response,
            logprobs=entry.get("logprobs"),
            parameters=entry,
        )
    ]


def _is_chat(entry: Mapping[str, Any]) -> bool:
    return "messages" in entry or "chat_messages" in entry


def _read_chat(entry: Mapping[str, Any]) -> list[Exchange]:
    messages = entry.get("messages", entry.get("chat_messages"))
    answer = entry.get("response")
    body = {**entry, "messages": messages}
    if isinstance(answer, Mapping) and "choices" in answer:
        return read_pair(body, answer, of_line(entry))
    asked = read_request(body)
    if isinstance(answer, str) and asked["messages"][-1]["role"] != "assistant":
        asked["messages"] = (*asked["messages"], {"role": "assistant", "content": answer})
        return [Exchange(**of_line(entry), **asked, has_one_answer=True)]
    return [Exchange(**of_line(entry), **asked, logprobs=_logged(entry))]


def _logged(entry: Mapping[str, Any]) -> Any:
    """Return log-probabilities of the answer; a request's own field of that name is a switch."""
    found = entry.get("logprobs")
    return found if isinstance(found, list) else None


def _is_text(entry: Mapping[str, Any]) -> bool:
    return isinstance(entry.get("prompt"), (str, list)) and "choices" not in entry


def _read_text(entry: Mapping[str, Any]) -> list[Exchange]:
    asked = read_request(entry)
    answer = next((entry[key] for key in ANSWERS if key in entry), None)
    if _system_of(entry) and isinstance(entry["prompt"], str):
        return [_asked_by_columns(entry, entry["prompt"])]
    if "messages" in asked:  # a prompt and a completion of chat turns
        if isinstance(answer, list):
            asked["messages"] = (*asked["messages"], *read_turns(answer))
        return [Exchange(**of_line(entry), **asked, has_one_answer=True)]
    if asked.get("prompt") == "":
        raise UnusableLineError("its prompt is empty")
    if answer is not None and not isinstance(answer, str):
        if isinstance(answer, Mapping) and "choices" in answer:
            return read_pair(entry, answer, of_line(entry))
        raise UnusableLineError("its answer is no text")
    fields = of_line(entry) | asked | {"response": answer, "logprobs": _logged(entry)}
    return [Exchange(**fields, has_one_answer=True)]


def _is_question(entry: Mapping[str, Any]) -> bool:
    is_turn = "role" in entry or "from" in entry  # of a conversation that lies over many lines
    return not is_turn and any(isinstance(entry.get(key), str) for key in QUESTIONS)


def _read_question(entry: Mapping[str, Any]) -> list[Exchange]:
    """Read columns: an instruction with its input, a question, an input; and the answer to it."""
    asked = (entry[key] for key in QUESTIONS if isinstance(entry.get(key), str))
    question = next((text for text in asked if text), "")
    if not question:
        raise UnusableLineError("its question is empty")
    more = entry.get("input")
    if "instruction" in entry and isinstance(more, str) and more:
        question = f"{question}\n\n{more}"
    return [_asked_by_columns(entry, question)]


def _system_of(entry: Mapping[str, Any]) -> str | None:
    found = next((entry[key] for key in SYSTEMS if entry.get(key)), None)
    return found if isinstance(found, str) else None


def _asked_by_columns(entry: Mapping[str, Any], question: str) -> Exchange:
    """Return a question with the system's turn before it and the answer after it, where given."""
    answer = next((entry[k] for k in ANSWERS if isinstance(entry.get(k), str)), None)
    system = _system_of(entry)
    turns = [{"role": "user", "content": question}]
    if system is not None:
        turns.insert(0, {"role": "system", "content": system})
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    return Exchange(
        **of_line(entry), messages=read_turns(turns), has_one_answer=True, is_plain=system is None
    )


def _is_bench(entry: Mapping[str, Any]) -> bool:
    turns = entry.get("turns")
    return (
        isinstance(turns, list) and bool(turns) and all(isinstance(t, (str, dict)) for t in turns)
    )


def _read_bench(entry: Mapping[str, Any]) -> list[Exchange]:
    """Read a question of MT-bench or Spec-Bench: its later turns need answers to the first."""
    first = entry["turns"][0]
    texts = [first.get("text", first.get("content")) if isinstance(first, Mapping) else first]
    if not isinstance(texts[0], str) or not texts[0]:
        raise UnusableLineError("its first turn is no text")
    line = of_line(entry)
    if line["domain"] is None and entry.get("category"):
        line["domain"] = str(entry["category"])
    messages = read_turns([{"role": "user", "content": texts[0]}])
    more = len(entry["turns"]) - 1
    return [Exchange(**line, messages=messages, is_plain=True, num_more_turns=more)]


def _is_sharegpt(entry: Mapping[str, Any]) -> bool:
    return "conversations" in entry


def _read_sharegpt(entry: Mapping[str, Any]) -> list[Exchange]:
    turns = entry["conversations"]
    if not isinstance(turns, list) or not turns:
        raise UnusableLineError("'conversations' is not a list of turns")
    raw = [_sharegpt_turn(turn) for turn in turns]
    if isinstance(entry.get("system"), str) and entry["system"]:
        raw.insert(0, {"role": "system", "content": entry["system"]})
    messages = list(read_turns(raw))
    first = next((at for at, turn in enumerate(messages) if turn["role"] == "user"), None)
    if first is None:
        raise UnusableLineError("a conversation in which no human speaks")
    # Cut conversations of ShareGPT may open with an answer to what is not there.
    kept = [turn for turn in messages[:first] if turn["role"] != "assistant"] + messages[first:]
    tools = _sharegpt_tools(entry.get("tools"))
    asked = read_request({**entry, "messages": kept, "tools": tools})
    line = of_line(entry)
    return [Exchange(**line, **asked, asks_first_answer=True)]


def _sharegpt_turn(turn: Any) -> dict[str, Any]:
    if isinstance(turn, Mapping) and "role" in turn:
        return dict(turn)
    said = turn.get("from") if isinstance(turn, Mapping) else None
    if not isinstance(said, str) or not isinstance(turn.get("value"), str):
        raise UnusableLineError("a turn needs 'from' and 'value'")
    if said == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": _sharegpt_calls(turn["value"])}
    if said not in SHAREGPT_ROLES:
        raise UnusableLineError(f"a turn is from {said[:40]!r}, which is no known speaker")
    return {"role": SHAREGPT_ROLES[said], "content": turn["value"]}


def _sharegpt_calls(text: str) -> list[dict[str, Any]]:
    found = _parsed(text, "its function call is not JSON")
    return [{"function": call} for call in (found if isinstance(found, list) else [found])]


def _sharegpt_tools(tools: Any) -> list[Any]:
    found = _parsed(tools, "its tools are not JSON") if isinstance(tools, str) and tools else tools
    if not found:
        return []
    if not isinstance(found, list) or not all(isinstance(tool, Mapping) for tool in found):
        raise UnusableLineError("'tools' is not a list of objects")
    # LLaMA-Factory writes the functions alone; templates read them in their wrapping.
    return [
        tool if "function" in tool else {"type": "function", "function": tool} for tool in found
    ]


def _parsed(text: str, complaint: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        raise UnusableLineError(complaint) from None


def _is_lmsys(entry: Mapping[str, Any]) -> bool:
    return isinstance(entry.get("conversation"), list)


def _read_lmsys(entry: Mapping[str, Any]) -> list[Exchange]:
    """Read LMSYS-Chat-1M or WildChat; turns have fields about the speaker, which no engine sees."""
    if entry.get("redacted") is True:
        raise UnusableLineError("its text was redacted: the target read another")
    turns = [
        _sharegpt_turn(turn)
        if "from" in turn
        else {"role": turn.get("role"), "content": turn.get("content")}
        for turn in entry["conversation"]
        if isinstance(turn, Mapping)
    ]
    line = of_line(entry)
    line["name"] = line["name"] or session_of(entry)
    return [Exchange(**line, messages=read_turns(turns), asks_first_answer=True)]


def _is_length_only(entry: Mapping[str, Any]) -> bool:
    return any(all(key in entry for key in pair) for pair in LENGTHS)


TIMES = ("timestamp", "Timestamp", "TIMESTAMP")
MAX_DATE = 40  # characters
LENGTHS = (
    ("input_length", "output_length"),
    ("Request tokens", "Response tokens"),
    ("ContextTokens", "GeneratedTokens"),
    ("prompt_tokens_count", "output_tokens_count"),
    ("input_tokens_count", "output_tokens_count"),
    ("prompt_tokens_count", "completion_tokens_count"),
    ("input_tokens_count", "completion_tokens_count"),
)


def _read_lengths(entry: Mapping[str, Any]) -> list[Exchange]:
    pair = next(pair for pair in LENGTHS if all(key in entry for key in pair))
    try:
        lengths = (int(entry[pair[0]]), int(entry[pair[1]]))
    except (TypeError, ValueError, OverflowError):
        raise UnusableLineError("its lengths are no numbers") from None
    return [Exchange(**of_line(entry), lengths=lengths, arrival_s=_arrival_s(entry))]


def _arrival_s(entry: Mapping[str, Any]) -> float | None:
    """Return when a request of a trace came; None where it does not say, or no time.

    Mooncake counts milliseconds, BurstGPT and Bailian (which has chat_id) seconds; Azure writes
    dates.
    """
    told = next((entry[key] for key in TIMES if entry.get(key) not in (None, "")), None)
    try:
        found = float(told) if told is not None else math.nan
        is_ms = "timestamp" in entry and "chat_id" not in entry
        found = found / 1e3 if is_ms else found
    except (TypeError, ValueError, OverflowError):
        try:
            date = datetime.fromisoformat(str(told)[:MAX_DATE])
        except ValueError:
            return None
        found = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    return found if math.isfinite(found) else None


IDS = Format("ids", "token ids", _has_ids, _read_ids)
CHAT = Format("chat", "OpenAI chat", _is_chat, _read_chat)
TEXT = Format("text", "prompts with completions", _is_text, _read_text)
QUESTION = Format("columns", "columns of questions", _is_question, _read_question)
BENCH = Format("bench", "MT-bench or Spec-Bench", _is_bench, _read_bench)
SHAREGPT = Format("sharegpt", "ShareGPT", _is_sharegpt, _read_sharegpt)
LMSYS = Format("lmsys", "LMSYS or WildChat", _is_lmsys, _read_lmsys)
LENGTHS_ONLY = Format("lengths", "a trace of lengths", _is_length_only, _read_lengths)
