"""Rotary settings: one statement, under the old and the new names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quantdraft.checkpoints.rotary import OLD_BY_KIND, require_one_rotary, spell_rotary_both_ways
from quantdraft.errors import CheckpointError

FILE = Path("config.json")
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
BY_KIND = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
OLD_STYLE: list[dict[str, Any]] = [
    {"model_type": "llama", "rope_theta": 5e5},
    {"model_type": "qwen2", "rope_theta": 1e6, "rope_scaling": YARN | {"type": "yarn"}},
    {"model_type": "gemma3_text", "rope_theta": 1e6, "rope_local_base_freq": 1e4},
    {"model_type": "stablelm", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
]


@pytest.mark.parametrize("config", OLD_STYLE)
def test_old_names_are_kept_and_the_new_ones_mean_the_same(config: dict[str, Any]) -> None:
    from transformers import AutoConfig

    spelled = spell_rotary_both_ways(config)
    assert config.items() <= spelled.items()
    new_alone = {k: v for k, v in spelled.items() if k not in config or k == "model_type"}
    read = [AutoConfig.for_model(**each).rope_parameters for each in (config, spelled, new_alone)]
    assert read[0] == read[1]
    kinds = [each.get("full_attention", each) for each in read]
    assert kinds[0] == {"type": "yarn"} | kinds[2] if "type" in kinds[0] else kinds[2]


def test_new_names_are_kept_and_old_ones_added() -> None:
    for rope in ({"rope_theta": 5e5, "rope_type": "default"}, YARN | {"rope_theta": 5e5}):
        spelled = spell_rotary_both_ways({"rope_parameters": rope})
        assert spelled["rope_parameters"] == rope
        assert spelled["rope_theta"] == 5e5
        assert spelled.get("rope_scaling") == (YARN if "factor" in rope else None)
    by_kind = spell_rotary_both_ways({"text_config": {"rope_parameters": BY_KIND}})["text_config"]
    assert (by_kind["rope_theta"], by_kind["rope_local_base_freq"]) == (1e6, 1e4)
    assert by_kind["rope_parameters"] == BY_KIND
    require_one_rotary({"text_config": by_kind}, FILE)


@pytest.mark.parametrize(
    "name",
    ["gemma3_text", "gemma3n_text", "gemma4_text", "laguna", "mellum", "mimo_v2_flash", "olmo3"],
)
def test_kinds_of_layers_are_read_back_as_they_were(name: str) -> None:
    """Old names are read where a family had them, and break the newer families' configs."""
    from transformers import AutoConfig

    own = AutoConfig.for_model(name).to_dict()
    wanted = AutoConfig.for_model(**own).rope_parameters
    spelled = spell_rotary_both_ways(own)
    require_one_rotary(spelled, FILE)
    assert AutoConfig.for_model(**spelled).rope_parameters == wanted
    assert ("rope_theta" in spelled) == (name in OLD_BY_KIND)


def test_nothing_is_added_where_no_base_is_stated() -> None:
    for config in ({}, {"rope_scaling": YARN}, {"rope_scaling": ["linear", 2]}):
        assert spell_rotary_both_ways(config) == config
        require_one_rotary(config, FILE)


@pytest.mark.parametrize(
    ("config", "both"),
    [
        ({"rope_theta": 1e6, "rope_parameters": {"rope_theta": 1e4}}, ("1000000.0", "10000.0")),
        ({"rope_theta": 1e6, "rope_scaling": YARN | {"rope_theta": 1e4}}, ("1000000.0", "10000.0")),
        ({"text_config": {"rope_theta": 5.0, "rope_parameters": BY_KIND}}, ("5.0", "1000000.0")),
        ({"rope_local_base_freq": 7.0, "rope_parameters": BY_KIND}, ("7.0", "10000.0")),
        ({"rope_parameters": {"rope_theta": 1e4}, "rope_scaling": YARN}, ("default", "yarn")),
        (
            {"rope_theta": 1e4, "rope_parameters": YARN, "rope_scaling": YARN | {"factor": 8.0}},
            ("4.0", "8.0"),
        ),
        (
            {"partial_rotary_factor": 0.5, "rope_parameters": {"partial_rotary_factor": 1.0}},
            ("0.5",),
        ),
        # transformers would replace the first dict by the second, and take a default base
        ({"rope_parameters": YARN | {"rope_theta": 5e5}, "rope_scaling": YARN}, ("500000.0",)),
    ],
)
def test_contradictions_are_refused_with_both_values(
    config: dict[str, Any], both: tuple[str, ...]
) -> None:
    with pytest.raises(CheckpointError) as caught:
        require_one_rotary(config, FILE)
    assert "\n" not in str(caught.value)
    assert all(value in str(caught.value) for value in both)
