"""Outputs appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import tracemalloc
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from quantdraft.common.files import read_record, whole_directory, write_json, write_text
from quantdraft.errors import CheckpointError, OutputError, OutputExistsError
from quantdraft.record import Interval, read_bench, read_evaluation
from tests.pages import render_terminal


def test_a_directory_appears_only_when_its_block_ends(tmp_path):
    output = tmp_path / "out"
    with whole_directory(output) as staging:
        (staging / "a").write_text("1")
        assert not output.exists()
    assert (output / "a").read_text() == "1"


def test_an_error_inside_leaves_nothing_and_keeps_what_was_there(tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine").write_text("kept")
    with pytest.raises(RuntimeError), whole_directory(output, force=True):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (output / "mine").read_text() == "kept"


def test_an_existing_output_needs_force(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExistsError, match="--force"), whole_directory(tmp_path / "out"):
        pass


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    with (
        pytest.raises(OutputError, match="No space left on device"),
        whole_directory(tmp_path / "o"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


@dataclass(frozen=True)
class Row:
    name: str
    numbers: tuple[float, ...]
    more: dict[int, Interval] | None = None


@dataclass(frozen=True)
class Rows:
    rows: tuple[Row, ...]


def test_a_record_is_written_as_its_plain_values_would_be(tmp_path):
    value = Rows((Row("é", (0.1, 2.0), {3: Interval(1.0, 0.5, 1.5)}), Row("b", ())))
    write_json(tmp_path / "a.json", value)
    assert (tmp_path / "a.json").read_text() == json.dumps(asdict(value), indent=1) + "\n"


def test_writing_a_record_takes_no_memory_for_a_copy_or_for_its_text(tmp_path):
    def peak_and_size(num_rows: int) -> tuple[int, int]:
        value = Rows(tuple(Row(f"row {i}", (i / 3,) * 20) for i in range(num_rows)))
        tracemalloc.start()
        write_json(tmp_path / "a.json", value)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak, (tmp_path / "a.json").stat().st_size

    few, many = peak_and_size(500), peak_and_size(4000)
    # The text of the further rows alone would be all of the difference, a copy of them more.
    assert many[0] - few[0] < (many[1] - few[1]) / 20


@pytest.mark.parametrize("value", [float("nan"), {1, 2}])
def test_what_json_has_not_is_a_bug_and_leaves_nothing(tmp_path, value):
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "a.json", {"rows": [1, value]})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    write_text(path, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="Nothing was left behind"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize(
    ("provenance", "who"),
    [
        ('{"versions": {"quantdraft": "0.0.7"}}', r" \(written by quantdraft 0\.0\.7\)"),
        ("{}", ""),
        ("3", ""),
    ],
)
def test_a_record_of_another_schema_says_who_wrote_it(tmp_path, provenance, who):
    (tmp_path / "r.json").write_text(f'{{"schema_version": 99, "provenance": {provenance}}}')
    with pytest.raises(
        CheckpointError, match=rf"schema version 99{who}; .* reads 1\. Open it with"
    ):
        read_record(tmp_path / "r.json", Interval, 1)


def test_records_of_the_first_release_open():
    old = Path(__file__).parents[1] / "records"
    evaluation = read_evaluation(old / "evaluation-0.1.0.json")
    assert evaluation.verdict.decision == "go"
    assert "go" in render_terminal(evaluation)
    assert read_bench(old / "bench-0.1.0.json").points[0].arms["baseline"].steps[1].samples_ms
