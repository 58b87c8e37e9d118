"""MTP layers inside a draft's own checkpoint: no recipe loses them, and the ledger says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("llmcompressor")

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.checkpoints.heads.inside import inner_mtp, inner_names, inner_patterns
from quantdraft.checkpoints.reference import pair_dir
from quantdraft.checkpoints.stored_formats import matches
from quantdraft.checkpoints.weights import INDEX_FILE
from quantdraft.quantize.apply import applied_lines, apply
from quantdraft.quantize.ledger import byte_ledger
from quantdraft.quantize.recipe import Recipe, load_recipe
from tests.stored_heads import write_head

WIDTH = 128
VERBATIM = {
    "name": "verbatim",
    "summary": "FP8 by llm-compressor's own modifier, which loads the draft.",
    "backend": "llmcompressor",
    "modifiers": {
        "QuantizationModifier": {
            "targets": ["Linear"],
            "scheme": "FP8_DYNAMIC",
            "ignore": ["lm_head"],
        }
    },
}


@pytest.fixture(scope="module")
def with_mtp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3.5 of one layer, whose MTP layer transformers does not load."""
    from transformers import AutoModelForCausalLM, Qwen3_5TextConfig

    path = tmp_path_factory.mktemp("mtp") / "draft"
    config = Qwen3_5TextConfig(
        vocab_size=4096,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        layer_types=["full_attention"],
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(pair_dir() / "target" / name, path / name)
    tensors = load_file(path / "model.safetensors")
    own = {
        "mtp.fc.weight": torch.randn(WIDTH, 2 * WIDTH),
        "mtp.layers.0.mlp.down_proj.weight": torch.randn(WIDTH, WIDTH),
        "mtp.layers.0.self_attn.k_proj.weight": torch.randn(64, WIDTH),
        "mtp.norm.weight": torch.randn(WIDTH),
    }
    tensors |= {name: tensor.to(torch.bfloat16) for name, tensor in own.items()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def _recipe(name: str) -> Recipe:
    return Recipe.model_validate(VERBATIM) if name == "verbatim" else load_recipe(name)


@pytest.mark.parametrize("name", ["int4", "verbatim", "nf4", "identity"])
def test_no_recipe_loses_or_changes_them(with_mtp: Path, tmp_path: Path, name: str) -> None:
    if name == "nf4":
        pytest.importorskip("bitsandbytes")
    made = apply(_recipe(name), str(with_mtp), tmp_path / "out", device="cpu")
    before = load_file(with_mtp / "model.safetensors")
    inner = inner_mtp(made)
    assert inner.keys() == {each for each in before if each.startswith("mtp.")}
    for tensor, info in inner.items():
        after = load_file(made.path / info.file)[tensor]
        assert after.dtype == before[tensor].dtype
        assert torch.equal(after, before[tensor])
    (line,) = [line for line in applied_lines(made) if line.startswith("MTP:")]
    assert "(mtp: 4 tensors, 0.11 MB) are kept to the byte" in line
    assert json.loads((made.path / "quantdraft.json").read_text())["ledger"]["mtp"] in line
    if name in ("verbatim", "nf4"):  # beside an index, transformers would read it alone
        assert (made.path / INDEX_FILE).is_file()
        assert not (made.path / "model.safetensors").is_file()
    _require_excluded(made.quantization or {}, name)


def _require_excluded(quantization: dict[str, Any], name: str) -> None:
    if name == "nf4":
        assert "mtp" in quantization["llm_int8_skip_modules"]
    elif name != "identity":
        assert matches("mtp.layers.0.mlp.down_proj", quantization["ignore"])
        assert matches("draft_model.mtp.fc", quantization["ignore"])
        assert not matches("model.layers.0.mlp.down_proj", quantization["ignore"])


def test_a_step_does_not_read_them(with_mtp: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(with_mtp, plain)
    tensors = load_file(plain / "model.safetensors")
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith("mtp.")}
    save_file(rest, plain / "model.safetensors", metadata={"format": "pt"})
    assert byte_ledger(open_checkpoint(with_mtp)) == byte_ledger(open_checkpoint(plain))


def test_their_names_are_found_under_every_publishers_prefix() -> None:
    names = [
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.6.mlp.up_proj.weight",
        "model.layers.61.eh_proj.weight",
        "model.layers.61.self_attn.o_proj.weight",
        "model.mtp_layers.0.self_attn.o_proj.weight",
        "model.mtp_block.0.mlp.up_proj.weight",
        "mtp.layers.0.mlp.up_proj.weight",
        "model.nextn.0.mlp.up_proj.weight",
        "model.embed_tokens.weight",
    ]
    assert inner_names(names) == names[2:8]
    patterns = inner_patterns(names)
    modules = [name.removesuffix(".weight") for name in names]
    found = [name for name in modules if matches(f"draft_model.{name}", patterns)]
    assert found == modules[2:8]


def test_a_head_apart_is_no_part_of_a_model(tmp_path: Path) -> None:
    for layout in ("mtp-qwen3-next", "mtp-deepseek", "eagle3"):
        assert inner_mtp(open_checkpoint(write_head(tmp_path / layout, layout))) == {}
