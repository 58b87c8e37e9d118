"""Hostile lines of every format: each costs itself alone, and never ends in a traceback."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from quantdraft.traffic.prompts import encode_prompt, read_prompt_file
from quantdraft.traffic.traffic import read_traffic
from tests.traffic.formats.test_known import SAMPLES
from tests.traffic.templated import Templated

GOOD = {"id": "good", "prompt_token_ids": [5, 6], "response_token_ids": [7, 8, 9]}
DEEP = "DEEP"
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 10**400, 1.5, 1e308, float("nan"), float("inf"), "", "x", "\ud800", "7"),
    *([], {}, [None], [[]], [{}], {"": None}, {"type": 1}, [1, "x"], ["\udfff"], DEEP),
)


MAX_LINES = 120  # of each format; drawn anew whenever the number of places changes


def mutants(value: Any) -> Iterator[Any]:
    """Yield the value with every place in it replaced by each hostile value, removed or doubled."""
    yield from VALUES
    if isinstance(value, dict):
        for key, inner in value.items():
            yield {name: each for name, each in value.items() if name != key}
            yield {**value, key: [inner]}
            yield from ({**value, key: each} for each in mutants(inner))
    if isinstance(value, list):
        for at, inner in enumerate(value[:2]):
            yield [*value, *value]
            yield from ([*value[:at], each, *value[at + 1 :]] for each in mutants(inner))


def written(path: Path, entries: list[Any]) -> Path:
    deep = "[" * 3000 + "]" * 3000
    lines = (json.dumps(entry).replace(f'"{DEEP}"', deep) for entry in entries)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", SAMPLES)
def test_hostile_values_at_every_field_cost_their_line_alone(tmp_path: Path, name: str) -> None:
    sample = deepcopy(SAMPLES[name].lines)
    lines = [each for entry in sample for each in mutants(entry)]
    lines = random.Random(len(lines)).sample(lines, min(len(lines), MAX_LINES))
    path = written(tmp_path / "log.jsonl", [GOOD, *lines, GOOD])
    tokenizer = Templated()
    traffic = read_traffic(path, tokenizer)
    assert [r.response_token_ids for r in traffic.responses if r.prompt_id.startswith("good")] == [
        (7, 8, 9)
    ] * 2
    assert traffic.reading is not None
    assert traffic.reading.num_lines >= len(lines) + 2
    found = read_prompt_file(path)
    assert sum(prompt.prompt_id.startswith("good") for prompt in found.prompts) == 2
    for prompt in found.prompts:
        assert encode_prompt(prompt, tokenizer)
