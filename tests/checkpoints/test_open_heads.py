"""Heads whose maps, sizes or layers cannot be: each is refused by name, before anything is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.checkpoints.heads.maps import target_ids
from quantdraft.checkpoints.heads.opening import open_head
from quantdraft.engines.findings import Draft
from quantdraft.engines.registry import engine_named
from quantdraft.errors import CheckpointError
from quantdraft.quantize.apply import apply
from quantdraft.workflows.export.export import ExportSettings, export
from quantdraft.workflows.export.heads import head_engine
from tests.stored_heads import DRAFT_VOCAB, HIDDEN, VOCAB, edit_head, write_head

Edit = tuple[str, dict[str, Any], dict[str, Any], str]
OFFSETS = torch.arange(DRAFT_VOCAB) * 3
KNOWN = torch.arange(VOCAB) % 4 == 0
BF16 = torch.bfloat16


def _at(tensor: torch.Tensor, index: int, value: Any) -> torch.Tensor:
    changed = tensor.clone()
    changed[index] = value
    return changed


BROKEN: dict[str, Edit] = {
    "zero": ("eagle3", {"d2t": OFFSETS * 0}, {}, "disagree on .*zero throughout"),
    "zero-alone": ("eagle3", {"d2t": OFFSETS * 0, "t2d": None}, {}, "no 't2d' says so"),
    "outside": ("eagle3", {"d2t": _at(OFFSETS, 7, 600)}, {}, r"outside .* 512 \(draft id 7 to 607"),
    "below": ("eagle3", {"d2t": _at(OFFSETS, 7, -8)}, {}, r"outside .*draft id 7 to -1"),
    "twice": ("eagle3", {"d2t": _at(OFFSETS, 7, 17)}, {}, "draft ids 6 and 7 to 24"),
    "witness": ("eagle3", {"t2d": _at(KNOWN, 8, False)}, {}, "disagree on 1 ids .* has id 8"),
    "ids": ("eagle3", {"d2t": torch.arange(DRAFT_VOCAB) * 4}, {}, "ids, where offsets belong"),
    "floats": ("eagle3", {"d2t": OFFSETS.to(BF16)}, {}, "'d2t' is stored as BF16"),
    "long": ("eagle3", {"d2t": torch.arange(130) * 2}, {}, r"shape \[130\], .*draft_vocab_size"),
    "t2d-long": ("eagle3", {"t2d": torch.ones(513, dtype=torch.bool)}, {}, r"\[513\].* 512"),
    "t2d-ints": ("eagle3", {"t2d": KNOWN.long()}, {}, "'t2d' is stored as I64"),
    "no-map": ("eagle3", {"d2t": None, "t2d": None}, {}, "there is no 'd2t'"),
    "no-head": ("eagle3", {"lm_head.weight": None}, {}, "there is no 'lm_head.weight'"),
    "rows": ("eagle3", {}, {"draft_vocab_size": 64}, "'lm_head.weight' has 128 rows"),
    "too-many": ("eagle3", {}, {"draft_vocab_size": 1024}, "1024, above vocab_size, 512"),
    "nested": ("eagle3-speculators", {}, {"draft_vocab_size": 64}, "128 rows.*size is 64"),
    "nested-map": ("eagle3-speculators", {"d2t": OFFSETS * 0}, {}, "zero throughout"),
    "nested-table": (
        "eagle3-speculators",
        {"embed_tokens.weight": torch.zeros(500, HIDDEN, dtype=BF16)},
        {},
        "'embed_tokens.weight' has 500 rows, and vocab_size is 512",
    ),
    "block-no-map": ("dflash", {}, {"draft_vocab_size": 128}, "there is no 'lm_head.weight'"),
    "block-map": (
        "dspark",
        {"lm_head.weight": torch.zeros(128, HIDDEN, dtype=BF16), "d2t": OFFSETS + 1, "t2d": KNOWN},
        {"draft_vocab_size": 128},
        "'d2t' and 't2d' disagree",
    ),
    "mask": ("dspark", {}, {"mask_token_id": 512}, "mask_token_id is 512, and vocab_size is 512"),
    "mask-nested": (
        "dflash",
        {},
        {"dflash_config": {"mask_token_id": -1, "target_layer_ids": [1, 3]}},
        "dflash_config.mask_token_id is -1",
    ),
    "layers": (
        "dflash",
        {},
        {"dflash_config": {"mask_token_id": 1, "target_layer_ids": [1, 3, 5]}},
        r"'fc.weight' has the shape \[256, 512\], not \[256, 768\].*target_layer_ids has 3",
    ),
    "layers-twice": (
        "dflash",
        {},
        {"dflash_config": {"mask_token_id": 1, "target_layer_ids": [3, 3]}},
        "each once",
    ),
    "layers-beyond": ("dflash", {}, {"num_target_layers": 3}, "the target has 3 layers: 2 is"),
    "fc-eagle": (
        "eagle3",
        {"fc.weight": torch.zeros(HIDDEN, 2 * HIDDEN, dtype=BF16)},
        {},
        r"not \[256, 768\].*which means 3",
    ),
    "target-width": ("eagle3", {}, {"target_hidden_size": 128}, r"not \[256, 384\]"),
    "hidden": ("eagle3", {}, {"hidden_size": 128, "target_hidden_size": 256}, r"not \[128, 768\]"),
    "heads": ("dflash", {}, {"num_key_value_heads": 4}, r"k_proj.weight' has the shape \[128, 256"),
    "inter": ("eagle3", {}, {"intermediate_size": 500}, r"gate_proj.*give \[500, 256\]"),
    "one-missing": (
        "dspark",
        {"layers.1.self_attn.v_proj.weight": None},
        {},
        "there is no 'layers.1.self_attn.v_proj.weight'",
    ),
    "norm-missing": ("eagle3", {"midlayer.hidden_norm.weight": None}, {}, "midlayer.hidden_norm"),
    "layer-missing": ("dflash", {}, {"num_hidden_layers": 3}, "3, and the tensors are of 2 layers"),
}


def _written(directory: Path, edit: Edit) -> Path:
    layout, tensors, config, _ = edit
    edit_head(write_head(directory / "head", layout), tensors, config)
    return directory / "head"


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_head_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = _written(tmp_path, BROKEN[name])
    with pytest.raises(CheckpointError, match=BROKEN[name][3]) as caught:
        open_head(open_checkpoint(path))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_neither_apply_nor_export_writes_a_broken_head(tmp_path: Path) -> None:
    path = _written(tmp_path, BROKEN["zero"])
    with pytest.raises(CheckpointError, match="zero throughout"):
        apply("fp8", str(path), tmp_path / "out", device="cpu")
    with pytest.raises(CheckpointError, match="zero throughout"):
        export(ExportSettings(path, "vllm", tmp_path / "out", target="org/T"))
    assert [each.name for each in tmp_path.iterdir()] == ["head"]


@pytest.mark.parametrize(
    ("layout", "tensors", "config"),
    [
        ("eagle3", {"d2t": OFFSETS.to(torch.int32)}, {}),
        ("eagle3", {"t2d": None}, {}),
        ("eagle3-speculators", {"t2d": None}, {}),
        # The first ids of the vocabulary, and `t2d` says that they are meant.
        ("eagle3", {"d2t": OFFSETS * 0, "t2d": torch.arange(VOCAB) < DRAFT_VOCAB}, {}),
        # The whole vocabulary of the target, whose head it takes.
        (
            "eagle3",
            {"lm_head.weight": None, "d2t": None, "t2d": None},
            {"draft_vocab_size": VOCAB},
        ),
        (
            "eagle3",
            {"fc.weight": torch.zeros(HIDDEN, 2 * 384, dtype=BF16)},
            {"eagle_aux_hidden_state_layer_ids": [2, 4], "target_hidden_size": 384},
        ),
    ],
)
def test_an_unusual_head_that_engines_load_is_opened(
    tmp_path: Path, layout: str, tensors: dict[str, Any], config: dict[str, Any]
) -> None:
    path = _written(tmp_path, (layout, tensors, config, ""))
    head = open_head(open_checkpoint(path))
    assert head is not None
    ids = target_ids(head)
    assert ids is None or ids.max() < VOCAB


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """What an engine says of a head beside a target, severities and sentences in one text."""

    def get(engine: str, edit: Edit, **target: Any) -> str:
        path = _written(tmp_path_factory.mktemp("said"), edit)
        checkpoint = open_checkpoint(path)
        head = open_head(checkpoint)
        assert head is not None
        draft = Draft(Path("/srv/x"), checkpoint.config, target)
        found = head_engine(head, engine_named(engine)).check(draft)
        return " | ".join(f"{each.severity}: {each.message}" for each in found)

    return get


def test_a_head_is_held_against_its_target(said: Callable[..., str]) -> None:
    plain: Edit = ("dflash", {}, {}, "")
    assert "refuse" not in said("vllm", plain, hidden_size=256, num_hidden_layers=4, vocab_size=512)
    assert "the target has 3 layers" in said("vllm", plain, num_hidden_layers=3)
    assert "refuse: dflash_config.mask_token_id is 500" in said("vllm", plain, vocab_size=400)
    wide: Edit = ("eagle3", {}, {}, "")
    assert "refuse: 'd2t' leads to id 508" in said("sglang", wide, vocab_size=500)
    assert "leads" not in said("sglang", wide, vocab_size=512)
    # A multimodal target's sizes are those of its language model.
    assert "refuse: hidden_size" in said("vllm", wide, text_config={"hidden_size": 64})


def test_what_one_engine_alone_misreads_is_refused_for_it_alone(said: Callable[..., str]) -> None:
    shared: Edit = (
        "eagle3",
        {"lm_head.weight": None, "d2t": None, "t2d": None},
        {"draft_vocab_size": VOCAB},
        "",
    )
    assert "refuse: there is no lm_head" in said("sglang", shared)
    assert "refuse" not in said("vllm", shared)
    assert "refuse: tie_word_embeddings" in said(
        "sglang", ("eagle3", {}, {"tie_word_embeddings": True}, "")
    )
    whole = {
        "lm_head.weight": torch.zeros(VOCAB, HIDDEN, dtype=BF16),
        "d2t": torch.zeros(VOCAB, dtype=torch.int64),
        "t2d": None,
    }
    assert "no place for the map" in said(
        "vllm", ("eagle3", whole, {"draft_vocab_size": VOCAB}, "")
    )
    no_mask = {"dflash_config": {"target_layer_ids": [1, 3]}}
    assert "no mask_token_id" in said("vllm", ("dflash", {}, no_mask, ""))


def test_experts_and_latent_attention_have_names_of_their_own(tmp_path: Path) -> None:
    assert open_head(open_checkpoint(write_head(tmp_path / "head", "mtp-deepseek"))) is not None
