"""The order in which servers are asked, and the arms that addresses are for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from quantdraft.errors import EngineError, OptionError
from quantdraft.measure.served.fleet import ARMS, Fleet, visits
from quantdraft.measure.served.serve import Memory, memory_for, parse_urls


def test_arms_come_forward_and_back_and_take_turns_at_being_first():
    arms = ["a", "b", "c", "d"]
    orders = [visits(arms, prompt) for prompt in range(4)]
    for order in orders:
        assert order == order[::-1]
        assert sorted(order) == sorted(arms * 2)
    assert [order[0] for order in orders] == arms


def test_urls_name_arms_and_a_bare_one_is_the_candidates():
    found = parse_urls(["http://h:1/?a=b", "baseline=http://h:2"])
    assert found == {"candidate": "http://h:1/?a=b", "baseline": "http://h:2"}
    with pytest.raises(OptionError, match="second server for candidate"):
        parse_urls(["http://h:1", "candidate=http://h:2"])


class FakeFleet:
    """An installation, an engine and its clients that note what is started and asked."""

    title, server_bytes, url = "vLLM", 10**9, "http://here"

    def __init__(self, device_type: str, *failing: str) -> None:
        self.device_type, self.failing = device_type, failing
        self.events: list[str] = []

    @contextlib.contextmanager
    def start(self, plan: Any, draft: Path | None, log: Path) -> Iterator[Any]:
        arm = log.stem.removeprefix("vllm-")
        self.events.append(f"start {arm}")
        yield SimpleNamespace(
            url=self.url, wait_until_healthy=lambda: self.wait(arm), has_failed=lambda: False
        )

    def wait(self, arm: str) -> None:
        self.events.append(f"wait {arm}")
        if arm in self.failing:
            raise EngineError(f"no room for {arm}")

    def client(self, url: str) -> Any:
        answer = SimpleNamespace(num_decoded=1)
        return SimpleNamespace(complete=lambda request: answer, counters=lambda: 0)

    def fleet(self, run_dir: Path) -> Fleet:
        drafts = dict.fromkeys(ARMS)
        return Fleet(self, self, None, drafts, run_dir)  # type: ignore[arg-type]


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_servers_on_a_gpu_start_when_the_one_before_is_up(tmp_path, device_type):
    fake = FakeFleet(device_type)
    fake.fleet(tmp_path).ask_together([], 1, lambda number: None)
    starts, waits = [f"start {arm}" for arm in ARMS], [f"wait {arm}" for arm in ARMS]
    if device_type == "cuda":
        assert fake.events == [event for pair in zip(starts, waits, strict=True) for event in pair]
    else:
        assert fake.events[: len(ARMS)] == starts
        assert sorted(fake.events[len(ARMS) :]) == sorted(waits)


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_every_server_that_does_not_come_up_is_named(tmp_path, device_type):
    fake = FakeFleet(device_type, "baseline", "candidate")
    found = fake.fleet(tmp_path).ask_together([], 1, lambda number: None)
    assert found.undefined == {
        "baseline": "no room for baseline",
        "candidate": "no room for candidate",
    }


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        (1e9, Memory(True, 0.9 * 70 / 80 / 4)),  # 4 x (2 x 1e9 x 2 x 1.2 + 1 GB) of 63 GB
        (8e9, Memory(False, 0.95 * 70 / 80)),
    ],
)
def test_every_server_on_a_gpu_is_told_its_share_of_memory(monkeypatch, elements, expected):
    given_back = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append(True))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70 * 10**9, 80 * 10**9))
    model = SimpleNamespace(tensors={"weight": SimpleNamespace(num_bytes=2 * elements)})
    subject = SimpleNamespace(device=torch.device("cuda"), models=SimpleNamespace(baseline=model))
    run: Any = SimpleNamespace(target=model, subject=subject)
    fake: Any = FakeFleet("cuda")
    assert memory_for(run, fake, "bfloat16") == pytest.approx(expected)
    assert given_back
