"""Wrong inputs end in one line and exit code 1; --json is JSON; help teaches."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from quantdraft.cli import main, parse_ks
from quantdraft.errors import OptionError
from tests.conftest import Pair, save_tokenizer


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def one_line(result: Result) -> str:
    """The error, which must be a single line without a traceback."""
    assert result.exit_code != 0
    assert isinstance(result.exception, SystemExit), result.exception
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1, result.stderr
    return lines[0]


def apply(pair: Pair, tmp_path: Path, recipe: object = "int8", draft: object = None) -> Result:
    output = tmp_path / "out"
    return run("apply", "--recipe", recipe, "--draft", draft or pair.draft, "-o", output)


def test_an_unknown_recipe_lists_the_bundled_ones(tiny_pair, tmp_path):
    message = one_line(apply(tiny_pair, tmp_path, "fp9"))
    assert message.startswith("Error: no recipe 'fp9'. Bundled: ")
    assert "int4-gptq" in message


def test_a_misspelt_recipe_key_is_named(tiny_pair, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nsummary: x\nbackend: llmcompressor\nscheme: W8A8\nignor: [a]\n")
    assert "ignor: Extra inputs are not permitted" in one_line(apply(tiny_pair, tmp_path, path))


def test_a_missing_directory(tiny_pair, tmp_path):
    assert "no model directory" in one_line(apply(tiny_pair, tmp_path, draft=tmp_path / "none"))


def test_truncated_safetensors(tiny_pair, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_pair.draft, broken)
    data = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(data[: len(data) // 2])
    assert "model.safetensors" in one_line(apply(tiny_pair, tmp_path, draft=broken))
    assert not (tmp_path / "out").exists()


def test_a_directory_without_tokenizer(tiny_pair, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(tiny_pair.draft, bare)
    for path in bare.glob("tokenizer*"):
        path.unlink()
    assert "no tokenizer" in one_line(apply(tiny_pair, tmp_path, draft=bare))


def test_a_pickle_checkpoint_is_refused_with_the_reason(tiny_pair, tmp_path):
    pickled = tmp_path / "pickled"
    shutil.copytree(tiny_pair.draft, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    message = one_line(apply(tiny_pair, tmp_path, draft=pickled))
    assert "pickle" in message
    assert "safetensors" in message


def test_an_existing_output_needs_force(tiny_pair, tmp_path):
    (tmp_path / "out").mkdir()
    assert "--force" in one_line(apply(tiny_pair, tmp_path))


def test_a_full_disk_leaves_nothing(tiny_pair, tmp_path, monkeypatch):
    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("quantdraft.quantization._carry_over", full)
    assert "No space left on device" in one_line(apply(tiny_pair, tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_an_empty_prompt_file(tiny_pair, tmp_path):
    (tmp_path / "p.jsonl").write_text("")
    result = run(
        "capture", "-t", tiny_pair.target, "-p", tmp_path / "p.jsonl", "-o", tmp_path / "t.jsonl"
    )
    assert "p.jsonl" in one_line(result)


def test_a_broken_line_of_json_is_named_by_its_number(tiny_pair, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    result = run(
        "capture", "-t", tiny_pair.target, "-p", tmp_path / "p.jsonl", "-o", tmp_path / "t.jsonl"
    )
    assert "line 2" in one_line(result)


def test_different_tokenizers_are_not_compatible(tiny_pair, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_pair.draft, other)
    save_tokenizer(other, order=-1)
    result = run("check", "--target", tiny_pair.target, "--draft", other)
    assert result.exit_code == 1
    assert "error" in result.stdout


def test_k_of_zero_is_refused(tiny_pair, tmp_path):
    result = run(
        "evaluate", tiny_pair.draft, "--target", tiny_pair.target, "-k", "0", "--prompts", "p"
    )
    assert "1..16" in one_line(result)
    assert "1..16" in one_line(
        run("check", "-t", tiny_pair.target, "-d", tiny_pair.draft, "-k", "0")
    )


@pytest.mark.parametrize(
    ("text", "ks"),
    [("4", (4,)), ("1-4", (1, 2, 3, 4)), ("8,2,4", (2, 4, 8)), ("1-2,16", (1, 2, 16))],
)
def test_ks_are_numbers_ranges_or_lists(text, ks):
    assert parse_ks(text) == ks


@pytest.mark.parametrize("text", ["", "x", "3-1", "1-17", "-4", "1-2-3"])
def test_unreadable_ks_are_refused(text):
    with pytest.raises(OptionError):
        parse_ks(text)


def test_check_speaks_json(tiny_pair):
    result = run("check", "-t", tiny_pair.target, "-d", tiny_pair.draft, "--json")
    assert result.exit_code == 0
    plain = json.loads(result.stdout)
    assert plain["is_compatible"] is True
    assert {outlook["recipe"] for outlook in plain["outlooks"]} >= {"fp8", "int4"}


def test_recipes_are_listed_and_shown():
    assert "int4-gptq" in run("recipes").stdout
    assert "scheme: W4A16" in run("recipes", "show", "int4").stdout
    assert {recipe["name"] for recipe in json.loads(run("recipes", "--json").stdout)} >= {
        "identity"
    }


def test_every_command_explains_itself():
    for command in main.commands:
        result = run(command, "--help")
        assert result.exit_code == 0
        assert len(result.stdout.splitlines()) > 5
