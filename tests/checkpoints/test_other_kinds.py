"""What is no model directory is named for what it is, with the way to go on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from quantdraft.checkpoints.checkpoint import open_checkpoint, require_tokenizer
from quantdraft.checkpoints.other_kinds import split_revision
from quantdraft.checkpoints.tensors.loading import load_tokenizer, resolve_model
from quantdraft.checkpoints.vocabulary import read_vocabulary
from quantdraft.errors import CheckpointError
from tests.stored import LLAMA_CONFIG, write_checkpoint

ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "owner/base"}
MLX = LLAMA_CONFIG | {"quantization": {"bits": 4, "group_size": 64}}
DIRECTORIES: list[tuple[dict[str, Any], str]] = [
    (
        {"adapter_config.json": ADAPTER, "adapter_model.safetensors": ""},
        r"is a PEFT adapter .* of the model 'owner/base'.*merge_and_unload\(\); m.save_pretrained",
    ),
    ({"m-Q4_K.gguf": ""}, r"is a GGUF directory.*--engine llamacpp.*gguf_file='m-Q4_K.gguf'"),
    ({"config.json": LLAMA_CONFIG, "m.gguf": ""}, r"is a GGUF directory.*gguf_file='m.gguf'"),
    ({"config.json": LLAMA_CONFIG, "model.onnx": ""}, r"ONNX export \('model.onnx'\)"),
    ({"config.json": LLAMA_CONFIG, "onnx/model.onnx": ""}, "ONNX export"),
    ({"model_index.json": {}, "unet/config.json": {}}, "a diffusers pipeline"),
    ({"openvino_model.bin": "", "config.json": LLAMA_CONFIG}, "OpenVINO"),
    ({"params.json": {}, "consolidated.00.pth": ""}, "original format of Meta or Mistral"),
    ({"config.json": LLAMA_CONFIG, "pytorch_model.bin": ""}, "pickle weights.*safe_serialization"),
    ({"config.json": LLAMA_CONFIG, "flax_model.msgpack": ""}, "Flax or TensorFlow"),
    ({"config.json": LLAMA_CONFIG, "rank0.engine": ""}, "engine of TensorRT-LLM"),
    ({"config.json": MLX, "model.safetensors": ""}, r"by MLX \(4 bits in groups of 64\).*--deq"),
    ({"config.json": LLAMA_CONFIG}, "holds no weights"),
    ({"readme.txt": ""}, "has no config.json"),
]


def build(directory: Path, files: dict[str, Any]) -> Path:
    """A directory with these files: JSON, or a text."""
    for name, content in files.items():
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    return directory


@pytest.mark.parametrize(("files", "said"), DIRECTORIES, ids=[each[1][:20] for each in DIRECTORIES])
def test_a_directory_of_another_kind_is_named(
    tmp_path: Path, files: dict[str, Any], said: str
) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        open_checkpoint(build(tmp_path / "d", files))
    assert str(tmp_path / "d") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("m.gguf", r"is a GGUF file.*gguf_file='m.gguf'"),
        ("model.safetensors", "is a file of a model. Give its directory"),
        ("config.json", "is a file of a model. Give its directory"),
        ("pytorch_model.bin", "pickle weights"),
        ("model.onnx", "is an ONNX file"),
        ("notes.txt", "is a file, not a model directory"),
    ],
)
def test_a_file_instead_of_a_directory_is_named(tmp_path: Path, name: str, said: str) -> None:
    build(tmp_path, {name: ""})
    for read in (open_checkpoint, lambda path: resolve_model(str(path))):
        with pytest.raises(CheckpointError, match=said):
            read(tmp_path / name)


def test_a_pipe_instead_of_a_directory_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p")
    with pytest.raises(CheckpointError, match="is a pipe, not a model directory"):
        resolve_model(str(tmp_path / "p"))


def test_a_tokenizer_with_code_of_its_own_is_no_missing_file(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m", {})
    own = {"auto_map": {"AutoTokenizer": ["mine.Tokenizer", None]}, "tokenizer_class": "Mine"}
    build(tmp_path / "m", {"tokenizer_config.json": own, "mine.py": "raise SystemExit\n"})
    for read in (
        lambda path: require_tokenizer(open_checkpoint(path)),
        load_tokenizer,
        read_vocabulary,
    ):
        with pytest.raises(CheckpointError, match=r"needs code of its own \('auto_map'.*capture"):
            read(tmp_path / "m")


@pytest.mark.parametrize(
    ("given", "name", "revision"),
    [
        ("owner/name", "owner/name", None),
        ("owner/name@v1.0", "owner/name", "v1.0"),
        ("owner/name@refs/pr/3", "owner/name", "refs/pr/3"),
        ("./a/b@c", "./a/b@c", None),
    ],
)
def test_a_hub_id_names_its_revision(
    monkeypatch: pytest.MonkeyPatch, given: str, name: str, revision: str | None
) -> None:
    assert split_revision(given) == (name, revision)
    asked = []

    def download(model: str, revision: str | None, **_: object) -> str:
        asked.append((model, revision))
        return "/snapshot"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    if given.startswith("."):
        with pytest.raises(CheckpointError, match="owner/name@revision"):
            resolve_model(given)
    else:
        assert resolve_model(given) == Path("/snapshot")
        assert asked == [(name, revision)]
