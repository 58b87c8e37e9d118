"""Logs as they come: one odd line among good ones, through the command line's own reading."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from quantdraft.measure.filters import without_repeats
from quantdraft.traffic.prompts import encode_prompt, read_prompt_file
from quantdraft.traffic.traffic import Traffic, read_traffic
from tests.traffic.templated import TEMPLATE, Templated

Entry = dict[str, Any]
SYSTEM = {"role": "system", "content": "You answer in one sentence."}
NO_SYSTEM = """{%- for m in messages %}{%- if m.role == 'system' %}
{{- raise_exception('System role not supported') }}{%- endif %}[{{ m.role }}]{{ m.content }}
{% endfor %}{%- if add_generation_prompt %}[assistant]{% endif %}"""


def user(text: str) -> Entry:
    return {"role": "user", "content": text}


def said(text: str | None, **more: Any) -> Entry:
    return {"role": "assistant", "content": text, **more}


def read(path: Path, *lines: Entry | str, template: str = TEMPLATE) -> Traffic:
    texts = (each if isinstance(each, str) else json.dumps(each) for each in lines)
    path.write_text("".join(f"{each}\n" for each in texts))
    return read_traffic(path, Templated(template))


def answers(traffic: Traffic) -> list[str]:
    return [Templated().decode(each.response_token_ids) for each in traffic.responses]


GOOD = {"messages": [SYSTEM, user("Name it."), said("Town 1.")]}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 5}'}}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "21"}


@pytest.mark.parametrize("content", ["", None])
def test_a_call_without_content_is_an_answer_and_stands_in_the_later_prompt(
    tmp_path: Path, content: str | None
) -> None:
    calling = said(content, tool_calls=[CALL])
    chat = {"messages": [user("How warm?"), calling, RESULT, said("It is 21.")]}
    traffic = read(tmp_path / "log.jsonl", GOOD, chat, GOOD)
    assert answers(traffic) == ["Town 1.", 'CALL f({"x": 5})', "It is 21.", "Town 1."]
    later = Templated().decode(traffic.responses[2].prompt_token_ids)
    assert 'CALL f({"x": 5})' in later
    assert traffic.skipped == ()
    assert traffic.reading is not None
    assert traffic.reading.sentence == "read as OpenAI chat: 3 of 3 lines; 1 with tools"


def test_an_image_costs_its_line_and_parts_of_text_cost_none(tmp_path: Path) -> None:
    text = {"type": "text", "text": "What is it?"}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    pictured, plain = (
        {"messages": [{"role": "user", "content": each}, said("A square.")]}
        for each in ([text, image], [text])
    )
    traffic = read(tmp_path / "log.jsonl", GOOD, pictured, plain)
    assert answers(traffic) == ["Town 1.", "A square."]
    assert traffic.skipped == ("line 2: it holds an image",)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ('{"prompt_token_ids": [1, 2, 3], "respo', "broken JSON"),
        ('{"event": "heartbeat"}', "it is of no known format: it has 'event'"),
    ],
)
def test_a_cut_or_foreign_line_costs_itself_alone(tmp_path: Path, bad: str, reason: str) -> None:
    good = {"prompt_token_ids": [5, 6], "response_token_ids": [7, 8, 9]}
    traffic = read(tmp_path / "log.jsonl", good, bad, {**good, "prompt_token_ids": [6]})
    assert [each.prompt_id for each in traffic.responses] == ["line-1", "line-3"]
    assert traffic.skipped == (f"line 2: {reason}",)


def test_a_refused_system_turn_costs_its_line_and_another_role_none(tmp_path: Path) -> None:
    developer = {"role": "developer", "content": "Be short."}
    other = {"messages": [developer, user("Hello?"), said("Hello there.")]}
    traffic = read(tmp_path / "log.jsonl", GOOD, other, template=NO_SYSTEM)
    assert answers(traffic) == ["Hello there."]
    reason = "the tokenizer's chat template refuses a chat: System role not supported"
    assert traffic.skipped == (f"line 1: {reason}",)


def test_a_session_logged_request_by_request_is_one_conversation_and_repeats_count_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    turns = [[user(f"What is {n}?"), said(f"It is {n}.")] for n in range(3)]
    lines = [{"session_id": "s", "messages": [*chain(*turns[: n + 1])]} for n in range(3)]
    traffic = read(tmp_path / "log.jsonl", *lines)
    assert len(traffic.responses) == 6
    with caplog.at_level("INFO"):
        once = without_repeats(traffic)
    assert "left out: 3 responses that repeat another to the token" in caplog.text
    assert answers(once) == ["It is 0.", "It is 1.", "It is 2."]
    assert {each.conversation for each in once.responses} == {"s"}
    assert once.reading is not None
    assert once.reading.sentence.endswith("3 left out: responses that repeat another to the token")


def test_two_models_of_a_log_are_told_and_are_slices(tmp_path: Path) -> None:
    traffic = read(tmp_path / "log.jsonl", *({**GOOD, "model": name} for name in ("a", "b", "a")))
    assert [dict(each.traits)["model"] for each in traffic.responses] == ["a", "b", "a"]
    assert traffic.reading is not None
    assert "2 models: a (2), b (1)" in traffic.reading.sentence


def test_a_prompt_is_written_with_its_tools_and_its_own_template_arguments(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    arguments = {"enable_thinking": False}
    line = {"messages": [user("How warm?")], "tools": tools, "chat_template_kwargs": arguments}
    path.write_text(json.dumps(line) + "\n")
    (prompt,) = read_prompt_file(path).prompts
    written = Templated().decode(encode_prompt(prompt, Templated()))
    assert '"name": "f"' in written
    assert written.endswith("<think>\n\n</think>\n\n")
