"""Timing, with steps whose length is known."""

from __future__ import annotations

import pytest
import torch

from quantdraft.measure.latency import interleaved as latency
from quantdraft.measure.latency.interleaved import MIN_BLOCKS, time_interleaved
from tests.clock import Clock

CPU = torch.device("cpu")


def test_every_block_runs_forwards_and_backwards_and_keeps_every_sample():
    calls: list[str] = []
    steps = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    timed = time_interleaved(steps, CPU, max_seconds=0.0)
    assert "".join(calls[:6]) == "abccba"
    blocks = ["".join(calls[i : i + 6]) for i in range(0, len(calls), 6)]
    assert all(block[:3] == block[:2:-1] for block in blocks)
    assert len(set(blocks)) > 1  # no arm keeps its place in the order
    assert {len(samples.samples_ms) for samples in timed.values()} == {MIN_BLOCKS}


def test_a_rehearsed_step_runs_untimed_just_before_it_is_timed():
    calls: list[str] = []
    steps = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    rehearsals = {"a": lambda: calls.append("r"), "b": None}
    time_interleaved(steps, CPU, max_seconds=0.0, rehearsals=rehearsals)
    assert "".join(calls[:6]) == "rabbra"


def test_steps_in_a_row_share_one_reading_of_the_clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(latency, "time", clock)
    steps = {"a": lambda: clock.sleep(0.004)}
    timed = time_interleaved(
        steps, CPU, 0.0, rehearsals={"a": lambda: clock.sleep(1.0)}, repeats={"a": 3}
    )
    assert timed["a"].samples_ms == pytest.approx([4.0] * MIN_BLOCKS)


def test_a_gpus_steps_run_in_a_row_as_often_as_asked(monkeypatch):
    monkeypatch.setattr(latency, "synchronize", lambda device: None)
    calls: list[str] = []
    steps = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    cuda = torch.device("cuda")
    time_interleaved(steps, cuda, 0.0, repeats={"b": 2}, min_blocks=1, num_warmup_blocks=1)
    assert "".join(calls[:20]) == "a" * 8 + "bbbb" + "a" * 8


def test_a_step_twice_as_long_takes_twice_as_long(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(latency, "time", clock)
    steps = {"one": lambda: clock.sleep(0.004), "two": lambda: clock.sleep(0.008)}
    timed = time_interleaved(steps, CPU, max_seconds=0.0)
    assert timed["one"].samples_ms == pytest.approx([4.0] * MIN_BLOCKS)
    assert timed["two"].samples_ms == pytest.approx([8.0] * MIN_BLOCKS)


def test_blocks_go_on_for_as_long_as_asked(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(latency, "time", clock)
    timed = time_interleaved({"one": lambda: clock.sleep(0.01)}, CPU, max_seconds=1.0, min_blocks=3)
    assert len(timed["one"].samples_ms) in {50, 51}  # of 20 ms each, until the time is over
