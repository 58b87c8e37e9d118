"""The list of recipes says what each needs, where it computes, and what loads it."""

from __future__ import annotations

import json
import sys

import pytest
import yaml
from click.testing import CliRunner

pytest.importorskip("torch")

from quantdraft.cli import main
from quantdraft.engines.registry import support_tables
from quantdraft.engines.support import FORMATS
from quantdraft.quantize.recipe import bundled_path, bundled_recipe_names
from quantdraft.report.views.screen import Screen
from quantdraft.workflows.list_recipes import (
    Entry,
    catalogue,
    listing,
    recipe_text,
    recipes_json,
)


def entries() -> dict[str, Entry]:
    return {entry.recipe.name: entry for entry in catalogue()}


def test_every_bundled_recipe_is_there_and_knows_every_engine():
    found = entries()
    assert list(found) == bundled_recipe_names()
    assert all(list(entry.engines) == list(support_tables()) for entry in found.values())


def test_int4_computes_on_a_cpu_and_fp8_does_not():
    found = entries()
    assert "cpu" in found["int4"].kernels
    assert "cpu" not in found["fp8"].kernels
    assert found["nvfp4"].kernels == {}


def test_engines_are_those_of_the_format():
    found = entries()
    assert found["int4"].engines["vllm"].level == "yes"
    assert found["nf4"].engines["llamacpp"].level == "no"
    assert "uint8b128" in (found["int8-weight-only"].engines["vllm-cpu"].note or "")
    assert "gptqmodel" in (found["int4-gptq-gptqmodel"].engines["transformers"].note or "")


def test_two_config_groups_are_not_for_vllm():
    refused = entries()["int4-head8"].engines
    assert refused["vllm"].level == "no"
    assert refused["sglang"].level == "yes"


def test_missing_package_is_shown_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    entry = entries()["nf4"]
    assert entry.missing_packages == ("bitsandbytes",)
    missing = "bitsandbytes is missing (pip install 'quantdraft[bitsandbytes]')"
    assert any(f"cannot be applied here: {missing}" in s for s in entry.sentences())
    assert entry.as_dict()["can_apply_here"] is False


def test_the_command_prints_the_same_as_text_and_json():
    runner = CliRunner()
    text = runner.invoke(main, ["recipes"]).stdout
    plain = json.loads(runner.invoke(main, ["recipes", "--json"]).stdout)
    recipes = [entry["name"] for entry in plain if entry["kind"] == "recipe"]
    assert (recipes, plain[-1]["kind"]) == (bundled_recipe_names(), "sweep")
    words = " ".join(text.split())
    assert all(entry["summary"] in words for entry in plain)
    assert all(f"\n{entry['name']} " in f"\n{text}" for entry in plain)


def test_no_line_is_wider_than_the_terminal():
    for columns in (72, 100):
        assert max(map(len, "\n".join(listing(Screen(columns))).split("\n"))) <= columns


def test_one_recipe_is_shown_with_what_each_engine_does_and_is_a_recipe_file_still():
    text = recipe_text("w4afp8")
    assert yaml.safe_load(text) == yaml.safe_load(bundled_path("w4afp8").read_text())
    assert "# vllm          in part: compute capability 9.0 and no other" in text
    assert recipe_text("ladder") == bundled_path("ladder").read_text().rstrip()


def test_a_verbatim_recipe_is_shown_as_it_is(tmp_path):
    path = tmp_path / "mine.yaml"
    plain = {"name": "mine", "summary": "x", "backend": "llmcompressor"}
    path.write_text(yaml.safe_dump(plain | {"modifiers": {"QuantizationModifier": {}}}))
    assert recipe_text(str(path)) == path.read_text().rstrip()
    assert json.loads(recipes_json(str(path)))["modifiers"] == {"QuantizationModifier": {}}


def test_no_format_is_misspelt_in_a_table():
    assert all(set(table.formats) <= set(FORMATS) for table in support_tables().values())
