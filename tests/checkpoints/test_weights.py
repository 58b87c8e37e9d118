"""Headers are read right, and every defect of a file is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantdraft.checkpoints.weights import TensorInfo, read_header, read_tensors
from quantdraft.errors import CheckpointError
from tests.stored import write_safetensors

TENSORS = {"a": ("BF16", (3, 5)), "b": ("I32", (2,))}


def test_header_gives_type_shape_and_bytes(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", TENSORS)
    tensors = read_tensors(tmp_path)
    assert tensors == {
        "a": TensorInfo("BF16", (3, 5), "model.safetensors"),
        "b": TensorInfo("I32", (2,), "model.safetensors"),
    }
    assert [info.num_bytes for info in tensors.values()] == [30, 8]


def test_header_agrees_with_safetensors_own_reader(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    from safetensors.numpy import save_file

    save_file({"x": numpy.zeros((4, 2), "float16")}, tmp_path / "model.safetensors")
    assert read_tensors(tmp_path)["x"] == TensorInfo("F16", (4, 2), "model.safetensors")


def test_truncated_file_is_named_with_expected_and_found_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, TENSORS)
    whole = path.stat().st_size
    write_safetensors(path, TENSORS, cut_bytes=7)
    with pytest.raises(CheckpointError) as caught:
        read_tensors(tmp_path)
    message = str(caught.value)
    assert "model.safetensors' is truncated" in message
    assert f"expected {whole} bytes, found {whole - 7}" in message
    assert "\n" not in message


@pytest.mark.parametrize("size", [0, 4, 20])
def test_file_cut_inside_its_header_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, TENSORS)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="truncated or not safetensors"):
        read_header(path)


def test_longer_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, TENSORS)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(CheckpointError, match="longer than its header says"):
        read_header(path)


def test_shards_are_read_through_the_index(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "one.safetensors", {"a": TENSORS["a"]})
    write_safetensors(tmp_path / "two.safetensors", {"b": TENSORS["b"]})
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert {n: t.file for n, t in read_tensors(tmp_path).items()} == index["weight_map"]


def test_missing_shard_is_named(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "gone.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"lacks the shard 'gone\.safetensors'"):
        read_tensors(tmp_path)


def test_index_that_leads_outside_the_directory_is_refused(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "../other.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside its directory"):
        read_tensors(tmp_path)


def test_pickle_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match="a pickle can run code"):
        read_tensors(tmp_path)
