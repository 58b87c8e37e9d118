"""What a back end sees of a draft, and the config that is left after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.checkpoints.weights import read_tensors
from quantdraft.quantize.recipe import load_recipe
from quantdraft.quantize.staging import complete_config, stage_source
from tests.stored import LLAMA_CONFIG, llama_tensors, write_checkpoint

YARN = {"factor": 4.0, "original_max_position_embeddings": 128}

NEW_YARN = YARN | {"rope_type": "yarn"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"rope_theta": 5e5}, {"rope_type": "default"}),
        (
            {"rope_theta": 5e5, "rope_scaling": YARN | {"type": "yarn"}},
            YARN | {"rope_type": "yarn"},
        ),
    ],
)
@pytest.mark.parametrize("section", [None, "text_config"])
def test_the_old_names_of_the_rotary_settings_outlive_the_library(
    tmp_path: Path, old: dict[str, Any], new: dict[str, Any], section: str | None
) -> None:
    """transformers writes `rope_parameters` in the place of both old names."""

    def nested(config: dict[str, Any]) -> dict[str, Any]:
        return config if section is None else {section: config, "model_type": "gemma3"}

    plain = {"torch_dtype": "bfloat16", "tie_word_embeddings": True}
    draft = write_checkpoint(tmp_path / "draft", config=nested(LLAMA_CONFIG | plain | old))
    written = {"dtype": "bfloat16", "rope_parameters": {"rope_theta": 5e5, **new}}
    (tmp_path / "config.json").write_text(json.dumps(nested(written)))
    complete_config(open_checkpoint(draft), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config = config if section is None else config[section]
    assert written.items() <= config.items()
    assert config["rope_theta"] == 5e5
    assert config["torch_dtype"] == "bfloat16"
    assert config.get("rope_scaling") == (NEW_YARN if "factor" in new else None)


@pytest.mark.parametrize("recipe", ["int8", "int8-head8"])
def test_a_back_end_sees_no_copy_of_the_embedding(tmp_path: Path, recipe: str) -> None:
    head = {"lm_head.weight": ("BF16", (512, 256))}
    draft = open_checkpoint(write_checkpoint(tmp_path / "draft", llama_tensors() | head))
    with stage_source(load_recipe(recipe), draft, tmp_path / "out") as staged:
        is_untied = recipe == "int8-head8"  # its head is quantized, so it is stored apart
        assert staged.has_tied_head != is_untied
        assert ("lm_head.weight" in read_tensors(staged.path)) == is_untied
        assert staged.tensors.keys() - {"lm_head.weight"} == llama_tensors().keys()
