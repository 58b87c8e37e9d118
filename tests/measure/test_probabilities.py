"""Keep probabilities on the disk: what was put is there for the next replay of the same."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from quantdraft.errors import OutputError
from quantdraft.measure.probabilities import MemoryStore, open_file_store

LENGTHS = [3, 0, 2]


def open_keeps(run_dir, inputs=None, lengths=LENGTHS):
    return open_file_store(run_dir, "keep-baseline", inputs or {"draft": "a"}, lengths)


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
