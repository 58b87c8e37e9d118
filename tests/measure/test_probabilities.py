"""Keep probabilities on the disk: what was put is there for the next replay of the same."""

from __future__ import annotations

import errno
import os
import threading
import time

import numpy as np
import pytest

from quantdraft.errors import OutputError
from quantdraft.measure.probabilities import MemoryStore, open_store_at

LENGTHS = [3, 0, 2]


def open_keeps(run_dir, inputs=None, lengths=LENGTHS):
    path = run_dir / "stages" / "keep-baseline.f64"
    return open_store_at(path, inputs or {"draft": "a"}, lengths)


def as_lists(keeps) -> list[list[float]]:
    return [each.tolist() for each in keeps.arrays()]


def test_memory_and_disk_hold_the_same(tmp_path):
    with open_keeps(tmp_path) as disk:
        for keeps in (disk, MemoryStore(LENGTHS)):
            keeps.put(0, 1, np.array([0.5, 1.0]))
            keeps.put(0, 0, np.array([0.25]))
            keeps.put(2, 0, np.array([0.0, 1e-300]))
            assert as_lists(keeps) == [[0.25, 0.5, 1.0], [], [0.0, 1e-300]]


def test_a_prompt_is_there_when_all_of_its_tokens_are(tmp_path):
    with open_keeps(tmp_path) as keeps:
        keeps.put(0, 0, np.array([0.5, 0.5, 0.5]))
        keeps.put(2, 0, np.array([0.5]))
    with open_keeps(tmp_path) as again:
        assert [again.has(prompt) for prompt in range(3)] == [True, True, False]
        assert not again.is_whole
        again.put(2, 1, np.array([1.0]))
    with open_keeps(tmp_path) as whole:
        assert whole.is_whole


@pytest.mark.parametrize("change", [{"inputs": {"draft": "b"}}, {"lengths": [2, 0, 3]}])
def test_another_replay_starts_anew_and_does_not_touch_what_one_still_reads(tmp_path, change):
    with open_keeps(tmp_path) as keeps:
        keeps.put(0, 0, np.array([0.5, 0.5, 0.5]))
        read = keeps.arrays()
    with open_keeps(tmp_path, **change) as other:
        assert not other.has(0)
        assert np.isnan(other.arrays()[0]).all()
    assert read[0].tolist() == [0.5, 0.5, 0.5]
    assert sorted(path.name for path in (tmp_path / "stages").iterdir()) == [
        "keep-baseline.f64",
        "keep-baseline.json",
    ]


def test_a_full_disk_is_met_at_the_start_in_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutputError, match="No space left on device"), open_keeps(tmp_path):
        pass
    monkeypatch.undo()
    with open_keeps(tmp_path) as keeps:
        assert not keeps.has(0)


def test_a_cut_file_is_not_believed(tmp_path):
    with open_keeps(tmp_path) as keeps:
        keeps.put(0, 0, np.array([0.5, 0.5, 0.5]))
    os.truncate(tmp_path / "stages" / "keep-baseline.f64", 8)
    with open_keeps(tmp_path) as again:
        assert not again.has(0)


def fill(keeps) -> None:
    keeps.put(0, 0, np.array([0.5, 0.25, 1.0]))
    keeps.put(2, 0, np.array([0.0, 1.0]))


def change_a_number(stages):
    file = stages / "keep-baseline.f64"
    file.write_bytes(np.array([0.5, 0.25, 0.0, 0.0, 1.0]).tobytes())  # numbers like any others


@pytest.mark.parametrize(
    "damage",
    [
        change_a_number,
        lambda stages: os.truncate(stages / "keep-baseline.f64", 16),
        lambda stages: (stages / "keep-baseline.json").write_text('{"key": '),
    ],
)
def test_what_is_damaged_is_not_believed_and_a_line_says_so(tmp_path, damage, notes):
    with open_keeps(tmp_path) as keeps:
        fill(keeps)
    with open_keeps(tmp_path) as again:
        assert again.is_whole
    assert notes.messages == []
    damage(tmp_path / "stages")
    with open_keeps(tmp_path) as damaged:
        assert not any(damaged.has(prompt) for prompt in (0, 2))
        fill(damaged)
    (line,) = notes.messages
    assert "keep-baseline.f64' is damaged" in line
    with open_keeps(tmp_path) as mended:
        assert mended.is_whole


def test_numbers_that_are_no_probabilities_are_computed_again(tmp_path):
    with open_keeps(tmp_path) as keeps:
        keeps.put(0, 0, np.array([0.5, 0.5, 0.5]))
        keeps.put(2, 0, np.array([7.0, 0.5]))
    with open_keeps(tmp_path) as again:
        assert [again.has(0), again.has(2)] == [True, False]


def test_a_second_replay_of_the_same_waits_for_the_first_and_takes_its_numbers(tmp_path, notes):
    found = []

    def second():
        with open_keeps(tmp_path) as keeps:
            found.append(keeps.is_whole)

    with open_keeps(tmp_path) as first:
        waiting = threading.Thread(target=second)
        waiting.start()
        while not notes.messages:  # it says that it waits
            time.sleep(0.01)
        fill(first)
        assert found == []
    waiting.join()
    assert found == [True]
