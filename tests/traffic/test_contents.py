"""What a file holds: counts and lengths known beforehand, in tokens and in characters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from quantdraft.cli import main
from quantdraft.errors import TrafficError
from quantdraft.traffic.contents import LoadPoint, load_points
from quantdraft.traffic.counting import read_contents
from quantdraft.traffic.responses import Response
from quantdraft.traffic.traffic import Sampling, Traffic
from quantdraft.workflows.traffic import traffic_lines
from tests.traffic.files import write_traffic
from tests.traffic.templated import Templated

USER, SAID = {"role": "user", "content": "abc"}, {"role": "assistant", "content": "it is"}


def lines(path: Path, *entries: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in entries))
    return path


def test_a_chat_is_counted_by_its_answers_and_conversations(tmp_path):
    path = lines(
        tmp_path / "log.jsonl",
        {"messages": [USER, SAID, USER, SAID], "session_id": "s", "domain": "a"},
        {"messages": [USER, SAID], "session_id": "t", "model": "m", "domain": "b"},
        {"messages": [USER, {"role": "assistant", "content": ""}]},
    )
    found = read_contents(path)
    assert (found.kind, found.num_items) == ("traffic", 3)
    assert found.conversations == {"s": 2, "t": 1}
    assert found.num_repeats == 1, "the first answer to the first prompt is there twice"
    assert found.counts["domain"] == {"a": 2, "b": 1}
    assert found.counts["model"] == {"m": 1}
    (prompts,), (answers,) = found.lengths["prompt"], found.lengths["response"]
    assert prompts.unit == "characters"
    assert sorted(prompts.values) == [3, 3, 11]
    assert set(answers.values) == {5}


def test_a_tokenizer_makes_tokens_of_it_and_leaves_out_what_it_cannot_write(tmp_path):
    path = lines(
        tmp_path / "log.jsonl",
        {"messages": [USER, SAID]},
        {"messages": [USER, {"role": "assistant", "content": ""}]},
    )
    found = read_contents(path, Templated())
    assert found.num_items == 1
    assert [each.unit for each in found.lengths["response"]] == ["tokens"]
    assert [each.count for each in found.reading.left_out] == [1]


def test_prompts_without_answers_are_a_file_of_prompts(tmp_path):
    path = lines(tmp_path / "p.jsonl", {"prompt": "abcd", "domain": "x"}, {"prompt": "ab"})
    found = read_contents(path)
    assert (found.kind, found.num_items) == ("prompts", 2)
    assert sorted(found.lengths["prompt"][0].values) == [2, 4]
    assert "capture" in "\n".join(traffic_lines(found))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mooncake.jsonl", '{"timestamp": 0, "input_length": 600, "output_length": 50}'),
        ("burst.csv", "Timestamp,Model,Request tokens,Response tokens\n5,ChatGPT,600,50\n"),
        ("azure.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16,600,50\n"),
    ],
)
def test_traces_of_lengths_are_summed_up_and_name_the_points_to_time(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    found = read_contents(tmp_path / name)
    assert (found.kind, found.num_items) == ("lengths", 1)
    assert found.load == (LoadPoint(625, 1.0),)
    assert "--context-lengths 625" in "\n".join(traffic_lines(found))


def test_points_of_load_are_thirds_of_the_decoded_tokens():
    """The one request that decodes the most has its context twice."""
    prompt, response = np.array([100, 200, 300]), np.array([10, 80, 30])
    points = load_points(prompt, response)
    assert points == (LoadPoint(240, 2 / 3), LoadPoint(315, 1 / 3))
    assert load_points(np.array([5]), np.array([0])) == ()


def test_a_capture_is_counted_in_its_own_tokens(tmp_path):
    responses = (Response("p", (1, 2, 3), (4, 5)), Response("q", (1,), (4, 5, 6), domain="d"))
    path = tmp_path / "traffic.jsonl"
    write_traffic(path, Traffic(responses, Sampling(), {"name": "T"}))
    found = read_contents(path)
    assert [sorted(each.values) for each in found.lengths["prompt"]] == [[1, 3]]
    assert "from T, greedy" in "\n".join(traffic_lines(found))
    cut = path.read_text().splitlines(keepends=True)[:-1]
    path.write_text("".join(cut))
    with pytest.raises(TrafficError, match="is incomplete"):
        read_contents(path)


def test_the_page_of_a_file_is_one_screen(tmp_path):
    entries = [{"prompt": "a" * 2**n, "response": "b" * 3, "domain": f"d{n}"} for n in range(14)]
    printed = CliRunner().invoke(main, ["traffic", str(lines(tmp_path / "log.jsonl", *entries))])
    assert printed.exit_code == 0
    shown = printed.stdout.splitlines()
    assert len(shown) <= 40
    assert "14 of 14 lines" in printed.stdout
    assert "d0 1" in printed.stdout


def test_nothing_to_read_is_one_line_with_the_reason(tmp_path):
    path = lines(tmp_path / "log.jsonl", {"event": "heartbeat"})
    result = CliRunner().invoke(main, ["traffic", str(path)])
    assert result.exit_code == 1
    assert "holds nothing that can be read" in result.stderr
    assert "no known format" in result.stderr


def test_the_record_of_several_files_is_one_document(tmp_path):
    path = lines(tmp_path / "log.jsonl", {"prompt": "a", "response": "bcd"})
    printed = CliRunner().invoke(main, ["traffic", str(path), str(path), "--json"])
    first, second = json.loads(printed.stdout)["files"]
    assert first == second
    assert first["lengths"]["response"]["characters"]["total"] == 3
