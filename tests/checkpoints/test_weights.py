"""Headers are read right, and every defect of a file is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quantdraft.checkpoints.weights import (
    INDEX_FILE,
    TensorInfo,
    copy_without,
    read_header,
    read_tensors,
    stray_weights,
    weight_files,
)
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


def sharded(directory: Path, *files: dict[str, Any], **listed: str) -> Path:
    """Shards a, b, … and an index of all their tensors; `listed` changes where it says they are."""
    directory.mkdir(exist_ok=True)
    weight_map = {}
    for letter, tensors in zip("abc", files, strict=False):
        write_safetensors(directory / f"{letter}.safetensors", tensors)
        weight_map |= dict.fromkeys(tensors, f"{letter}.safetensors")
    (directory / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map | listed}))
    return directory


ONE, OTHER = {"x": ("F32", (2,))}, {"y": ("F32", (2,))}


def test_strays_beside_an_index_are_not_read(tmp_path: Path) -> None:
    directory = sharded(tmp_path, ONE, OTHER)
    for name in ("consolidated.safetensors", "adapter_model.safetensors"):
        write_safetensors(directory / name, {"z": ("F32", (2,))})
    (directory / "pytorch_model.bin").write_bytes(b"")
    assert read_tensors(directory).keys() == {"x", "y"}
    assert weight_files(directory) == ["a.safetensors", "b.safetensors"]
    assert stray_weights(directory) == ["adapter_model.safetensors", "consolidated.safetensors"]


@pytest.mark.parametrize("listed", [{}, {"x": "model.safetensors"}, {"x": "gone.safetensors"}])
def test_a_single_file_beside_an_index_of_others_is_refused(
    tmp_path: Path, listed: dict[str, str]
) -> None:
    directory = sharded(tmp_path, ONE, OTHER, **listed)
    write_safetensors(directory / "model.safetensors", ONE)
    with pytest.raises(
        CheckpointError, match=r"holds both model\.safetensors and .*Remove the one"
    ):
        weight_files(directory)


def test_an_index_of_the_single_file_is_no_contradiction(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", ONE)
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": {"x": "model.safetensors"}}))
    assert weight_files(tmp_path) == ["model.safetensors"]


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'x' twice, in 'a\.safe.* and in 'b\.safe"):
        read_tensors(sharded(tmp_path, ONE | {"w": ("F32", (2,))}, ONE | OTHER))


def test_a_tensor_that_the_index_does_not_list_is_refused(tmp_path: Path) -> None:
    directory = sharded(tmp_path, ONE, OTHER)
    write_safetensors(directory / "b.safetensors", OTHER | {"z": ("F32", (2,))})
    with pytest.raises(CheckpointError, match=r"does not list 'z', which 'b\.safetensors' holds"):
        read_tensors(directory)


def test_a_copy_without_a_tensor_has_the_others_bytes(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    kept = {"a": np.arange(6, dtype=np.int32), "c": np.ones((2, 3), np.float16)}
    save_file({**kept, "b": np.zeros(5, np.float32)}, tmp_path / "all", {"format": "pt"})
    copy_without(tmp_path / "all", tmp_path / "less", {"b"})
    found = load_file(tmp_path / "less")
    assert found.keys() == kept.keys()
    assert all((found[name] == kept[name]).all() for name in kept)
    assert read_header(tmp_path / "less").keys() == kept.keys()
