"""A model directory is opened from its headers, and what it lacks is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantdraft.checkpoints.checkpoint import open_checkpoint, require_tokenizer
from quantdraft.errors import CheckpointError
from tests.stored import LLAMA_CONFIG, llama_tensors, write_checkpoint


def test_plain_checkpoint(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "draft"))
    assert checkpoint.name == "draft"
    assert checkpoint.has_tied_head
    assert checkpoint.quantization is None
    assert checkpoint.manifest is None
    assert checkpoint.revision is None


def test_own_head_is_not_tied(tmp_path: Path) -> None:
    tensors = llama_tensors() | {"lm_head.weight": ("BF16", (512, 256))}
    config = LLAMA_CONFIG | {"tie_word_embeddings": False}
    assert not open_checkpoint(write_checkpoint(tmp_path, tensors, config)).has_tied_head


def test_hub_snapshot_has_a_name_and_a_revision(tmp_path: Path) -> None:
    path = tmp_path / "models--owner--small-draft" / "snapshots" / "abc123"
    checkpoint = open_checkpoint(write_checkpoint(path))
    assert (checkpoint.name, checkpoint.revision) == ("small-draft", "abc123")


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model directory"):
        open_checkpoint(tmp_path / "nowhere")


def test_missing_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        open_checkpoint(tmp_path)


def test_broken_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        open_checkpoint(tmp_path)


def test_missing_tokenizer(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path))
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        require_tokenizer(checkpoint)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        require_tokenizer(checkpoint)  # merges.txt is still missing
    (tmp_path / "merges.txt").write_text("")
    require_tokenizer(checkpoint)


def test_foreign_manifest_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "quantdraft.json").write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(CheckpointError, match="schema version 99"):
        open_checkpoint(tmp_path)


def test_quantization_config_is_found_in_the_text_config(tmp_path: Path) -> None:
    config = {"text_config": LLAMA_CONFIG | {"quantization_config": {"quant_method": "awq"}}}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, config=config))
    assert checkpoint.quantization == {"quant_method": "awq"}
