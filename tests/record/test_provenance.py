"""What is recorded is true of this machine and of these files."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.record.provenance import directory_sha256, environment, model_identity
from tests.stored import write_checkpoint


def test_environment_names_versions_and_machine() -> None:
    import numpy

    found = environment()
    assert found["versions"]["numpy"] == numpy.__version__
    assert found["python"] == platform.python_version()
    assert found["cpu"]
    assert found["device_name"] is None


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
