"""What a shell offers: commands, options, and the names that options take."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from quantdraft.cli import main
from quantdraft.cli.completion import PROGRAM, SHELLS, VARIABLE


def offered(*words: str) -> list[str]:
    """For the last word, which is being typed."""
    complete = ShellComplete(main, {}, PROGRAM, VARIABLE)
    return [item.value for item in complete.get_completions(list(words[:-1]), words[-1])]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("ap",), ["apply"]),
        (("apply", "--rec"), ["--recipe"]),
        (("apply", "--recipe", "int4-g"), ["int4-gptq", "int4-gptq-gptqmodel", "int4-gptq-head8"]),
        (("recipes", "show", "lad"), ["ladder"]),
        (("sweep", "--recipes", "fp8,lad"), ["fp8,ladder"]),
        (("bench", "--recipes", "int4,int4-h"), ["int4,int4-head4", "int4,int4-head8"]),
        (("bench", "--shape", "llama-3.2-1"), ["llama-3.2-1b"]),
        (("plan", "--target-config", "llama-3.1-8"), ["llama-3.1-8b"]),
        (("plan", "--device", "h2"), ["h200"]),
        (("export", "D", "--engine", "tens"), ["tensorrt-llm"]),
        (("evaluate", "D", "--engine", ""), ["native", "vllm", "llamacpp"]),
        (("evaluate", "D", "--acceptance-rule", "greedy_"), ["greedy_draft"]),
        (("evaluate", "D", "--mode", "e"), ["eager"]),
        (("evaluate", "D", "--dtype", "b"), ["bfloat16"]),
        (("sweep", "--executor", "r"), ["ray"]),
        (("engines", "install", ""), ["vllm"]),
        (("completion", "z"), ["zsh"]),
    ],
)
def test_names_are_offered(words, wanted):
    assert offered(*words) == wanted


def test_a_model_is_a_directory_and_a_recipe_of_ones_own_a_file():
    complete = ShellComplete(main, {}, PROGRAM, VARIABLE)
    assert complete.get_completions(["apply", "--draft"], "x")[0].type == "dir"
    assert complete.get_completions(["apply", "--recipe"], "./mi")[0].type == "file"


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_calls_what_the_program_answers(shell):
    script = CliRunner().invoke(main, ["completion", shell])
    assert script.exit_code == 0
    assert f"{VARIABLE}={shell}_complete" in script.stdout


def test_the_program_answers_the_shell():
    asked = {
        VARIABLE: "bash_complete",
        "COMP_WORDS": "quantdraft apply --recipe w4",
        "COMP_CWORD": "3",
    }
    code = "from quantdraft.cli import main; main(prog_name='quantdraft')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | asked,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "plain,w4afp8\n"
