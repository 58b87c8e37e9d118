"""Free and used memory, from files whose numbers are known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from quantdraft.checkpoints.tensors import free_memory
from quantdraft.checkpoints.tensors.free_memory import available_bytes
from quantdraft.measure.latency.memory import peak_bytes, reset_peak

CPU = torch.device("cpu")


@pytest.fixture
def system(tmp_path: Path, monkeypatch) -> Path:
    (tmp_path / "meminfo").write_text("MemTotal:  2000 kB\nMemAvailable:  1000 kB\n")
    monkeypatch.setattr(free_memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(free_memory, "CGROUP", tmp_path)
    return tmp_path


def write_container(directory: Path, limit: str) -> None:
    (directory / "memory.max").write_text(limit)
    (directory / "memory.current").write_text("400000\n")
    (directory / "memory.stat").write_text("anon 300000\ninactive_file 100000\n")


def test_without_a_container_it_is_what_the_system_has(system):
    assert available_bytes(CPU) == 1000 * 1024


def test_a_containers_limit_counts_less_what_is_used_and_cannot_be_reclaimed(system):
    write_container(system, "900000\n")
    assert available_bytes(CPU) == 900_000 - 400_000 + 100_000


def test_a_container_without_a_limit_says_nothing(system):
    write_container(system, "max\n")
    assert available_bytes(CPU) == 1000 * 1024


def test_unknown_stays_unknown(system):
    (system / "meminfo").unlink()
    assert available_bytes(CPU) is None


def test_the_peak_holds_what_was_allocated_and_freed():
    before = peak_bytes(CPU)
    size = before + (64 << 20)  # more than everything up to now, so the peak must grow
    block = torch.ones(size // 4)
    del block
    assert peak_bytes(CPU) >= size


class Allocator:
    """What torch.cuda says of a card with 80 bytes: 30 in use, 20 cached, of which 12 for good."""

    def __init__(self) -> None:
        self.cached = 20

    def empty_cache(self) -> None:
        """Give back what no recorded graph's pool holds."""
        self.cached = 12

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        """Return free and total bytes."""
        return 80 - 30 - self.cached, 80

    def memory_reserved(self, device: torch.device) -> int:
        """Return what the allocator holds."""
        return 30 + self.cached

    def memory_allocated(self, device: torch.device) -> int:
        """Return what is in use."""
        return 30

    def reset_peak_memory_stats(self, device: torch.device) -> None:
        """Forget nothing: 30 bytes are in use still."""

    def max_memory_allocated(self, device: torch.device) -> int:
        """Return the peak since the reset."""
        return 33


def test_what_the_pools_of_recorded_graphs_hold_is_not_available(monkeypatch):
    monkeypatch.setattr(torch, "cuda", Allocator())
    assert available_bytes(torch.device("cuda")) == 80 - 30 - 12


def test_a_peak_starts_from_what_is_allocated_already(monkeypatch):
    monkeypatch.setattr(torch, "cuda", Allocator())
    before = reset_peak(torch.device("cuda"))
    assert peak_bytes(torch.device("cuda")) - before == 3
    assert reset_peak(CPU) == 0
