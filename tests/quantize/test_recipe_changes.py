"""`--set`: a recipe's fields changed for one command, checked as a file's are; the name follows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.formats import SCHEMES
from quantdraft.checkpoints.weights import TensorInfo
from quantdraft.errors import RecipeError
from quantdraft.quantize.apply import apply
from quantdraft.quantize.fitting import fit_recipe
from quantdraft.quantize.group_sizes import largest_group, loading_engines, tile_problem
from quantdraft.quantize.recipe import Recipe, load_recipe
from quantdraft.quantize.recipe_changes import (
    load_all_changed,
    load_changed,
    parse_changes,
    tell_unchanged,
)
from quantdraft.quantize.recipe_formats import weight_format
from quantdraft.workflows.list_recipes import entry_of, recipe_text
from tests.stored_heads import write_head


@pytest.mark.parametrize(
    ("recipe", "changes", "name"),
    [
        ("int4", ["group_size=64"], "int4-g64"),
        ("int4", ["group_size=128"], "int4"),
        ("int4", ["lm_head=4-bit", "group_size=32"], "int4-head4-g32"),
        ("int4-gptq", ["calibration.num_samples=64"], "int4-gptq-num_samples-64"),
        ("int4-autoround", ["iterations=10"], "int4-autoround-iterations-10"),
        ("int4", ["ignore=[lm_head, fc]"], "int4-ignore-lm_head+fc"),
        ("int4", ["ignore=[lm_head, 're:.*down_proj$']"], "int4-ignore-616c3687"),
        ("int4", ["group_size=64", "name=mine"], "mine"),
        ("int4", ["summary=Of mine."], "int4"),
        ("fp8", ["scheme=W8A8"], "fp8-w8a8"),
    ],
)
def test_the_name_follows(recipe: str, changes: list[str], name: str) -> None:
    assert load_changed(recipe, parse_changes(changes)).name == name


def test_values_have_the_fields_types_and_are_kept() -> None:
    changes = parse_changes(["group_size=64", "calibration.seed=3", "ignore=[lm_head, fc]"])
    recipe = load_changed("int4-gptq", changes)
    assert (recipe.group_size, recipe.seed, recipe.ignore) == (64, 3, ("lm_head", "fc"))
    assert recipe.changes == {
        "group_size": 64,
        "calibration.seed": 3,
        "ignore": ["lm_head", "fc"],
    }
    assert "group 64" in recipe.summary
    assert "group 128" not in recipe.summary
    assert "calibration.seed: 3" in recipe.summary
    assert recipe.calibration is not None
    assert recipe.calibration.num_samples == load_recipe("int4-gptq").calibration.num_samples  # type: ignore[union-attr]
    fmt = weight_format(recipe)
    assert fmt is not None
    assert fmt.group_size == 64


@pytest.mark.parametrize(
    ("recipe", "changes", "said"),
    [
        ("int4", ["group_sise=64"], "no field 'group_sise'. Did you mean 'group_size'"),
        ("int4", ["group_size"], "no KEY=VALUE"),
        ("int4", ["=64"], "no KEY=VALUE"),
        ("int4", ["group_size=64", "group_size=32"], "given twice"),
        ("int4", ["group_size=abc"], "group_size=abc: group_size: Input should be a valid integer"),
        ("int4", ["group_size=0"], "greater than or equal to 8"),
        ("int4", ["group_size=[64"], "Quote the value"),
        ("int4", ["ignore=&a [*a]"], "Quote the value"),
        ("int4", ["calibration.seed=3"], "has no 'calibration' section"),
        ("int4", ["scheme.bits=3"], "'scheme' is no section"),
        ("int4", ["iterations=3"], "has no iterations"),
        ("int4", ["changes={}"], "no field 'changes'"),
        ("int4", ["name=../x"], "a recipe's name"),
        ("fp8", ["group_size=64"], "has no 'group_size' to choose"),
        ("int4-gptq", ["calibration.num_sample=3"], "num_sample"),
        ("int4-awq", ["lm_head=4-bit"], "keeps the head"),
    ],
)
def test_what_a_recipe_has_no_place_for_is_refused(
    recipe: str, changes: list[str], said: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_changed(recipe, parse_changes(changes))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_of_several_recipes_those_without_the_field_stay_and_are_told() -> None:
    recipes, unchanged = load_all_changed(["fp8", "int4", "int4-gptq"], {"group_size": 64})
    assert [recipe.name for recipe in recipes] == ["fp8", "int4-g64", "int4-gptq-g64"]
    assert unchanged == ["fp8"]
    told: list[str] = []
    tell_unchanged(["fp8", "int4"], {"group_size": 64}, told.append)
    assert told == ["--set group_size: without it, as they have none: fp8."]
    with pytest.raises(RecipeError, match="has no 'group_size' to choose"):
        load_all_changed(["fp8", "int8"], {"group_size": 64})


def test_two_recipes_of_one_name_are_one_or_none() -> None:
    alike, _ = load_all_changed(["int4", "int4-head4"], {"lm_head": "4-bit"})
    assert [recipe.name for recipe in alike] == ["int4-head4"]
    with pytest.raises(RecipeError, match="makes two recipes 'mine'"):
        load_all_changed(["int4", "int8"], {"name": "mine"})


def test_a_shown_recipe_is_a_file_of_its_own(tmp_path: Path) -> None:
    text = recipe_text("int4", {"group_size": 64})
    path = tmp_path / "int4-g64.yaml"
    path.write_text(text, encoding="utf-8")
    again = load_recipe(str(path))
    assert (again.name, again.group_size, again.changes) == ("int4-g64", 64, {})
    for changes in ({"group_size": 32}, {"calibration.seed": 1}, {"no_field": 1}):
        plain = {**yaml.safe_load(text), "changes": changes}
        path.write_text(yaml.safe_dump(plain), encoding="utf-8")
        with pytest.raises(RecipeError, match="'changes' is what `--set` records"):
            load_recipe(str(path))


@pytest.mark.parametrize("changes", [{}, {"calibration.num_samples": 4, "ignore": ["x"]}])
def test_the_recipe_in_a_manifest_is_a_file_too(tmp_path: Path, changes: dict[str, Any]) -> None:
    recipe = load_changed("int4-gptq", changes)
    path = tmp_path / f"{recipe.name}.yaml"
    path.write_text(recipe.model_dump_json(), encoding="utf-8")
    assert load_recipe(str(path)) == recipe
    assert load_recipe(str(path)).changes == changes


def test_the_recipe_of_verbatim_modifiers_in_a_manifest_is_a_file_too(tmp_path: Path) -> None:
    plain = {"name": "mine", "summary": "x", "backend": "llmcompressor"}
    recipe = Recipe.model_validate(plain | {"modifiers": {"GPTQModifier": {"bits": 4}}})
    path = tmp_path / "mine.yaml"
    path.write_text(recipe.model_dump_json(), encoding="utf-8")
    assert load_recipe(str(path)) == recipe
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json") | {"lm_head": "4-bit"}))
    with pytest.raises(RecipeError, match=r"leave out .*lm_head"):
        load_recipe(str(path))


def test_the_change_stands_in_the_manifest_and_names_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llmcompressor")
    monkeypatch.chdir(tmp_path)
    made = apply(
        load_changed("int4", {"group_size": 64}),
        str(write_head(tmp_path / "head", "eagle3")),
        device="cpu",
    )
    assert made.path == Path("head-int4-g64")
    manifest = json.loads((made.path / "quantdraft.json").read_text(encoding="utf-8"))
    assert manifest["recipe"]["name"] == "int4-g64"
    assert manifest["recipe"]["changes"] == {"group_size": 64}
    assert made.tensors["midlayer.mlp.down_proj.weight_scale"].shape == (256, 512 // 64)
    assert "group 64" in manifest["recipe"]["summary"]


def _draft(width: int, inter: int, directory: Path) -> Checkpoint:
    shapes = {
        "model.embed_tokens": (64, width),
        "model.layers.0.self_attn.q_proj": (width, width),
        "model.layers.0.self_attn.k_proj": (width // 3, width),
        "model.layers.0.self_attn.v_proj": (width // 3, width),
        "model.layers.0.mlp.down_proj": (width, inter),
    }
    tensors = {f"{n}.weight": TensorInfo("BF16", s, "model.safetensors") for n, s in shapes.items()}
    return Checkpoint(directory, {"model_type": "llama"}, tensors)


def _refused(recipe: Recipe, draft: Checkpoint) -> str:
    with pytest.raises(RecipeError) as caught:
        fit_recipe(recipe, draft, None)
    return str(caught.value)


def test_the_advice_is_a_command_for_every_width_and_names_the_engines(tmp_path: Path) -> None:
    """SmolLM2's 576 columns: 64 divides them; SGLang's Marlin has no tile for 960 by 576."""
    draft = _draft(576, 1536, tmp_path)
    said = _refused(load_recipe("int4"), draft)
    assert "'model.layers.0.self_attn.q_proj' has 576 inputs" in said
    assert "add --set group_size=64 (vLLM and transformers load it; SGLang does not" in said
    fit_recipe(load_changed("int4", {"group_size": 64}), draft, None)
    # The first width that groups of 128 do not divide is not the narrowest.
    said = _refused(load_recipe("int4"), _draft(576, 1568, tmp_path))
    assert "--set group_size=32 " in said
    said = _refused(load_recipe("int4"), _draft(600, 1536, tmp_path))
    assert "--set" not in said
    assert "one scale per row" in said
    for fixed in ("nvfp4a16", "fp8-block"):
        assert "--set" not in _refused(load_recipe(fixed), _draft(600, 1536, tmp_path))
    said = _refused(load_recipe("w4afp8"), draft)
    assert "vLLM does not: its kernels load groups of 128, not of 64" in said


def test_the_largest_group_divides_every_width() -> None:
    assert largest_group([576, 1536]) == 64
    assert largest_group([128, 384]) == 128
    assert largest_group([48, 96]) == 16
    assert largest_group([72]) is None


def test_marlins_tiles() -> None:
    assert tile_problem({"a.o_proj": (64, 128), "b.o_proj": (128, 64)}) is None
    assert tile_problem({"a.o_proj": (64, 64)}) is not None
    # Alone 96 rows fit no tile; q, k and v are stacked before they are multiplied.
    rows_of = {"q_proj": 192, "k_proj": 96, "v_proj": 96}
    parts = {f"l.self_attn.{name}": (rows, 64) for name, rows in rows_of.items()}
    assert tile_problem(parts) is None
    assert "384 outputs by 96 inputs ('l.self_attn.qkv_proj')" in str(
        tile_problem({module: (rows, 96) for module, (rows, _) in parts.items()})
    )


def test_support_of_a_recipe_follows_its_groups() -> None:
    def level(engine: str, **changes: Any) -> str:
        return entry_of(load_changed("int4", changes)).engines[engine].level

    assert [level("vllm", group_size=size) for size in (32, 64, 256)] == ["yes", "yes", "no"]
    assert level("sglang", group_size=16) == "no"
    assert level("transformers", group_size=48) == "yes"
    fmt = SCHEMES["W4A16"]
    assert loading_engines(fmt, {}) == "vLLM, SGLang and transformers load it"
