"""Wrong inputs end in one line and exit code 1; --json is JSON; help teaches."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from quantdraft.cli import main
from quantdraft.cli.values import parse_ks, parse_names
from quantdraft.errors import OptionError
from quantdraft.quantize import apply as applying
from quantdraft.workflows import report as reporting
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
    assert message.startswith("Error: no recipe 'fp9'. Did you mean ")
    assert " Bundled: " in message
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

    monkeypatch.setattr(applying, "copy_unchanged_files", full)
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
    asked = ("-t", tiny_pair.target, "-p", tmp_path / "p.jsonl", "-o", tmp_path / "t.jsonl")
    result = run("capture", *asked, "--max-new-tokens", 4)
    assert result.exit_code == 0
    assert "read as prompts with completions: 1 of 2 lines" in result.stderr
    assert "Skipped: line 2: broken JSON" in result.stderr


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


@pytest.mark.parametrize("text", ["", "x", "3-1", "1-17", "-4", "1-2-3", "²", "1-99999999999"])
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


def test_nothing_is_written_over_what_it_is_made_from(tiny_pair, tmp_path):
    draft, prompts = tmp_path / "drafts" / "D", tmp_path / "prompts.jsonl"
    shutil.copytree(tiny_pair.draft, draft)
    shutil.copyfile(tiny_pair.prompts, prompts)
    made = ("apply", "--recipe", "int8", "--draft", draft, "--force", "--output")
    assert "is the draft itself" in one_line(run(*made, draft))
    assert "lies inside the draft" in one_line(run(*made, draft / "int8"))
    assert "holds the draft" in one_line(run(*made, draft.parent))
    asked = ("capture", "-t", tiny_pair.target, "--force", "-p", prompts, "-o")
    assert "is the file of prompts itself" in one_line(run(*asked, prompts))
    served = ("export", draft, "-e", "vllm", "-t", tiny_pair.target, "--force", "-o")
    assert "lies inside the checkpoint" in one_line(run(*served, draft / "served"))
    judged = ("evaluate", draft, "--baseline", tiny_pair.draft, "--traffic", prompts, "-o")
    assert "is a model itself" in one_line(run(*judged, draft))
    assert prompts.read_bytes() == tiny_pair.prompts.read_bytes()
    assert sorted(p.name for p in draft.iterdir()) == sorted(
        p.name for p in tiny_pair.draft.iterdir()
    )


def test_a_file_where_a_directory_is_needed(tiny_pair, tmp_path):
    (tmp_path / "file").write_text("x")
    made = run("apply", "-r", "int8", "-d", tiny_pair.draft, "-o", tmp_path / "file" / "out")
    assert "a file stands where a directory is needed" in one_line(made)
    refused = one_line(run("check", "-t", tmp_path / "file", "-d", tiny_pair.draft))
    assert f"'{tmp_path / 'file'}' is a file, not a model directory" in refused
    assert refused.endswith("Give a directory with a config.json.")


def test_what_no_recipe_would_use_is_refused(tiny_pair, tmp_path):
    given = ("-r", "int8", "-d", tiny_pair.draft, "-o", tmp_path / "out", "--calibration", "x")
    assert "is not calibrated. Leave out --calibration." in one_line(run("apply", *given))
    assert "takes no name" in one_line(run("recipes", "list", "int4"))


def test_a_context_longer_than_the_models_positions(tiny_pair, tmp_path):
    given = ("--baseline", tiny_pair.draft, "--traffic", "x", "-o", tmp_path / "out")
    result = run("evaluate", tiny_pair.draft, *given, "--context-length", "512")
    assert "has 512 positions" in one_line(result)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--latency-seconds", "0"),
        ("--latency-seconds", "nan"),
        ("--latency-seconds", "inf"),
        ("--live-prompts", "-1"),
        ("--threads", "0"),
        ("--seed", "-1"),
    ],
)
def test_numbers_out_of_range(option, value):
    result = run("evaluate", "D", "--traffic", "x", option, value)
    assert result.exit_code == 2
    assert one_line(result).startswith(f"Error: {option}: {value} ")


def test_names_between_commas():
    assert parse_names("int4, ,fp8,") == ("int4", "fp8")
    assert parse_names(None) == parse_names(" , ") == ()
    said = one_line(run("sweep", "-d", "D", "-r", ",", "--traffic", "x"))
    assert "at least one --draft and one of --recipes" in said


def test_a_file_that_may_not_be_read_is_one_line_and_a_bug_keeps_its_traceback(monkeypatch):
    def refused(_path):
        raise PermissionError(errno.EACCES, "Permission denied", "/secret.json")

    monkeypatch.setattr(reporting, "read_evaluation", refused)
    assert one_line(run("report", "x")) == "Error: '/secret.json': permission denied."
    monkeypatch.setattr(reporting, "read_evaluation", lambda _path: 1 / 0)
    assert isinstance(run("report", "x").exception, ZeroDivisionError)
