"""Files split by conversation: every line in one part, the same ones every time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from quantdraft.cli import main
from quantdraft.errors import OptionError, OutputExistsError, TrafficError
from quantdraft.traffic.parts import split_part
from quantdraft.traffic.prompts import read_prompts
from quantdraft.traffic.responses import ReadSettings, Response
from quantdraft.traffic.split import parse_shares, split_traffic
from quantdraft.traffic.traffic import Sampling, Traffic, read_traffic
from tests.traffic.files import write_traffic
from tests.traffic.templated import Templated

HALVES = {"calibration": 0.5, "evaluation": 0.5}
SAID = {"role": "assistant", "content": "it is"}


def asked(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def write(path: Path, entries: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in entries))
    return path


def conversations(path: Path) -> set[str]:
    return {json.loads(line)["session_id"] for line in path.read_text().splitlines()}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Ten sessions of four lines, and one line that cannot be read."""
    chats = [
        {"messages": [asked(f"{s} {n}"), SAID], "session_id": f"s{s}"}
        for n in range(4)
        for s in range(10)
    ]
    return write(tmp_path / "log.jsonl", [*chats, {"event": "heartbeat"}])


def test_sessions_are_kept_together_and_lines_as_they_are(log, tmp_path):
    split = split_traffic(log, HALVES, tmp_path / "parts")
    assert split.num_left_out == 1
    names = [conversations(each.path) for each in split.files]
    assert [len(each) for each in names] == [5, 5]
    assert not names[0] & names[1]
    lines = [line for each in split.files for line in each.path.read_text().splitlines()]
    assert sorted(lines) == sorted(log.read_text().splitlines()[:-1])


def test_a_split_is_the_same_every_time_and_for_any_order_of_the_lines(log, tmp_path):
    first = split_traffic(log, HALVES, tmp_path / "first")
    log.write_text("".join(sorted(log.read_text().splitlines(keepends=True))))
    second = split_traffic(log, HALVES, tmp_path / "second")
    for one, other in zip(first.files, second.files, strict=True):
        assert conversations(one.path) == conversations(other.path)


def test_the_parts_are_read_back_and_say_what_they_are(log, tmp_path):
    (own, _) = split_traffic(log, HALVES, tmp_path / "parts").files
    traffic = read_traffic(own.path, Templated(), ReadSettings())
    assert len(traffic.responses) == 20
    assert split_part(own.path, traffic.sha256) == own.part
    assert split_part(log, traffic.sha256) is None


def test_lines_that_begin_alike_are_one_conversation(tmp_path):
    """A log without sessions, whose every line repeats what was said before."""
    grown = [
        {"messages": [asked(f"{s}"), SAID, *([asked("more"), SAID] * n)]}
        for s in range(6)
        for n in range(3)
    ]
    split = split_traffic(write(tmp_path / "log.jsonl", grown), HALVES, tmp_path / "parts")
    assert [each.num_lines for each in split.files] == [9, 9]


def test_a_capture_is_split_into_captures(tmp_path):
    responses = tuple(Response(f"p{n}", (1, n), (4, 5)) for n in range(9))
    path = tmp_path / "traffic.jsonl"
    write_traffic(path, Traffic(responses, Sampling(0.5), {"name": "T"}))
    split = split_traffic(path, {"a": 0.2}, tmp_path / "parts")
    (part,) = (read_traffic(each.path) for each in split.files)
    assert len(part.responses) == 2
    assert part.sampling == Sampling(0.5)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(TrafficError, match="is incomplete"):
        split_traffic(path, HALVES, tmp_path / "other")


@pytest.mark.parametrize("name", ["log.json", "log.csv"])
def test_items_and_rows_become_lines(tmp_path, name):
    texts = [f"question {n}" for n in range(6)]
    rows = "question\n" + "".join(f"{text}\n" for text in texts)
    items = json.dumps([{"question": text} for text in texts])
    (tmp_path / name).write_text(rows if name.endswith("csv") else items)
    split = split_traffic(tmp_path / name, HALVES, tmp_path / "parts")
    assert [len(read_prompts(each.path)) for each in split.files] == [3, 3]


def test_a_batch_and_its_replies_stay_together(tmp_path):
    requests = [
        {
            "custom_id": f"r{n}",
            "body": {"messages": [asked(f"{n}")]},
            "url": "/v1",
            "method": "POST",
        }
        for n in range(4)
    ]
    reply = {"choices": [{"index": 0, "message": SAID, "finish_reason": "stop"}]}
    replies = [
        {"custom_id": f"r{n}", "response": {"status_code": 200, "body": reply}} for n in range(4)
    ]
    split = split_traffic(
        write(tmp_path / "log.jsonl", [*requests, *replies]), HALVES, tmp_path / "parts"
    )
    assert [each.num_lines for each in split.files] == [4, 4]
    assert [len(read_traffic(each.path, Templated()).responses) for each in split.files] == [2, 2]


@pytest.mark.parametrize(
    "text", ["a", "a=0", "a=1", "a=x", "a=0.5,a=0.5", "../a=0.5", "a=0.6,b=0.6"]
)
def test_shares_that_cannot_be_are_one_line(text):
    with pytest.raises(OptionError, match="--split"):
        parse_shares(text)
    assert parse_shares("a=0.25, b=0.5") == {"a": 0.25, "b": 0.5}


def test_nothing_is_overwritten_and_the_source_is_never_replaced(log, tmp_path):
    split_traffic(log, HALVES, tmp_path / "parts")
    with pytest.raises(OutputExistsError):
        split_traffic(log, {"a": 0.5}, tmp_path / "parts")
    assert (tmp_path / "parts" / "evaluation.jsonl").is_file()
    split_traffic(log, {"a": 0.5}, tmp_path / "parts", force=True)
    assert sorted(each.name for each in (tmp_path / "parts").iterdir()) == ["a.jsonl", "split.json"]
    with pytest.raises(OptionError):
        split_traffic(log, HALVES, tmp_path, force=True)
    assert log.is_file()


def test_one_conversation_cannot_be_split(tmp_path):
    path = write(tmp_path / "log.jsonl", [{"messages": [asked("x"), SAID]}])
    with pytest.raises(TrafficError, match="too few"):
        split_traffic(path, HALVES, tmp_path / "parts")
    assert not (tmp_path / "parts").exists()


def test_the_command_splits_one_file(log, tmp_path):
    given = ["traffic", str(log), "--split", "a=0.5,b=0.5"]
    assert "go together" in CliRunner().invoke(main, given).stderr
    output = ["-o", str(tmp_path / "parts")]
    assert "one file" in CliRunner().invoke(main, [*given, str(log), *output]).stderr
    printed = CliRunner().invoke(main, [*given, *output])
    assert printed.stdout.count("Written: ") == 2
    assert "1 lines are in none" in printed.stdout
    shown = CliRunner().invoke(main, [*given, *output, "--force", "--json"])
    assert json.loads(shown.stdout)["parts"]["a"]["num_lines"] == 20
