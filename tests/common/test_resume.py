"""Stages of a run are computed once for the same inputs."""

from __future__ import annotations

from quantdraft.common.resume import stage


def test_a_stage_is_computed_once_and_again_when_its_inputs_change(tmp_path):
    calls: list[int] = []

    def compute() -> list[float]:
        calls.append(1)
        return [0.1, 0.2]

    first = stage(tmp_path, "keep", {"k": 1}, list[float], compute)
    again = stage(tmp_path, "keep", {"k": 1}, list[float], compute)
    assert first == again == [0.1, 0.2]
    assert len(calls) == 1
    stage(tmp_path, "keep", {"k": 2}, list[float], compute)
    assert len(calls) == 2


def test_a_torn_stage_is_computed_again(tmp_path):
    stage(tmp_path, "keep", {}, list[float], lambda: [1.0])
    (tmp_path / "stages" / "keep.json").write_text('{"key": "a')
    assert stage(tmp_path, "keep", {}, list[float], lambda: [2.0]) == [2.0]
