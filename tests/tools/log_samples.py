"""Write small logs with the classes of the libraries that write them, for tests of the readers.

    python -m venv V
    V/bin/pip install openai litellm langfuse opentelemetry-util-genai \\
        opentelemetry-exporter-otlp-proto-http aiperf guidellm
    V/bin/python tests/tools/log_samples.py tests/traffic/formats/samples

Each file's name ends with the version of its library. Nothing is sent: litellm answers by its own
mock. Run it again when a library has a new version, and see what the readers make of it.
"""

# The libraries are in no environment of this project: mypy and ruff do not know them.
# mypy: ignore-errors

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
PARAMETERS = {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}}
FUNCTION = {"name": "add", "description": "Add two numbers.", "parameters": PARAMETERS}
TOOL = {"type": "function", "function": FUNCTION}
ASKED = [{"role": "system", "content": "You count."}, {"role": "user", "content": "One, two?"}]
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'},
}
SAID = {"role": "assistant", "content": "Three, four.", "refusal": None}
CALLED = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [CALL]}


def write(
    directory: Path, name: str, library: str, rows: Iterable[Any], ext: str = "jsonl"
) -> None:
    """Write rows, texts or JSON values, one a line."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path = directory / f"{name}-{version(library)}.{ext}"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def completion(number: int, message: dict[str, Any], reason: str) -> dict[str, Any]:
    """Return a chat completion as the API sends it."""
    choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    named = {"id": f"chatcmpl-{number}", "object": "chat.completion", "created": 1, "model": "m"}
    return {**named, "choices": [choice], "usage": usage}


def openai_files(directory: Path) -> None:
    """Both files of a batch, and requests beside replies as the client returns them."""
    from openai.types.chat import ChatCompletion

    requests = [
        {"model": "m", "messages": ASKED, "temperature": 0.0, "max_completion_tokens": 16},
        {"model": "m", "messages": ASKED, "tools": [TOOL], "parallel_tool_calls": False},
    ]
    bodies = completion(1, SAID, "stop"), completion(2, CALLED, "tool_calls")
    replies = [ChatCompletion.model_validate(body) for body in bodies]
    url = {"method": "POST", "url": "/v1/chat/completions"}
    asked = [{"custom_id": f"r{i}", **url, "body": body} for i, body in enumerate(requests)]
    answered = [
        {
            "id": f"batch_req_{i}",
            "custom_id": f"r{i}",
            "response": {
                "status_code": 200,
                "request_id": f"q{i}",
                "body": reply.model_dump(mode="json"),
            },
            "error": None,
        }
        for i, reply in enumerate(replies)
    ]
    pairs = [
        {"request": body, "response": json.loads(reply.to_json())}
        for body, reply in zip(requests, replies, strict=True)
    ]
    write(directory, "openai-batch-input", "openai", asked)
    write(directory, "openai-batch-output", "openai", answered)
    write(directory, "openai-pairs", "openai", pairs)


def litellm_files(directory: Path) -> None:
    """Standard logging payloads: a chat, a call, a stream, a failure, and a text completion."""
    import litellm
    from litellm.integrations.custom_logger import CustomLogger

    rows: list[dict[str, Any]] = []

    class Kept(CustomLogger):
        async def async_log_success_event(self, kwargs, response_obj, start_time, end_time):
            rows.append(kwargs["standard_logging_object"])

        async_log_failure_event = async_log_success_event

    async def ask() -> None:
        litellm.callbacks = [Kept()]
        chat = {"model": "openai/m", "messages": ASKED, "api_key": "none"}
        said = {"mock_response": SAID["content"]}
        call = litellm.ModelResponse(**completion(2, CALLED, "tool_calls"))
        session = {"session_id": "s1"}
        await litellm.acompletion(**chat, **said, temperature=0.5, metadata=session)
        await litellm.acompletion(**chat, tools=[TOOL], mock_response=call)
        async for _ in await litellm.acompletion(**chat, **said, stream=True):
            pass
        with contextlib.suppress(litellm.InternalServerError):
            await litellm.acompletion(**chat, mock_response=Exception("no"))
        text = {"model": "openai/m", "prompt": "One, two", "api_key": "none"}
        await litellm.atext_completion(**text, mock_response=" three, four.")
        await asyncio.sleep(5)  # the rows come from a queue

    asyncio.run(ask())
    for row in rows:  # tracebacks with the paths of this machine
        row["response_cost_failure_debug_info"] = None
        if row["error_information"]:
            row["error_information"]["traceback"] = ""
    write(directory, "litellm", "litellm", (json.dumps(row, default=str) for row in rows))


def langfuse_files(directory: Path) -> None:
    """Observations of the API: turns, a request with tools, texts of JSON, and other work."""
    from langfuse.api import ObservationV2

    at = datetime(2026, 1, 1, tzinfo=UTC)
    shared = {"trace_id": "t1", "project_id": "p", "start_time": at, "end_time": at}
    made = {
        **shared,
        "type": "GENERATION",
        "model": "m",
        "session_id": "s1",
        "model_parameters": {"temperature": 0.5},
        "usage_details": {"input": 9, "output": 3},
    }
    asked = {"messages": ASKED, "tools": [TOOL]}
    rows = [
        ObservationV2(
            id="o1", input=ASKED, output={k: SAID[k] for k in ("role", "content")}, **made
        ),
        ObservationV2(id="o2", input=asked, output=CALLED, **made),
        ObservationV2(id="o3", input=json.dumps(ASKED), output=json.dumps(SAID), **made),
        ObservationV2(id="o4", type="SPAN", input="x", output="y", **shared),
    ]
    write(directory, "langfuse", "langfuse", (row.json() for row in rows))


def otel_files(directory: Path) -> None:
    """Spans and events of the GenAI utilities, in OTLP's JSON and as the console has it."""
    from google.protobuf.json_format import MessageToDict
    from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    spans, events = InMemorySpanExporter(), InMemoryLogRecordExporter()
    tracer, logger = TracerProvider(), LoggerProvider()
    tracer.add_span_processor(SimpleSpanProcessor(spans))
    logger.add_log_record_processor(SimpleLogRecordProcessor(events))
    os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = "gen_ai_latest_experimental"
    _infer("span_only", tracer_provider=tracer)
    _infer("event_only", logger_provider=logger)
    library, found, logged = "opentelemetry-util-genai", spans.get_finished_spans(), events
    logs = logged.get_finished_logs()
    write(directory, "otel-otlp", library, [MessageToDict(encode_spans(found))], "json")
    write(directory, "otel-console", library, [json.loads(each.to_json()) for each in found])
    write(directory, "otel-otlp-logs", library, [MessageToDict(encode_logs(logs))], "json")


def _infer(mode: str, **providers: Any) -> None:
    """Answer three requests: in words, by a call, and in words after the call's result."""
    os.environ["OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"] = mode
    from opentelemetry.util.genai import types
    from opentelemetry.util.genai.handler import TelemetryHandler

    handler = TelemetryHandler(**providers)
    call = types.ToolCallRequestPart(id="call_1", name="add", arguments={"a": 1, "b": 2})
    result = types.ToolCallResponsePart(id="call_1", response=3)
    user = types.InputMessage(role="user", parts=[types.Text(content="One, two?")])
    called = types.InputMessage(role="assistant", parts=[call])
    told = types.InputMessage(role="tool", parts=[result])
    tools = [types.FunctionToolDefinition(**FUNCTION, type="function")]
    said, thought = types.Text(content="Three, four."), types.Reasoning(content="It adds.")
    for history, parts, reason in (
        ([user], [said], "stop"),
        ([user], [call], "tool_calls"),
        ([user, called, told], [thought, types.Text(content="Three.")], "stop"),
    ):
        with handler.inference("openai", request_model="m") as request:
            request.system_instruction = [types.Text(content="You count.")]
            request.input_messages = history
            answer = {"role": "assistant", "parts": parts, "finish_reason": reason}
            request.output_messages = [types.OutputMessage(**answer)]
            request.finish_reasons = [reason]
            request.temperature, request.response_model_name = 0.5, "m"
            request.input_tokens, request.output_tokens = 9, 3
            request.tool_definitions = tools if parts != [said] else None


def aiperf_files(directory: Path) -> None:
    """Inputs of aiperf, its figures, and traces of lengths."""
    from aiperf.common.models.dataset_models import InputsFile, SessionPayloads
    from aiperf.common.models.record_models import (
        MetricRecordInfo,
        MetricRecordMetadata,
        MetricValue,
    )
    from aiperf.dataset.loader.models import BailianTrace, MooncakeTrace, MultiTurn, SingleTurn

    payload = {"model": "m", "messages": ASKED}
    later = {"model": "m", "messages": [*ASKED, SAID, {"role": "user", "content": "Five?"}]}
    texts = (
        MooncakeTrace(text_input="One, two?", output_length=4, timestamp=0),
        MooncakeTrace(messages=ASKED, output_length=4, tools=[TOOL], timestamp=10),
        MooncakeTrace(payload=payload, timestamp=20),
    )
    lengths = [
        MooncakeTrace(input_length=100, output_length=20, hash_ids=[1], timestamp=t)
        for t in (0, 1500)
    ]
    bailian = [
        BailianTrace(chat_id=i, timestamp=1.5 * i, input_length=100, output_length=20, type="text")
        for i in range(2)
    ]
    times = {"request_start_ns": 1, "request_end_ns": 2, "benchmark_phase": "profiling"}
    workers = {"worker_id": "w", "record_processor_id": "r"}
    figures = MetricRecordInfo(
        metadata=MetricRecordMetadata(session_num=0, **times, **workers),
        metrics={"output_sequence_length": MetricValue(value=3, unit="tokens")},
    )
    sessions = InputsFile(data=[SessionPayloads(session_id="s1", payloads=[payload, later])])
    turns = MultiTurn(session_id="s", turns=[SingleTurn(text="One?"), SingleTurn(text="Two?")])
    plain = {"exclude_none": True, "exclude": {"type"}}
    files = {
        "aiperf-mooncake": [each.model_dump_json(**plain) for each in texts],
        "aiperf-mooncake-lengths": [each.model_dump_json(**plain) for each in lengths],
        "aiperf-bailian": [each.model_dump_json(by_alias=True) for each in bailian],
        "aiperf-single-turn": [SingleTurn(text="One, two?").model_dump_json(exclude_none=True)],
        "aiperf-multi-turn": [turns.model_dump_json(exclude_none=True)],
        "aiperf-profile-export": [figures.model_dump_json(exclude_none=True)],
    }
    for name, rows in files.items():
        write(directory, name, "aiperf", rows)
    write(directory, "aiperf-inputs", "aiperf", [sessions.model_dump_json()], "json")


def guidellm_files(directory: Path) -> None:
    """A row for every column in which guidellm looks for a prompt, by its own list of names."""
    from guidellm.data.preprocessors import mappers

    known = next(each.defaults for each in vars(mappers).values() if hasattr(each, "defaults"))
    talk = [{"from": "human", "value": "One, two?"}, {"from": "gpt", "value": "Three, four."}]
    rows: list[dict[str, Any]] = [
        {name: talk if name == "conversation" else "One, two?", "output_tokens_count": 4}
        for name in known["text_column"]
    ]
    rows += [{name: ASKED} for name in known["raw_messages_column"]]
    rows += [{"prompt": "One, two?", name: "You count."} for name in known["prefix_column"]]
    write(directory, "guidellm", "guidellm", rows)


def main() -> None:
    """Write every file into the directory that is named."""
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for make in (
        openai_files,
        litellm_files,
        langfuse_files,
        otel_files,
        aiperf_files,
        guidellm_files,
    ):
        make(directory)


if __name__ == "__main__":
    main()
