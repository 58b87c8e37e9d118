"""What is recorded is true of this machine and of these files."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from types import SimpleNamespace

import torch

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.checkpoints.tensors import devices
from quantdraft.record.provenance import directory_sha256, environment, model_identity
from tests.stored import write_checkpoint


def test_environment_names_versions_and_machine() -> None:
    import numpy

    found = environment()
    assert found["versions"]["numpy"] == numpy.__version__
    assert found["python"] == platform.python_version()
    assert found["cpu"]
    assert found["device_name"] is None


def test_environment_names_the_card_its_driver_and_its_libraries(monkeypatch) -> None:
    card = SimpleNamespace(
        major=9, minor=0, multi_processor_count=132, total_memory=80 * 10**9, name="Card"
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card")
    monkeypatch.setattr(devices, "driver_version", lambda: "580.65.06")
    found = environment("cuda")
    assert found["gpu"] == {
        "capability": "9.0",
        "num_multiprocessors": 132,
        "memory_bytes": 80 * 10**9,
        "driver": "580.65.06",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    assert "gpu" not in environment("cpu")


def test_hashes_are_those_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_bytes(b"a")
    (tmp_path / "skip.json").write_bytes(b"b")
    hashes = directory_sha256(tmp_path, exclude=frozenset({"skip.json"}))
    assert hashes == {"sub/a.txt": hashlib.sha256(b"a").hexdigest()}


def test_identity_follows_the_weights(tmp_path: Path) -> None:
    one = model_identity(open_checkpoint(write_checkpoint(tmp_path / "one")), "owner/one")
    assert one["name"] == "owner/one"
    assert set(one["sha256"]) == {"config.json", "model.safetensors"}
    two = tmp_path / "two"
    write_checkpoint(two)
    raw = bytearray((two / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (two / "model.safetensors").write_bytes(bytes(raw))
    changed = model_identity(open_checkpoint(two))["sha256"]
    assert changed["config.json"] == one["sha256"]["config.json"]
    assert changed["model.safetensors"] != one["sha256"]["model.safetensors"]
