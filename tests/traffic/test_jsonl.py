"""Files too large for memory are read line by line, and mean the same."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from quantdraft.errors import TrafficError
from quantdraft.traffic import jsonl as lines
from quantdraft.traffic.jsonl import StoredLines, pick_items
from quantdraft.traffic.prompts import read_prompts
from quantdraft.traffic.traffic import (
    Response,
    Sampling,
    Traffic,
    read_traffic,
    token_counts,
)
from tests.traffic.files import write_traffic

SCRIPTS = (
    "Straße",
    "дом",
    "מילה",
    "كلمة",
    "字典",
    "かな",
    "한글",
    "ไทย",
    "हिन्दी",
    "🙂👩‍👩‍👧",
    "a\u2028b",
)


@pytest.fixture
def all_stored(monkeypatch):
    """Every file counts as large."""
    monkeypatch.setattr(lines, "MAX_BYTES_IN_MEMORY", 0)


def some_traffic(num: int, length: int = 5) -> Traffic:
    responses = tuple(
        Response(f"p{i % 7}", tuple(range(1, 3 + i % 4)), (7,) * length, (-0.5,) * length, "d")
        for i in range(num)
    )
    return Traffic(responses, Sampling())


def test_stored_traffic_is_the_traffic_in_memory(tmp_path, monkeypatch):
    path = tmp_path / "t.jsonl"
    write_traffic(path, some_traffic(20))
    with open(path, "a") as file:
        file.write("\n")
    whole = read_traffic(path)
    monkeypatch.setattr(lines, "MAX_BYTES_IN_MEMORY", 0)
    stored = read_traffic(path)
    assert isinstance(whole.responses, tuple)
    assert isinstance(stored.responses, StoredLines)
    assert tuple(stored.responses) == whole.responses
    assert len({r.prompt_id for r in stored.responses}) == 20
    assert stored.responses[3:5] == whole.responses[3:5]
    assert stored.responses[-1] == whole.responses[-1]
    assert stored.num_tokens == whole.num_tokens
    for one, other in zip(token_counts(stored.responses), token_counts(whole.responses)):  # noqa: B905
        assert one.tolist() == other.tolist()
    some = pick_items(stored.responses, [4, 1])
    assert tuple(some) == pick_items(whole.responses, [4, 1])
    assert token_counts(some).prompt.tolist() == [2, 3]


def test_prompts_in_every_script_are_read_from_either(tmp_path, monkeypatch):
    path = tmp_path / "p.jsonl"
    entries = [{"prompt": text, "id": "same"} for text in SCRIPTS]
    text = "\r\n".join(json.dumps(e, ensure_ascii=False) for e in entries)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    whole = list(read_prompts(path))
    assert [prompt.text for prompt in whole] == list(SCRIPTS)
    monkeypatch.setattr(lines, "MAX_BYTES_IN_MEMORY", 0)
    stored = read_prompts(path)
    assert isinstance(stored, StoredLines)
    assert list(stored) == whole


def test_a_file_that_changes_under_the_reader_is_an_error(tmp_path, all_stored):
    path = tmp_path / "t.jsonl"
    write_traffic(path, some_traffic(3))
    stored = read_traffic(path).responses
    path.write_text("{}\n")
    with pytest.raises(TrafficError, match="was changed while it was being read"):
        stored[2]


def peak_bytes(path: Path) -> int:
    tracemalloc.start()
    traffic = read_traffic(path)
    for response in traffic.responses:
        assert response.response_token_ids
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_tokens_of_stored_traffic(tmp_path, all_stored):
    for name, length in (("short", 50), ("long", 500)):
        write_traffic(tmp_path / name, some_traffic(400, length))
    size = {name: (tmp_path / name).stat().st_size for name in ("short", "long")}
    assert size["long"] > 5 * size["short"]
    # One line is held at a time: its text, its objects, and some copies.
    line = size["long"] / 400
    assert peak_bytes(tmp_path / "long") - peak_bytes(tmp_path / "short") < 20 * line
