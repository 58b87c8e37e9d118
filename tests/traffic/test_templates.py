"""Nothing that a chat template prints is dropped: both ways of writing a chat agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quantdraft.errors import OptionError
from quantdraft.traffic.prompts import encode_prompt, read_prompt_file
from quantdraft.traffic.responses import ReadSettings
from quantdraft.traffic.traffic import Traffic, read_traffic
from tests.traffic.templated import PLAIN, TEMPLATE, Templated

ARGUMENTS = '{"city": "Rome"}'
CALL = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
USER = {"role": "user", "content": "How warm is it?"}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
TOOL = {"role": "tool", "tool_call_id": "c", "content": "21"}
ANSWER = {"role": "assistant", "content": "It is 21 degrees."}
THOUGHT = {"role": "assistant", "content": "It is 4.", "reasoning": "Two and two are four."}


def read(path: Path, *entries: dict[str, Any], template: str = TEMPLATE, **how: Any) -> Traffic:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return read_traffic(path, Templated(template), ReadSettings(**how))


def texts(traffic: Traffic) -> list[tuple[str, str]]:
    spell = Templated().decode
    return [(spell(r.prompt_token_ids), spell(r.response_token_ids)) for r in traffic.responses]


CHATS: dict[str, dict[str, Any]] = {
    "tool calls": {"messages": [USER, CALLING, TOOL, ANSWER], "tools": TOOLS},
    "a call last": {"messages": [USER, CALLING], "tools": TOOLS},
    "old function calls": {
        "messages": [USER, {"role": "assistant", "function_call": CALL["function"]}, ANSWER],
        "functions": [TOOLS[0]["function"]],
    },
    "reasoning": {"messages": [USER, THOUGHT]},
    "parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": each} for each in "ab"]},
            {"role": "assistant", "content": [{"type": "text", "text": "one"}]},
        ]
    },
    "arguments of the template": {
        "messages": [USER, ANSWER],
        "chat_template_kwargs": {"enable_thinking": False},
    },
}


@pytest.mark.parametrize("name", CHATS)
def test_prompt_and_answer_are_what_the_template_prints_of_the_whole_chat(
    tmp_path: Path, name: str
) -> None:
    """The other way: the chat as a whole, with everything that the log has, written at once."""
    entry = CHATS[name]
    found = texts(read(tmp_path / "log.jsonl", entry, turns="last"))
    messages = [dict(turn) for turn in entry["messages"]]
    for turn in messages:
        parts = turn.get("content")
        turn["content"] = "\n".join(p["text"] for p in parts) if isinstance(parts, list) else parts
        turn["content"] = turn["content"] or ""
        turn["reasoning_content"] = turn.get("reasoning")
        if "function_call" in turn:
            turn["tool_calls"] = [{"function": turn["function_call"]}]
    tools = entry.get("tools") or [
        {"type": "function", "function": f} for f in entry.get("functions", [])
    ]
    settings = {"tools": tools, **entry.get("chat_template_kwargs", {})}
    whole = Templated().apply_chat_template(messages, tokenize=False, **settings)
    ((prompt, answer),) = found
    opened = "" if name != "arguments of the template" else "<think>\n\n</think>\n\n"
    assert prompt.endswith(f"<|im_start|>assistant\n{opened}")
    said = prompt.removesuffix(opened) + answer
    assert "".join(f"{said}<|im_end|>".split()) == "".join(whole.split())


def test_tool_calls_and_reasoning_are_part_of_the_response(tmp_path: Path) -> None:
    entries = [{"messages": [USER, CALLING], "tools": TOOLS}, {"messages": [USER, THOUGHT]}]
    found = texts(read(tmp_path / "log.jsonl", *entries))
    assert found[0][1] == f"CALL weather({ARGUMENTS})"
    assert "TOOLS [" in found[0][0]
    assert found[1][1] == "<think>Two and two are four.</think>It is 4."


def test_what_the_template_does_not_print_is_left_out_by_name(tmp_path: Path) -> None:
    entries = [
        {"messages": [USER, ANSWER]},
        {"messages": [USER, THOUGHT]},
        {"messages": [USER, CALLING]},
    ]
    traffic = read(tmp_path / "log.jsonl", *entries, template=PLAIN)
    assert texts(traffic) == [("[user]How warm is it?\n[assistant]", "It is 21 degrees.")]
    missing = "the chat template does not print its {}: what the target wrote is not known"
    assert traffic.skipped == tuple(
        f"line {line}: {missing.format(what)}"
        for line, what in ((2, "reasoning"), (3, "tool calls"))
    )


def test_a_thought_that_the_template_opens_and_the_log_lacks_is_left_out(tmp_path: Path) -> None:
    template = PLAIN.replace("[assistant]", "[assistant]<think>\n")
    thinking = {"role": "assistant", "content": "So.</think>It is 4."}
    traffic = read(
        tmp_path / "log.jsonl",
        {"messages": [USER, ANSWER]},
        {"messages": [USER, thinking]},
        template=template,
    )
    assert len(traffic.responses) == 1
    assert traffic.skipped[0].startswith("line 1: the chat template opens a thought, and the log")


def test_a_chat_that_the_template_refuses_costs_its_line_alone(tmp_path: Path) -> None:
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('No system') }}{% endif %}"
    system = {"messages": [{"role": "system", "content": "x"}, USER, ANSWER]}
    traffic = read(
        tmp_path / "log.jsonl", system, {"messages": [USER, ANSWER]}, template=refusing + PLAIN
    )
    assert [r.prompt_id for r in traffic.responses] == ["line-2"]
    assert traffic.skipped == ("line 1: the tokenizer's chat template refuses a chat: No system",)


def test_template_arguments_are_the_lines_own_before_the_users(tmp_path: Path) -> None:
    off, on = {"enable_thinking": False}, {"enable_thinking": True}
    entries = [
        {"messages": [USER, ANSWER]},
        {"messages": [USER, ANSWER], "chat_template_kwargs": on},
    ]
    traffic = read(tmp_path / "log.jsonl", *entries, template_kwargs=off)
    assert [prompt.endswith("</think>\n\n") for prompt, _ in texts(traffic)] == [True, False]
    assert traffic.reading is not None
    assert traffic.reading.warnings == ()
    assert traffic.read_with == {"chat_template_kwargs": off}
    untold = read(tmp_path / "log.jsonl", *entries)
    assert untold.reading is not None
    assert "has enable_thinking, and 1 lines do not say" in untold.reading.warnings[0]
    found = read_prompt_file(tmp_path / "log.jsonl", ReadSettings(template_kwargs=off)).prompts
    assert Templated().decode(encode_prompt(found[0], Templated())).endswith("</think>\n\n")
    with pytest.raises(OptionError, match="'tokenize' cannot be set"):
        read(tmp_path / "log.jsonl", *entries, template_kwargs={"tokenize": True})


def test_media_are_left_out_and_counted(tmp_path: Path) -> None:
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    entries = [{"messages": [picture, ANSWER]}] * 2 + [{"messages": [USER, ANSWER]}]
    reading = read(tmp_path / "log.jsonl", *entries).reading
    assert reading is not None
    (left_out,) = reading.left_out
    assert (left_out.count, left_out.places) == (2, ("line 1", "line 2"))
    assert reading.sentence == "read as OpenAI chat: 1 of 3 lines; 2 left out: it holds an image"


def test_every_answer_of_a_conversation_is_a_response(tmp_path: Path) -> None:
    chat = [
        USER,
        ANSWER,
        {"role": "user", "content": "And now?"},
        {**ANSWER, "content": "It is 22."},
    ]
    entry = {"messages": chat, "session_id": "s"}
    traffic = read(tmp_path / "log.jsonl", entry)
    assert [r.prompt_id for r in traffic.responses] == ["line-1/turn-1", "line-1"]
    assert {r.conversation for r in traffic.responses} == {"s"}
    assert texts(traffic)[1][1] == "It is 22."
    assert traffic.read_with == {"turns": "all"}
    last = read(tmp_path / "log.jsonl", entry, turns="last")
    assert [r.prompt_id for r in last.responses] == ["line-1"]
    asked = read_prompt_file(tmp_path / "log.jsonl", ReadSettings(turns="all")).prompts
    assert [len(prompt.messages or ()) for prompt in asked] == [1, 3]


def test_penalties_masks_and_sampling_of_the_log_are_known(tmp_path: Path) -> None:
    chat = {"messages": [USER, ANSWER], "temperature": 0.7, "top_p": 0.9}
    changed = [
        {"presence_penalty": 0.5},
        {"logit_bias": {"1": 5}},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "text"}, "repetition_penalty": 1.0, "logit_bias": {}},
    ]
    traffic = read(tmp_path / "log.jsonl", *(chat | each for each in changed))
    assert [dict(r.traits).get("decoding") for r in traffic.responses] == [
        *("penalties", "logit bias", "grammar", None),
    ]
    assert traffic.sampling is not None
    assert (traffic.sampling.temperature, traffic.sampling.top_p) == (0.7, 0.9)
    assert traffic.reading is not None
    assert [w.split(",")[0] for w in traffic.reading.warnings if "decoded" in w] == [
        f"1 lines were decoded with {what}" for what in ("penalties", "logit bias", "grammar")
    ]
    mixed = read(tmp_path / "log.jsonl", chat, {**chat, "temperature": 0.2})
    assert mixed.sampling is None
    assert mixed.reading is not None
    assert mixed.reading.warnings[0].startswith("lines differ in their temperature")
