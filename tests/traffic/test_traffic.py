"""Traffic files: our own, production logs, and the lines that cannot be used."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from quantdraft.errors import OptionError, TrafficError
from quantdraft.traffic.prompts import read_prompt_file
from quantdraft.traffic.traffic import (
    Response,
    Sampling,
    Traffic,
    header_line,
    read_traffic,
    response_line,
)
from tests.traffic.files import write_traffic


class CharTokenizer:
    """One id a character; id 1 opens a text. `lossy` folds capitals, so capitals do not survive."""

    chat_template = "set"

    def __init__(self, lossy: bool = False) -> None:
        self.lossy = lossy

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        text = text.lower() if self.lossy else text
        return {"input_ids": [1] * add_special_tokens + [ord(c) for c in text]}

    def decode(self, ids: list[int], **_: object) -> str:
        return "".join(chr(i) for i in ids)

    def apply_chat_template(self, messages: list[dict[str, str]], **_: object) -> str:
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"


class SpanningTokenizer(CharTokenizer):
    """Joins "ab" into one token, id 7, so a border between a and b is spanned."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return super().__call__(text.replace("ab", "\x07"), add_special_tokens)

    def decode(self, ids: list[int], **_: object) -> str:
        return super().decode(ids).replace("\x07", "ab")


def ids(text: str) -> tuple[int, ...]:
    return tuple(ord(c) for c in text)


def write_lines(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{x if isinstance(x, str) else json.dumps(x)}\n" for x in lines))
    return path


TRAFFIC = Traffic(
    responses=(
        Response("a", (1, 2), (3, 4, 5), (-0.5, 0.0, -12.25), "code"),
        Response("b", (9,), (8, 7)),
    ),
    sampling=Sampling(0.8, 0.95, 40, 7),
    target={"name": "t", "revision": None},
)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "traffic.jsonl"
    write_traffic(path, TRAFFIC)
    found = read_traffic(path)
    assert (found.responses, found.sampling) == (TRAFFIC.responses, TRAFFIC.sampling)
    assert (found.target, found.skipped, found.num_tokens) == (TRAFFIC.target, (), 5)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_texts_beside_ids_are_for_people_only(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    line = response_line(TRAFFIC.responses[0], "a prompt", "its “response”\u2028")
    path.write_text(header_line(None, {}, 1) + line, encoding="utf-8")
    assert read_traffic(path).responses == TRAFFIC.responses[:1]


def test_log_of_token_ids_needs_no_header_and_no_tokenizer(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "log.jsonl",
        {"prompt_token_ids": [1, 2], "response_token_ids": [3, 4], "id": 17, "domain": "chat"},
        "",
        {"prompt_token_ids": [1], "response_token_ids": [5, 6, 7]},
    )
    traffic = read_traffic(path)
    assert traffic.sampling is None
    assert traffic.responses == (
        Response("17", (1, 2), (3, 4), None, "chat"),
        Response("line-3", (1,), (5, 6, 7)),
    )


def test_log_of_text_is_tokenized_with_the_tokenizers_own_opening(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "log.jsonl", {"prompt": "hi", "response": " you"})
    (response,) = read_traffic(path, CharTokenizer()).responses
    assert response.prompt_token_ids == (1, *ids("hi"))
    assert response.response_token_ids == ids(" you")


def test_token_that_would_span_the_border_is_cut_there(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "log.jsonl", {"prompt": "xa", "response": "b ab"})
    (response,) = read_traffic(path, SpanningTokenizer()).responses
    assert response.prompt_token_ids == (1, *ids("xa"))
    assert response.response_token_ids == (*ids("b "), 7)


def test_chat_log_ends_where_the_assistant_begins(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "answer"}]
    path = write_lines(tmp_path / "log.jsonl", {"messages": chat})
    (response,) = read_traffic(path, CharTokenizer()).responses
    assert response.prompt_token_ids == ids("<user>q<assistant>")
    assert response.response_token_ids == ids("answer")


def test_text_that_its_tokens_do_not_spell_is_counted_and_left_out(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "log.jsonl",
        {"prompt": "p", "response": "Capital"},
        {"prompt": "p", "response": "small"},
    )
    traffic = read_traffic(path, CharTokenizer(lossy=True))
    assert [r.prompt_id for r in traffic.responses] == ["line-2"]
    assert traffic.num_round_trip_failures == 1
    assert traffic.skipped[0].startswith("line 1: the tokens do not spell the text")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"prompt_token_ids": [1], "response_token_ids": [2]}, "the response has 1 tokens"),
        ({"prompt_token_ids": [1], "response_token_ids": []}, "the response has 0 tokens"),
        ({"prompt_token_ids": [], "response_token_ids": [2, 3]}, "the prompt has no token"),
        ({"prompt_token_ids": [1], "response_token_ids": [2, 3.0]}, "'response_token_ids' is not"),
        ({"prompt_token_ids": [1], "response_token_ids": [2, True]}, "'response_token_ids' is not"),
        ({"prompt_token_ids": ["1"], "response_token_ids": [2, 3]}, "'prompt_token_ids' is not"),
        ({"prompt_token_ids": [1], "response_token_ids": [-2, 3]}, "'response_token_ids' is not"),
        (
            {"prompt_token_ids": [1], "response_token_ids": [2, 3], "logprobs": [-1.0]},
            "'logprobs' is not",
        ),
        (
            {"prompt_token_ids": [1], "response_token_ids": [2, 3], "logprobs": [-1.0, 0.4]},
            "'logprobs' is not",
        ),
        ({"messages": [{"role": "user", "content": "q"}]}, "the chat does not end"),
    ],
)
def test_line_without_usable_tokens_is_left_out_with_its_reason(
    tmp_path: Path, entry: dict[str, object], reason: str
) -> None:
    good = {"prompt_token_ids": [1], "response_token_ids": [5, 6, 7]}
    traffic = read_traffic(write_lines(tmp_path / "log.jsonl", good, entry))
    assert len(traffic.responses) == 1
    assert len(traffic.skipped) == 1
    assert traffic.skipped[0].startswith(f"line 2: {reason}")


def test_repeated_prompt_ids_are_told_apart(tmp_path: Path) -> None:
    line = {"prompt_token_ids": [1], "response_token_ids": [5, 6]}
    names = ["x", "x", "x#2", "x"]
    path = write_lines(tmp_path / "log.jsonl", *(line | {"id": name} for name in names))
    assert [r.prompt_id for r in read_traffic(path).responses] == ["x", "x#3", "x#2", "x#4"]


GOOD = '{"prompt_token_ids": [1], "response_token_ids": [5, 6]}'
HEADER = '{"quantdraft_traffic": 1, "sampling": null, "num_prompts": 2}'


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ['{"prompt": "x"'],
            "log.jsonl' holds no usable response. The first reason: line 1: broken",
        ),
        ([HEADER, GOOD, "{"], "log.jsonl:line 3: broken JSON"),
        (["3"], "line 1: not a JSON object"),
        (['{"event": "x"}'], "line 1: it is of no known format: it has 'event'"),
        ([GOOD, '{"prompt": "x", "response": "abc"}'], "log.jsonl:line 2: holds text, which needs"),
        (['{"messages": [{"role": "user"}]}'], "line 1: a chat turn has no content"),
        (['{"prompt": "x"}'], "a prompt without an answer. Give it as --prompts"),
        (['{"input_length": 5, "output_length": 6}'], "is a trace of lengths without text"),
        ([""], "log.jsonl' is empty"),
        ([GOOD.replace("5, 6", "5")], "holds no usable response. The first reason: line 1"),
        ([HEADER, GOOD], "is incomplete: its header says 2 prompts, it holds 1"),
        ([HEADER.replace("2", "0")], "holds a header and no response"),
        ([HEADER.replace('_traffic": 1', '_traffic": 9'), GOOD], "is traffic of version 9"),
        ([HEADER.replace("null", '{"heat": 1}'), GOOD, GOOD], "line 1: 'sampling' cannot be used"),
    ],
)
def test_unreadable_file_is_one_line_with_the_place(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    with pytest.raises(TrafficError) as caught:
        read_traffic(write_lines(tmp_path / "log.jsonl", *lines))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{", "broken JSON"),
        ('{"prompt_token_ids": [1, 2, 3], "respo', "broken JSON"),
        ("[]", "not a JSON object"),
        ('{"event": "heartbeat"}', "it is of no known format: it has 'event'"),
        ('{"messages": [{"role": "user"}]}', "a chat turn has no content"),
    ],
)
def test_one_bad_line_costs_itself_alone(tmp_path: Path, bad: str, reason: str) -> None:
    traffic = read_traffic(write_lines(tmp_path / "log.jsonl", GOOD, bad, GOOD))
    assert [r.prompt_id for r in traffic.responses] == ["line-1", "line-3"]
    assert traffic.skipped == (f"line 2: {reason}",)
    assert traffic.reading is not None
    assert traffic.reading.sentence == f"read as token ids: 2 of 3 lines; 1 left out: {reason}"


def test_missing_and_binary_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(TrafficError, match="no such file"):
        read_traffic(tmp_path / "none.jsonl")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TrafficError, match="not UTF-8"):
        read_traffic(tmp_path / "binary")


@pytest.mark.parametrize(
    "values", [{"temperature": -0.1}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_k": -1}]
)
def test_sampling_that_means_nothing_cannot_be_built(values: dict[str, float]) -> None:
    with pytest.raises(OptionError):
        Sampling(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "server"),
    [
        ("INFO 11-28 05:20:01 [logger.py:39] Received request chatcmpl-1: params: x", "vLLM"),
        *(
            (f"{stamp}Finish: obj=GenerateReqInput(rid='a'), out={{'text': 'x'}}", "SGLang")
            for stamp in ("", "[2026-11-28 05:20:01] ", "[2026-11-28 05:20:01 TP0] ")
        ),
        ("[2026-11-28T05:20:01] Prefill batch, #new-seq: 1, #new-token: 7", "SGLang"),
    ],
)
def test_a_console_log_is_refused_by_name(tmp_path: Path, line: str, server: str) -> None:
    path = tmp_path / "server.log"
    path.write_text(f"{line}\n" * 3)
    for read in (read_traffic, read_prompt_file):
        with pytest.raises(TrafficError, match=f"console log of {server}.*return_token_ids"):
            read(path)
