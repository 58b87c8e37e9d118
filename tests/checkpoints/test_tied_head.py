"""A head that is stored under the tied flag is a copy of the embedding, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quantdraft.checkpoints.checkpoint import Checkpoint, open_checkpoint
from quantdraft.checkpoints.tied_head import TIED_BY_DEFAULT
from quantdraft.errors import CheckpointError
from quantdraft.quantize.ledger import byte_ledger
from tests.stored import LLAMA_CONFIG, llama_tensors, write_checkpoint

HEAD = {"lm_head.weight": ("BF16", (512, 256))}


def write(path: Path, changed_byte: int | None = None, **config: Any) -> Checkpoint:
    """A model whose embedding and head are zeros, but for a byte of the file."""
    write_checkpoint(path, llama_tensors() | HEAD, LLAMA_CONFIG | config)
    if changed_byte is not None:
        with (path / "model.safetensors").open("r+b") as file:
            file.seek(changed_byte, 2)
            file.write(b"\1")
    return open_checkpoint(path)


def test_a_copy_of_the_embedding_is_left_out(tmp_path: Path) -> None:
    copied = write(tmp_path / "copied")
    plain = open_checkpoint(write_checkpoint(tmp_path / "plain"))
    assert copied.has_tied_head
    assert copied.copies == ("lm_head.weight",)
    assert copied.tensors == plain.tensors
    assert byte_ledger(copied) == byte_ledger(plain)


def test_a_bias_is_no_head_of_its_own(tmp_path: Path) -> None:
    """CTRL adds one to what its embedding table gives."""
    tensors = llama_tensors() | {"lm_head.bias": ("BF16", (512,))}
    found = open_checkpoint(write_checkpoint(tmp_path, tensors))
    assert found.has_tied_head
    assert not found.copies


def test_a_head_that_differs_in_its_last_byte_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="transformers uses that head, vLLM the table"):
        write(tmp_path, changed_byte=-1)


def test_the_flag_may_stand_in_the_text_config(tmp_path: Path) -> None:
    nested = {"model_type": "gemma3", "text_config": LLAMA_CONFIG}
    del nested["text_config"]["model_type"]
    write(tmp_path / "model", changed_byte=-1, tie_word_embeddings=False)
    (tmp_path / "model" / "config.json").write_text(json.dumps(nested))
    with pytest.raises(CheckpointError, match="tie_word_embeddings true"):
        open_checkpoint(tmp_path / "model")


@pytest.mark.parametrize(("kind", "is_tied"), [("llama", False), ("gemma2", True)])
def test_without_a_flag_the_architectures_own_counts(
    tmp_path: Path, kind: str, is_tied: bool
) -> None:
    silent = {k: v for k, v in LLAMA_CONFIG.items() if k != "tie_word_embeddings"}
    path = write_checkpoint(tmp_path, llama_tensors() | HEAD, silent | {"model_type": kind})
    assert open_checkpoint(path).has_tied_head == is_tied


def test_a_quantized_head_under_the_flag_is_refused(tmp_path: Path) -> None:
    packed = {
        "lm_head.weight_packed": ("I32", (512, 32)),
        "lm_head.weight_scale": ("BF16", (512, 1)),
    }
    with pytest.raises(CheckpointError, match=r"lm_head\.weight_packed"):
        open_checkpoint(write_checkpoint(tmp_path, llama_tensors() | packed))


def test_a_draft_head_keeps_the_head_it_brings(tmp_path: Path) -> None:
    eagle = write(tmp_path, changed_byte=-1, architectures=["LlamaForCausalLMEagle3"])
    assert "lm_head.weight" in eagle.tensors


def test_the_types_that_are_tied_by_default_are_those_of_transformers() -> None:
    from transformers import CONFIG_MAPPING

    assert all(CONFIG_MAPPING[kind].tie_word_embeddings for kind in TIED_BY_DEFAULT)
    assert not any(CONFIG_MAPPING[kind].tie_word_embeddings for kind in ("llama", "qwen2", "phi3"))
