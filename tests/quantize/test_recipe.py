"""A recipe that contradicts itself is refused, with every contradiction named at once."""

from __future__ import annotations

import pytest
import yaml

from quantdraft.errors import RecipeError
from quantdraft.quantize.recipe import (
    Recipe,
    bundled_recipe_names,
    bundled_sweep_names,
    load_recipe,
    load_sweep,
)

CALIBRATION = {"source": "traffic"}


def load(tmp_path, **keys) -> Recipe:
    path = tmp_path / "mine.yaml"
    plain = {"name": "mine", "summary": "x", "backend": "llmcompressor"} | keys
    path.write_text(yaml.safe_dump(plain))
    return load_recipe(str(path))


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({}, "needs a 'scheme', or 'modifiers'"),
        ({"scheme": "W4A16", "method": "awq"}, "method 'awq' needs a 'calibration'"),
        ({"scheme": "FP8_STATIC"}, "scheme 'FP8_STATIC' needs a 'calibration'"),
        ({"scheme": "none", "kv_cache": "fp8"}, "'kv_cache' needs a 'calibration'"),
        ({"scheme": "none"}, "scheme 'none' goes with backend 'none'"),
        ({"scheme": "NF4"}, "backend 'bitsandbytes' goes with the schemes FP4, LLM_INT8, NF4"),
        ({"scheme": "W4A16", "backend": "bitsandbytes"}, "and with no other"),
        ({"scheme": "W8A8", "backend": "gptqmodel", "method": "gptq"}, "does scheme 'W4A16'"),
        ({"scheme": "NF4", "backend": "bitsandbytes", "lm_head": "8-bit"}, "quantizes a head"),
        ({"scheme": "NVFP4A16", "group_size": 32}, "has no 'group_size' to choose"),
        ({"scheme": "W4A16", "modifiers": {"GPTQModifier": {}}}, "leave out scheme"),
        ({"modifiers": {"GPTQModifier": {}}, "backend": "gptqmodel"}, "are llm-compressor's"),
        ({"scheme": "W8A8", "calibration": {"source": "hub"}}, "'hub' goes with 'dataset'"),
        ({"scheme": "W8A8", "requires": {"compute_capability": 0}}, "greater than or equal to 1"),
    ],
)
def test_contradiction_is_named(tmp_path, keys, problem):
    with pytest.raises(RecipeError, match=problem):
        load(tmp_path, **keys)


def test_all_problems_come_at_once(tmp_path):
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, scheme="NF4", method="awq", lm_head="4-bit")
    assert all(word in str(caught.value) for word in ("bitsandbytes", "calibration", "head"))


def test_modifiers_stand_for_scheme_and_method(tmp_path):
    recipe = load(tmp_path, modifiers={"SmoothQuantModifier": {"smoothing_strength": 0.5}})
    assert recipe.moves_scales
    assert not recipe.is_identity
    assert recipe.head_levers == ("keep",)


def test_the_ladder_is_a_sweep_of_recipes_that_exist_and_need_no_data():
    assert bundled_sweep_names() == ["ladder"]
    ladder = load_sweep("ladder")
    assert ladder.recipes == ("fp8", "int8", "int4")
    assert not any(load_recipe(name).needs_calibration for name in ladder.recipes)


def test_a_sweep_is_no_recipe_and_the_error_says_how_to_run_it():
    with pytest.raises(RecipeError) as caught:
        load_recipe("ladder")
    assert "a sweep over the recipes fp8, int8, int4" in str(caught.value)
    assert "quantdraft sweep --recipes ladder" in str(caught.value)


def test_an_unknown_name_lists_recipes_and_sweeps():
    with pytest.raises(
        RecipeError, match=r"no recipe 'fp9'\. Did you mean 'fp8'\? Bundled: .*int4.*ladder"
    ):
        load_recipe("fp9")


def test_bundled_recipes_are_those_that_the_guide_lists():
    expected = """
        fp8 fp8-static fp8-block fp8-head8 int8 int8-smoothquant int8-gptq int8-weight-only
        int8-head8 int4 int4-gptq int4-gptq-head8 int4-awq int4-autoround int4-head4 int4-head8
        int4-gptq-gptqmodel nf4 nf4-double fp4 int8-bnb nvfp4 nvfp4a16 mxfp4 mxfp8 w4afp8 kv-fp8
        identity
    """
    assert set(bundled_recipe_names()) == set(expected.split())


@pytest.mark.parametrize("name", bundled_recipe_names())
def test_calibrated_bundled_recipes_see_the_same_kind_of_samples(name):
    calibration = load_recipe(name).calibration
    assert calibration is None or (calibration.source, calibration.seed) == ("traffic", 0)
