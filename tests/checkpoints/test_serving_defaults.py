"""What vLLM takes from a target's directory by default, and a replay does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quantdraft.checkpoints.serving_defaults import serving_defaults
from quantdraft.workflows.check import check
from tests.conftest import Pair


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        ({"repetition_penalty": 1.05}, "repetition-penalty", "repetition_penalty 1.05"),
        ({"temperature": 0.6, "top_p": 0.9}, "sampling-defaults", "--temperature 0.6 --top-p 0.9"),
        ({"min_p": 0.1}, "sampling-defaults", "min_p 0.1"),
        ({"repetition_penalty": 1.0, "temperature": 1.0, "top_p": 1, "top_k": 0}, None, ""),
        ({"top_k": -1}, None, ""),
        ({"repetition_penalty": "1.05", "temperature": None, "eos_token_id": 0}, None, ""),
    ],
)
def test_sampling_defaults_are_named(
    tmp_path: Path, settings: dict[str, Any], code: str | None, said: str
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    found = list(serving_defaults(tmp_path))
    assert [each.code for each in found] == ([] if code is None else [code])
    assert all(each.level == "warning" and said in each.message for each in found)


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_template_that_may_think_is_named(tmp_path: Path, name: str) -> None:
    template = "{% if enable_thinking %}<think>{% endif %}"
    is_json = name.endswith("json")
    (tmp_path / name).write_text(json.dumps({"chat_template": template}) if is_json else template)
    (found,) = serving_defaults(tmp_path)
    assert "--chat-template-kwargs" in found.message
    (tmp_path / name).write_bytes(b"{}" if is_json else b"\xff enable_thinking")
    assert list(serving_defaults(tmp_path)) == []


def test_check_shows_them_and_the_pair_stays_compatible(tiny_pair: Pair, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    for file in tiny_pair.target.iterdir():
        (target / file.name).symlink_to(file)
    (target / "generation_config.json").unlink(missing_ok=True)
    (target / "generation_config.json").write_text('{"repetition_penalty": 1.1}')
    found = check(str(target), str(tiny_pair.draft))
    assert found.is_compatible
    assert "repetition-penalty" in [each.code for each in found.findings]
