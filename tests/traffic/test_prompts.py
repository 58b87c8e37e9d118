"""Prompt files of every accepted kind, and the errors of the others."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from quantdraft.errors import TrafficError
from quantdraft.traffic.prompts import Prompt, encode_prompt, read_prompt_file, read_prompts


class WordTokenizer:
    """One id a character; id 1 opens a text unless told otherwise."""

    def __init__(self, chat_template: str | None = None) -> None:
        self.chat_template = chat_template

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [1] * add_special_tokens + [ord(c) for c in text]}

    def apply_chat_template(self, messages: list[dict[str, str]], **settings: object) -> str:
        assert settings == {"tokenize": False, "add_generation_prompt": True}
        if messages[0]["role"] == "system":
            raise ValueError("no system role")
        return "".join(f"{m['role'][0]}:{m['content']};" for m in messages) + "a:"


def written(path: Path, *entries: object) -> Path:
    path.write_text("\n".join(json.dumps(entry) for entry in entries), encoding="utf-8")
    return path


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def said(who: str, value: str) -> dict[str, str]:
    return {"from": who, "value": value}


def test_texts_and_chats_are_read_with_id_and_domain(tmp_path: Path) -> None:
    path = written(
        tmp_path / "p.jsonl",
        {"prompt": "one", "id": 7, "domain": "code"},
        {"messages": [turn("user", "two")], "domain": "chat"},
    )
    assert list(read_prompts(path)) == [
        Prompt("7", text="one", domain="code"),
        Prompt("line-2", messages=(turn("user", "two"),), domain="chat"),
    ]


def test_logged_chat_is_asked_without_its_answer(tmp_path: Path) -> None:
    chat = [turn("user", "a"), turn("assistant", "b"), turn("user", "c"), turn("assistant", "d")]
    (prompt,) = read_prompts(written(tmp_path / "p.jsonl", {"messages": chat}))
    assert prompt.messages == tuple(chat[:3])


@pytest.mark.parametrize("as_array", [True, False])
def test_sharegpt_is_asked_up_to_its_first_answer(tmp_path: Path, as_array: bool) -> None:
    entries = [
        {"id": "s", "conversations": [said("human", "q"), said("gpt", "a"), said("human", "r")]},
        {
            "id": "t",
            "conversations": [
                said("system", "be"),
                said("gpt", "cut"),
                said("human", "q"),
                said("user", "more"),
                said("gpt", "a"),
            ],
        },
    ]
    path = written(tmp_path / "p.json", *([entries] if as_array else entries))
    assert [(p.prompt_id, p.messages) for p in read_prompts(path)] == [
        ("s", (turn("user", "q"),)),
        ("t", (turn("system", "be"), turn("user", "q"), turn("user", "more"))),
    ]


def test_conversation_without_a_human_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    speechless = {"conversations": [said("gpt", "a")]}
    asked = {"conversations": [said("human", "q")]}
    with caplog.at_level(logging.WARNING):
        prompts = read_prompts(written(tmp_path / "p.json", [speechless, asked]))
    assert [p.prompt_id for p in prompts] == ["item-2"]
    assert "1 of 2 lines; 1 left out: a conversation in which no human speaks" in caplog.text
    with pytest.raises(TrafficError, match="holds no prompt"):
        read_prompts(written(tmp_path / "q.json", [speechless]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("[]", "holds no prompt"),
        ('[{"prompt": "x"}', "is not a complete JSON array"),
        ("[3]", "item 1: not an object but 3"),
        ('{"prompt": ', "line 1: broken JSON"),
        ('"y"', "line 1: not a JSON object"),
        ('{"event": "y"}', "line 1: it is of no known format: it has 'event'"),
        ('{"promt": "y"}', "it has 'promt'. Did you mean 'prompt'?"),
        ('{"prompt": ""}', "line 1: its prompt is empty"),
        ('{"messages": []}', "line 1: 'messages' is not a list of chat turns"),
        ('{"messages": [{"role": "user", "content": [1]}]}', "line 1: a chat turn's content is no"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "line 1: 'messages' holds no"),
        ('{"conversations": {"from": "human"}}', "line 1: 'conversations' is not a list"),
        ('{"conversations": [{"from": "martian", "value": "x"}]}', "line 1: a turn is from 'mart"),
        ('{"conversations": [{"from": "human"}]}', "line 1: a turn needs 'from' and 'value'"),
    ],
)
def test_unreadable_prompts_are_one_line_with_the_place(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(TrafficError) as caught:
        read_prompts(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("as_array", [True, False])
@pytest.mark.parametrize("bad", ['{"prompt": ', '"y"', "3", '{"event": "y"}', '{"prompt": ""}'])
def test_one_bad_line_costs_itself_alone(tmp_path: Path, bad: str, as_array: bool) -> None:
    if as_array and bad.endswith(" "):
        return  # an array that is cut is no array
    good, path = '{"prompt": "x"}', tmp_path / "p.jsonl"
    path.write_text(f"[{good},{bad},{good}]" if as_array else f"{good}\n{bad}\n{good}\n")
    found = read_prompt_file(path)
    place = "item" if as_array else "line"
    assert [prompt.prompt_id for prompt in found.prompts] == [f"{place}-1", f"{place}-3"]
    assert found.skipped[0].startswith(f"{place} 2: ")
    assert (found.reading.num_used, found.reading.num_lines) == (2, 3)


def test_text_opens_as_the_tokenizer_opens_it_and_a_chat_as_its_template_does() -> None:
    prompts = [Prompt("a", text="hi"), Prompt("b", messages=(turn("user", "q"),))]
    text_ids, chat_ids = (encode_prompt(each, WordTokenizer("set")) for each in prompts)
    assert text_ids == (1, ord("h"), ord("i"))
    assert chat_ids == tuple(ord(c) for c in "u:q;a:")


def test_chat_without_a_template_says_what_to_do() -> None:
    chat = [Prompt("b", messages=(turn("user", "q"),))]
    with pytest.raises(TrafficError, match=r"has no chat template\. Give prompts as 'prompt' text"):
        encode_prompt(chat[0], WordTokenizer())


def test_template_that_refuses_a_chat_is_quoted() -> None:
    chat = [Prompt("b", messages=(turn("system", "be"),))]
    with pytest.raises(TrafficError, match="refuses a chat: no system role"):
        encode_prompt(chat[0], WordTokenizer("set"))


def test_prompt_without_a_token_is_an_error() -> None:
    class NoTokens(WordTokenizer):
        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": []}

    with pytest.raises(TrafficError, match="prompt 'a' has no token"):
        encode_prompt(Prompt("a", text=" "), NoTokens())
