"""The list of recipes says what each needs, where it computes, and what loads it."""

from __future__ import annotations

import json
import sys

import pytest
from click.testing import CliRunner

pytest.importorskip("torch")

from quantdraft.catalogue import Entry, catalogue
from quantdraft.cli import main
from quantdraft.recipe import bundled_recipe_names
from quantdraft.serving.support import ENGINES, SUPPORT


def entries() -> dict[str, Entry]:
    return {entry.recipe.name: entry for entry in catalogue()}


def test_every_bundled_recipe_is_there_and_knows_every_engine():
    found = entries()
    assert list(found) == bundled_recipe_names()
    assert all(tuple(entry.engines) == ENGINES for entry in found.values())


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
    assert any("pip install 'quantdraft[bitsandbytes]'" in line for line in entry.lines(20))
    assert entry.as_dict()["can_apply_here"] is False


def test_the_command_prints_the_same_as_text_and_json():
    runner = CliRunner()
    text = runner.invoke(main, ["recipes"]).stdout
    plain = json.loads(runner.invoke(main, ["recipes", "--json"]).stdout)
    assert [entry["name"] for entry in plain] == bundled_recipe_names()
    assert all(entry["summary"] in text for entry in plain)
    assert "kernels: " in text


def test_no_engine_is_misspelt_in_the_table():
    assert all(set(row) <= set(ENGINES) for row in SUPPORT.values())
