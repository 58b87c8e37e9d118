"""Run the fuzzing campaign for a short time, and check that it sees planted defects."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from quantdraft.errors import QuantDraftError, TrafficError
from tests.campaigns import fuzz
from tests.campaigns.hostile import Format
from tests.campaigns.mutations import mutated, mutated_header, mutated_lines

SEEDS = (b'{"a": [1, 2.5, {"b": "text"}], "c": null}',)


def test_two_thousand_hostile_files_are_read_or_refused_in_one_line():
    tallies = list(fuzz.fuzz(2000, seed=7))
    assert sum(tally.inputs for tally in tallies) >= 2000
    assert {tally.name: tally.findings for tally in tallies if tally.crashes} == {}
    # Neither everything nor nothing is refused: the variants are near enough to be read.
    total = fuzz.summary(tallies, 7)
    assert 0.1 < total["accepted"] / total["inputs"] < 0.9


def raises(error: BaseException):
    def read() -> None:
        raise error

    return read


def ends_never() -> None:
    while True:
        pass


@pytest.mark.parametrize(
    ("read", "column"),
    [
        (dict, "accepted"),
        (raises(TrafficError("no such line")), "refused"),
        (raises(QuantDraftError("")), "crashes"),
        (raises(KeyError("dtype")), "crashes"),
        (raises(MemoryError()), "crashes"),
        (raises(RecursionError()), "crashes"),
        (ends_never, "crashes"),
    ],
)
def test_outcomes_are_told_apart(tmp_path, monkeypatch, read, column):
    monkeypatch.setattr(fuzz, "SECONDS_PER_INPUT", 0.05)
    each = Format("mine", tmp_path / "file", SEEDS, read, lambda seed, seeds, chance: seed)
    with fuzz._bounded():
        tally = fuzz._fuzzed(each, 3, seed=0)
    assert (tally.inputs, getattr(tally, column)) == (3, 3)
    assert bool(tally.findings) == (column == "crashes")


@pytest.mark.parametrize("mutate", [lambda *given: mutated(*given, True), mutated_lines])
def test_an_input_is_made_again_from_its_number(mutate):
    made = [mutate(SEEDS[0], SEEDS, random.Random(f"0:x:{n % 50}")) for n in range(100)]
    assert made[:50] == made[50:]
    assert len(set(made[:50])) > 30


def test_a_header_is_rewritten_at_its_length_most_times():
    raw = len(SEEDS[0]).to_bytes(8, "little") + SEEDS[0] + bytes(16)
    made = [mutated_header(raw, (raw,), random.Random(n)) for n in range(300)]
    whole = [m for m in made if len(m) >= 24 and int.from_bytes(m[:8], "little") == len(m) - 24]
    assert len(whole) > 150


def test_an_existing_file_is_put_back(tmp_path: Path):
    file = tmp_path / "file"
    file.write_bytes(b"original")
    fuzz._fuzzed(Format("mine", file, SEEDS, dict, lambda *_: b"x"), 2, seed=0)
    assert file.read_bytes() == b"original"


def test_the_report_holds_the_totals_and_what_was_found(tmp_path: Path):
    tallies = list(fuzz.fuzz(60, seed=1))
    total = fuzz.summary(tallies, 1)
    fuzz._write(tmp_path, total, tallies)
    text = (tmp_path / "fuzz.md").read_text()
    assert f"{total['inputs']:,} inputs" in text
    assert "## Found and mended" in text
    assert json.loads((tmp_path / "fuzz.json").read_text())["inputs"] == total["inputs"]
