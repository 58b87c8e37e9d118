"""A misspelt name of any kind is one line that suggests the nearest one."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from quantdraft.cli import main
from quantdraft.engines.vllm.environment import Environment
from quantdraft.engines.vllm.settings import require_known_keys
from quantdraft.errors import OptionError, nearest, nearest_path
from quantdraft.judge.verdict.policy import load_policy
from quantdraft.quantize.recipe import load_recipe
from tests.conftest import Pair

USAGE, REFUSED = 2, 1
PLAN = ("plan", "-a", "0.7", "-t", "llama-3.1-8b", "-d", "llama-3.2-1b")


def refused(code: int, *arguments: object) -> str:
    """What is said of a command line that is wrong: one line, and the exit code."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


@pytest.mark.parametrize(
    ("code", "arguments", "suggested"),
    [
        (USAGE, ("aply",), "apply"),
        (USAGE, ("engines", "instal", "vllm"), "install"),
        (USAGE, ("recipes", "shwo"), "show"),
        (USAGE, ("apply", "--recpie", "int4"), "--recipe"),
        (USAGE, ("engines", "install", "vlm"), "vllm"),
        (USAGE, ("evaluate", "D", "--engine", "natve"), "native"),
        (USAGE, ("evaluate", "D", "--acceptance-rule", "greedy-draft"), "greedy_draft"),
        (USAGE, ("evaluate", "D", "--mode", "grph"), "graph"),
        (USAGE, ("sweep", "--executor", "rya"), "ray"),
        (USAGE, ("capture", "--dtype", "flaot32"), "float32"),
        (USAGE, ("completion", "bsh"), "bash"),
        (REFUSED, ("recipes", "show", "int4-gtpq"), "int4-gptq"),
        (REFUSED, ("apply", "-r", "in4", "-d", "D"), "int4"),
        (REFUSED, ("bench", "--shape", "lama-3.2-1b"), "llama-3.2-1b"),
        (REFUSED, ("bench", "--shape", "lama"), "llama-3.2-1b"),
        (REFUSED, ("plan", "-a", "0.7", "-t", "lama-3.1-8b", "-d", "llama-3.2-1b"), "llama-3.1-8b"),
        (REFUSED, (*PLAN, "--device", "h20"), "h200"),
    ],
)
def test_the_nearest_name_is_suggested(code, arguments, suggested):
    assert f"Did you mean {suggested!r}?" in refused(code, *arguments)


def test_names_of_models_engines_and_types(tiny_pair: Pair, tmp_path: Path):
    typo = tiny_pair.draft.with_name("drafts")
    said = refused(REFUSED, "check", "-t", tiny_pair.target, "-d", typo)
    assert f"Did you mean {str(tiny_pair.draft)!r}?" in said
    given = ("export", tiny_pair.draft, "-t", tiny_pair.target, "-o", tmp_path / "out")
    assert "Did you mean 'sglang'?" in refused(REFUSED, *given, "--engine", "slang")
    given = ("apply", "-r", "int4", "-d", tiny_pair.draft, "-o", tmp_path / "out")
    assert "Did you mean 'cuda'?" in refused(REFUSED, *given, "--device", "cdua")


def test_names_of_files_and_of_keys_in_them(tiny_pair: Pair, tmp_path: Path):
    asked = ("capture", "-t", tiny_pair.target, "-o", tmp_path / "t.jsonl", "-p")
    typo = tiny_pair.prompts.with_name("promts.jsonl")
    said = refused(REFUSED, *asked, typo)
    assert f"Did you mean {str(tiny_pair.prompts)!r}?" in said
    path = tmp_path / "asked.jsonl"
    path.write_text('{"promt": "a"}\n')
    assert "it has 'promt'. Did you mean 'prompt'?" in refused(REFUSED, *asked, path)
    (tmp_path / "runs").mkdir()
    assert f"Did you mean '{tmp_path}/runs'?" in refused(REFUSED, "report", tmp_path / "rusn")


def test_keys_and_values_of_a_recipe_and_of_a_policy(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nsummary: x\nbackend: llmcompresor\nscheme: W4A61\nignor: [a]\n"
        "calibration: {num_sampels: 3}\n"
    )
    with pytest.raises(Exception, match="backend: ") as found:
        load_recipe(str(tmp_path / "mine.yaml"))
    for name in ("llmcompressor", "W4A16", "ignore", "num_samples"):
        assert f"Did you mean {name!r}?" in str(found.value)
    (tmp_path / "policy.yaml").write_text("min_acceptance_rat: 0.4\n")
    with pytest.raises(OptionError, match=r"Did you mean 'min_acceptance_rate'\?"):
        load_policy(tmp_path / "policy.yaml")


def test_keys_of_vllms_config(tmp_path: Path):
    known = Environment(str(tmp_path), "0.32", "cpu", ("rejection_sample_method", "method"))
    with pytest.raises(OptionError, match=r"Did you mean 'rejection_sample_method'\?"):
        require_known_keys(["rejection_sampel_method"], known)


def test_what_is_near_and_what_is_not(tmp_path: Path):
    assert nearest("FP8", ["fp8", "int8"]) == " Did you mean 'fp8'?"
    assert nearest("greedy draft", ["greedy_draft"]) == " Did you mean 'greedy_draft'?"
    assert nearest("zebra", ["fp8", "int8"]) == ""
    assert nearest("x", []) == ""
    assert nearest_path(tmp_path / "no" / "such") == ""


def test_a_missing_option_is_named_with_an_example():
    said = refused(USAGE, "apply", "-d", "D")
    assert said == (
        "Error: `quantdraft apply` needs --recipe. "
        "Example: `quantdraft apply --recipe int4 --draft D -o D-int4`"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("plan", "-a", "x"), "--alpha: 'x' is not a valid float."),
        (("plan", "-a"), "option '-a' requires an argument."),
        (("evaluate",), "`quantdraft evaluate` needs CANDIDATE."),
        (
            ("report", "a", "b"),
            "got unexpected extra argument (b). See `quantdraft report --help`.",
        ),
    ],
)
def test_other_usage_errors_are_one_line_too(arguments, said):
    assert said in refused(USAGE, *arguments)
