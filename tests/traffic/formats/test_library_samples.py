"""Logs that their own libraries wrote (`tests/tools/log_samples.py`) are read, line by line."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from quantdraft.errors import TrafficError
from quantdraft.traffic.counting import read_contents
from quantdraft.traffic.prompts import encode_prompt, read_prompt_file
from quantdraft.traffic.responses import ReadSettings
from quantdraft.traffic.trace import read_trace
from quantdraft.traffic.traffic import read_traffic
from tests.traffic.templated import Templated

SAMPLES = Path(__file__).parent / "samples"
NOT_ANSWERED = "the chat does not end with an assistant's turn after another"
FIGURES = "figures of a request, without its text: give aiperf's inputs.json"
LENGTHS = "it holds lengths alone, without text"
LENGTHS_ALONE = (0, 2, {LENGTHS: 2}), (0, 2, {LENGTHS: 2})
CALL = 'CALL add({"a": 1, "b": 2})'


class Expected(NamedTuple):
    """Lines used, lines in all and lines left out by reason; of a log as traffic, as prompts."""

    traffic: tuple[int, int, dict[str, int]]
    prompts: tuple[int, int, dict[str, int]]
    answers: tuple[str, ...] = ()
    requests: str | None = None  # the file of a batch's requests


EXPECTED = {
    "openai-batch-input": Expected((0, 2, {NOT_ANSWERED: 2}), (2, 2, {})),
    "openai-batch-output": Expected(
        (2, 2, {}), (2, 2, {}), ("Three, four.", CALL), "openai-batch-input"
    ),
    "openai-pairs": Expected((2, 2, {}), (2, 2, {}), ("Three, four.", CALL)),
    "litellm": Expected(
        (4, 5, {"its request failed": 1}),
        (4, 5, {"its request failed": 1}),
        ("Three, four.", CALL, "Three, four.", " three, four."),
    ),
    "langfuse": Expected(
        (3, 4, {"an observation of type SPAN, which is no generation": 1}),
        (3, 4, {"an observation of type SPAN, which is no generation": 1}),
        ("Three, four.", CALL, "Three, four."),
    ),
    **dict.fromkeys(
        ("otel-otlp", "otel-console", "otel-otlp-logs"),
        Expected((3, 3, {}), (3, 3, {}), ("Three, four.", CALL, "<think>It adds.</think>Three.")),
    ),
    "aiperf-mooncake": Expected((0, 3, {NOT_ANSWERED: 3}), (3, 3, {})),
    "aiperf-inputs": Expected((0, 2, {NOT_ANSWERED: 2}), (2, 2, {})),
    "aiperf-single-turn": Expected((0, 1, {NOT_ANSWERED: 1}), (1, 1, {})),
    "aiperf-multi-turn": Expected((0, 1, {NOT_ANSWERED: 1}), (1, 1, {})),
    "aiperf-profile-export": Expected((0, 1, {FIGURES: 1}), (0, 1, {FIGURES: 1})),
    "aiperf-mooncake-lengths": Expected(*LENGTHS_ALONE),
    "aiperf-bailian": Expected(*LENGTHS_ALONE),
    "guidellm": Expected(
        (1, 14, {NOT_ANSWERED: 12, "a prompt without an answer": 1}),
        (14, 14, {}),
        ("Three, four.",),
    ),
}


def sample(name: str) -> Path:
    """Return the file of a name, whatever version of its library wrote it."""
    (path,) = (each for each in SAMPLES.iterdir() if each.name.rpartition("-")[0] == name)
    return path


def test_every_sample_is_expected() -> None:
    assert {each.name.rpartition("-")[0] for each in SAMPLES.iterdir()} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_library_s_own_log_is_read_as_traffic(name: str) -> None:
    (num_used, num_lines, left_out), expected = EXPECTED[name].traffic, EXPECTED[name]
    how = ReadSettings(requests=sample(expected.requests) if expected.requests else None)
    if not num_used:
        with pytest.raises(TrafficError, match=r"is a trace of lengths|holds no usable response"):
            read_traffic(sample(name), Templated(), how)
        return
    traffic = read_traffic(sample(name), Templated(), how)
    reading = traffic.reading
    assert reading is not None
    assert (reading.num_used, reading.num_lines) == (num_used, num_lines)
    assert {each.reason: each.count for each in reading.left_out} == left_out
    spell = Templated().decode
    assert tuple(spell(each.response_token_ids) for each in traffic.responses) == expected.answers
    contents = read_contents(sample(name), None, how)
    assert (contents.kind, contents.num_items) == ("traffic", num_used)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_library_s_own_log_is_read_as_prompts(name: str) -> None:
    (num_used, num_lines, left_out), expected = EXPECTED[name].prompts, EXPECTED[name]
    how = ReadSettings(requests=sample(expected.requests) if expected.requests else None)
    if not num_used:
        with pytest.raises(TrafficError, match=next(iter(left_out))):
            read_prompt_file(sample(name), how)
        return
    found = read_prompt_file(sample(name), how)
    assert (found.reading.num_used, found.reading.num_lines) == (num_used, num_lines)
    assert {each.reason: each.count for each in found.reading.left_out} == left_out
    said = [Templated().decode(encode_prompt(each, Templated())) for each in found.prompts]
    assert all("One" in each for each in said)
    # What a library puts before the prompt is not dropped.
    assert sum("You count." in each for each in said) == TOLD.get(name, num_used)


TOLD = {"litellm": 3, "aiperf-mooncake": 2, "aiperf-single-turn": 0, "aiperf-multi-turn": 0} | {
    "guidellm": 5  # two with messages, three with a column before the prompt
}


def test_tools_models_and_conversations_are_kept() -> None:
    spoken = read_traffic(sample("otel-otlp"), Templated()).responses
    assert [dict(each.traits).get("tools") for each in spoken] == [None, *["with tools"] * 2]
    assert len({each.conversation for each in spoken}) == 3
    events = read_traffic(sample("otel-otlp-logs"), Templated()).responses
    # Events outside of a span have no trace: they are no one conversation.
    assert all(dict(each.traits)["model"] == "m" for each in events)
    (observed, *_) = read_traffic(sample("langfuse"), Templated()).responses
    assert (observed.conversation, dict(observed.traits)["model"]) == ("s1", "m")
    (logged, *others) = read_traffic(sample("litellm"), Templated()).responses
    assert logged.conversation == "s1"
    assert dict(others[0].traits)["finish reason"] == "tool_calls"


def test_traces_of_aiperf_have_their_times() -> None:
    for name in ("aiperf-mooncake-lengths", "aiperf-bailian"):
        found = read_trace(sample(name))
        assert (found.arrivals_ms - found.arrivals_ms[0]).tolist() == [0, 1500]
        assert found.num_tokens.tolist() == [20, 20]
