"""Every format, as traffic and as prompts: what is read of a sample, and what is left out."""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from quantdraft.errors import OptionError, TrafficError
from quantdraft.traffic.formats.known import NAMES, Reader
from quantdraft.traffic.prompts import encode_prompt, read_prompt_file
from quantdraft.traffic.responses import ReadSettings
from quantdraft.traffic.traffic import Traffic, read_traffic
from tests.traffic.templated import Templated

Entry = dict[str, Any]
USER = {"role": "user", "content": "What is it?"}
SAID = {"role": "assistant", "content": "It is a fact."}
ASKED, ANSWER = "<|im_start|>userWhat is it?<|im_end|>\n<|im_start|>assistant\n", SAID["content"]
CHOICE = {"index": 0, "message": {**SAID, "refusal": None}, "finish_reason": "stop"}
REPLY = {"id": "cmpl", "object": "chat.completion", "model": "m", "choices": [CHOICE]}
REQUEST = {"model": "m", "messages": [USER], "temperature": 0.5, "max_tokens": 9}
WITH_IDS = {**REPLY, "prompt_token_ids": [5, 6], "choices": [{**CHOICE, "token_ids": [7, 8, 9]}]}


def said(who: str, value: str) -> Entry:
    return {"from": who, "value": value}


def captured(value: Any, encoding: str) -> Entry:
    text = json.dumps(value)
    data = base64.b64encode(text.encode()).decode() if encoding == "BASE64" else text
    return {"data": data, "encoding": encoding, "mode": "INPUT"}


def sagemaker(encoding: str) -> Entry:
    both = {"endpointInput": captured(REQUEST, encoding)}
    both["endpointOutput"] = captured(REPLY, encoding)
    return {"captureData": both, "eventMetadata": {"eventId": "e1"}, "eventVersion": "0"}


def parts(role: str, text: str, **more: str) -> Entry:
    return {"role": role, "parts": [{"type": "text", "content": text}], **more}


SPAN_ATTRIBUTES = {
    "gen_ai.operation.name": "chat",
    "gen_ai.request.model": "m",
    "gen_ai.request.temperature": 0.5,
    "gen_ai.conversation.id": "c",
    "gen_ai.input.messages": json.dumps([parts("user", USER["content"])]),
    "gen_ai.output.messages": json.dumps([parts("assistant", ANSWER, finish_reason="stop")]),
}
OTLP_ATTRIBUTES = [
    {"key": key, "value": {"doubleValue" if isinstance(value, float) else "stringValue": value}}
    for key, value in SPAN_ATTRIBUTES.items()
]
OTHER_SPAN = {
    "spanId": "9",
    "attributes": [{"key": "http.method", "value": {"stringValue": "GET"}}],
}
OTLP_SPANS = [{"spanId": "1", "traceId": "t", "attributes": OTLP_ATTRIBUTES}, OTHER_SPAN]
LITELLM = {"id": "l", "trace_id": "t", "call_type": "acompletion", "status": "success"}
LANGFUSE = {"id": "o", "traceId": "t", "type": "GENERATION", "model": "m", "modelParameters": {}}

OBSERVATION = {**LANGFUSE, "type": "SPAN", "input": 1, "output": 2}


class Sample(NamedTuple):
    """Lines of one format. num_*: of lines that are used, of all its lines."""

    format: str
    lines: list[Entry]
    num_traffic: int
    num_prompts: int
    num_lines: int = 1
    has_ids: bool = False


SAMPLES = {
    "chat": Sample("chat", [{"messages": [USER, SAID]}], 1, 1),
    "chat prompt": Sample("chat", [{"messages": [USER]}], 0, 1),
    "chat and reply": Sample("chat", [{**REQUEST, "response": REPLY}], 1, 1),
    "request and reply": Sample("pairs", [{"request": REQUEST, "response": REPLY}], 1, 1),
    "batch output alone": Sample("batch", [{"custom_id": "a", "response": {"body": REPLY}}], 0, 0),
    "batch output with ids": Sample(
        "batch",
        [{"custom_id": "a", "response": {"status_code": 200, "body": WITH_IDS}, "error": None}],
        *(1, 1, 1, True),
    ),
    "batch input": Sample("batch-input", [{"custom_id": "a", "body": REQUEST}], 0, 1),
    "both of a batch": Sample(
        "batch",
        [{"custom_id": "a", "body": REQUEST}, {"custom_id": "a", "response": {"body": REPLY}}],
        *(1, 1),
    ),
    "vLLM reply": Sample("replies", [WITH_IDS], 1, 1, 1, True),
    "reply without ids": Sample("replies", [REPLY], 0, 0),
    "vLLM RequestOutput": Sample(
        "replies",
        [{"request_id": "1", "prompt_token_ids": [5, 6], "outputs": [{"token_ids": [7, 8, 9]}]}],
        *(1, 1, 1, True),
    ),
    "SGLang reply": Sample(
        "replies",
        [
            {
                "text": "x",
                "input_ids": [5, 6],
                "output_ids": [7, 8, 9],
                "meta_info": {"id": "s", "finish_reason": {"type": "stop"}},
            }
        ],
        *(1, 1, 1, True),
    ),
    "token ids": Sample(
        "ids", [{"prompt_token_ids": [5, 6], "response_token_ids": [7, 8, 9]}], 1, 1, 1, True
    ),
    "ShareGPT": Sample(
        "sharegpt",
        [{"conversations": [said("human", USER["content"]), said("gpt", ANSWER)]}],
        *(1, 1),
    ),
    "LMSYS": Sample("lmsys", [{"conversation_id": "c", "conversation": [USER, SAID]}], 1, 1),
    "WildChat": Sample(
        "lmsys",
        [{"conversation_hash": "c", "conversation": [{**USER, "toxic": False}, SAID]}],
        1,
        1,
    ),
    "redacted": Sample("lmsys", [{"conversation": [USER, SAID], "redacted": True}], 0, 0),
    "guidellm": Sample("columns", [{"question": USER["content"], "output_tokens_count": 9}], 0, 1),
    "Alpaca": Sample(
        "columns", [{"instruction": USER["content"], "input": "", "output": ANSWER}], 1, 1
    ),
    "mooncake text": Sample("columns", [{"text_input": USER["content"], "output_length": 9}], 0, 1),
    "mooncake payload": Sample("aiperf", [{"payload": REQUEST, "timestamp": 0}], 0, 1),
    "inputs.json": Sample(
        "aiperf", [{"data": [{"session_id": "s", "payloads": [REQUEST, REQUEST]}]}], 0, 2, 2
    ),
    "aiperf results": Sample("aiperf-results", [{"metadata": {}, "metrics": {}}], 0, 0),
    "mooncake lengths": Sample("lengths", [{"input_length": 9, "output_length": 3}], 0, 0),
    "SageMaker": Sample("sagemaker", [sagemaker("JSON"), sagemaker("BASE64")], 2, 2, 2),
    "OTLP": Sample("otel", [{"resourceSpans": [{"scopeSpans": [{"spans": OTLP_SPANS}]}]}], 1, 1, 2),
    "span": Sample("otel", [{"name": "chat", "attributes": SPAN_ATTRIBUTES}], 1, 1),
    "litellm": Sample("litellm", [{**LITELLM, "messages": [USER], "response": REPLY}], 1, 1),
    "litellm failure": Sample("litellm", [{**LITELLM, "status": "failure", "messages": []}], 0, 0),
    "Langfuse": Sample("langfuse", [{**LANGFUSE, "input": [USER], "output": SAID}], 1, 1),
    "Langfuse texts": Sample(
        "langfuse",
        [{**LANGFUSE, "input": json.dumps({"messages": [USER]}), "output": ANSWER}],
        1,
        1,
    ),
    "Langfuse export": Sample(
        "langfuse",
        [
            {
                "data": [
                    {**LANGFUSE, "input": [USER], "output": SAID},
                    {**LANGFUSE, "type": "SPAN", "input": 1, "output": 2},
                ]
            }
        ],
        *(1, 1, 2),
    ),
    "MT-bench": Sample("bench", [{"category": "c", "turns": [USER["content"]]}], 0, 1),
    "completion": Sample("text", [{"prompt": "p", "completion": ANSWER}], 1, 1),
}
TITLES = {each.name: each.title for each in Reader().formats}


def written(path: Path, *entries: object) -> Path:
    path.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", SAMPLES)
def test_every_format_is_read_as_traffic_or_says_why_not(tmp_path: Path, name: str) -> None:
    sample = SAMPLES[name]
    path = written(tmp_path / "log.jsonl", *sample.lines)
    if not sample.num_traffic:
        with pytest.raises(TrafficError, match=r"line 1: |a trace of lengths"):
            read_traffic(path, Templated())
        return
    traffic = read_traffic(path, Templated())
    assert traffic.reading is not None
    assert traffic.reading.formats == {TITLES[sample.format]: sample.num_traffic}
    assert traffic.reading.num_lines == sample.num_lines
    prompt, response = texts(traffic)[0]
    if sample.has_ids:
        assert traffic.responses[0].prompt_token_ids == (5, 6)
        assert traffic.responses[0].response_token_ids == (7, 8, 9)
    elif name != "completion":
        assert (prompt, response) == (ASKED, ANSWER)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_format_is_read_as_prompts_or_says_why_not(tmp_path: Path, name: str) -> None:
    sample = SAMPLES[name]
    path = written(tmp_path / "log.jsonl", *sample.lines)
    if not sample.num_prompts:
        with pytest.raises(TrafficError, match="line 1: "):
            read_prompt_file(path)
        return
    found = read_prompt_file(path)
    assert found.reading.formats == {TITLES[sample.format]: sample.num_prompts}
    ids = encode_prompt(found.prompts[0], Templated())
    assert ids == (5, 6) if sample.has_ids else Templated().decode(ids) in (ASKED, "p")


def texts(traffic: Traffic) -> list[tuple[str, str]]:
    spell = Templated().decode
    return [(spell(r.prompt_token_ids), spell(r.response_token_ids)) for r in traffic.responses]


def test_batch_output_is_joined_with_its_input_file(tmp_path: Path) -> None:
    asked = written(tmp_path / "in.jsonl", {"custom_id": "a", "body": REQUEST})
    replies = [{"custom_id": name, "response": {"body": REPLY}} for name in "ab"]
    failed = {"custom_id": "c", "response": {"status_code": 500, "body": {}}, "error": None}
    log = written(tmp_path / "out.jsonl", *replies, failed)
    traffic = read_traffic(log, Templated(), ReadSettings(requests=asked))
    assert texts(traffic) == [(ASKED, ANSWER)]
    assert traffic.responses[0].traits == (("model", "m"), ("finish reason", "stop"))
    assert traffic.skipped == (
        "line 2: its request is not known: give the batch's input file with --requests",
        "line 3: its request failed with status 500",
    )
    assert list(traffic.read_with) == ["requests_sha256"]


def test_a_format_can_be_forced_and_a_wrong_name_has_a_neighbour(tmp_path: Path) -> None:
    path = written(
        tmp_path / "log.jsonl", {"messages": [USER, SAID]}, {"prompt": "p", "response": "ab"}
    )
    traffic = read_traffic(path, Templated(), ReadSettings("text"))
    assert traffic.skipped == ("line 1: it is not of the format prompts with completions",)
    with pytest.raises(OptionError, match=r"no format 'litelm'\. Did you mean 'litellm'"):
        read_traffic(path, Templated(), ReadSettings("litelm"))
    assert len(NAMES) == len(set(NAMES)) == 18


def test_lines_of_several_formats_are_read_each_by_its_own(tmp_path: Path) -> None:
    lines = [SAMPLES[name].lines[0] for name in ("chat", "litellm", "vLLM reply", "ShareGPT")]
    reading = read_traffic(written(tmp_path / "log.jsonl", *lines), Templated()).reading
    assert reading is not None
    assert reading.num_used == 4
    assert len(reading.formats) == 4


def test_tables_are_read_as_lines(tmp_path: Path) -> None:
    with open(tmp_path / "log.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "response"])
        writer.writeheader()
        writer.writerows([{"prompt": "p", "response": 'a "b", c'}, {"prompt": "q", "response": ""}])
    traffic = read_traffic(tmp_path / "log.csv", Templated())
    assert texts(traffic) == [("p", 'a "b", c')]
    assert len(traffic.skipped) == 1
    (tmp_path / "t.csv").write_text("Timestamp,Model,Request tokens,Response tokens\n1,m,5,6\n")
    with pytest.raises(TrafficError, match="is a trace of lengths"):
        read_traffic(tmp_path / "t.csv", Templated())


def test_parquet_of_conversations(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"conversation_id": "c", "conversation": [USER, SAID]}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "log.parquet")
    traffic = read_traffic(tmp_path / "log.parquet", Templated())
    assert texts(traffic) == [(ASKED, ANSWER)]
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "log.parquet").read_bytes()[:200])
    with pytest.raises(TrafficError, match="is not a whole parquet file"):
        read_traffic(tmp_path / "cut.parquet", Templated())


def test_a_document_over_several_lines_is_read(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps({"messages": [USER, SAID]}, indent=2))
    assert texts(read_traffic(tmp_path / "one.json", Templated())) == [(ASKED, ANSWER)]
