"""The documentation: its worked examples run, and every command it names exists as written."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from quantdraft import cli
from quantdraft.quantize.apply import apply
from quantdraft.quantize.recipe import load_recipe
from quantdraft.report.glossary import WORDS
from tests.conftest import Pair

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)


def commands() -> list[tuple[str, str]]:
    """Every `quantdraft …` line in a block without a language, with its page."""
    return [
        (page.name, line.removeprefix("$ ").split("#")[0].strip())
        for page in PAGES
        for block in blocks(page, "")
        for line in block.splitlines()
        if line.removeprefix("$ ").startswith("quantdraft ")
    ]


@pytest.mark.parametrize(("page", "line"), commands())
def test_a_command_of_the_documentation_parses(page, line):
    words = [word for word in shlex.split(line)[1:] if word != "…"]
    command: click.Command = cli.main
    while isinstance(command, click.Group) and words:
        name = words.pop(0)
        assert name in command.commands, f"{page}: no command {name!r}"
        command = command.commands[name]
    known = {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
    given = {word.split("=")[0] for word in words if re.match(r"-{1,2}[a-zA-Z]", word)}
    assert given <= known, f"{page}: {line}"


@pytest.mark.slow
def test_the_worked_example_of_the_readme_runs_as_it_stands(tmp_path, monkeypatch):
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    example = page[page.index("## A worked example") : page.index("## Install")]
    (tmp_path / "quantdraft").symlink_to(ROOT / "quantdraft")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"^```\n(.*?)^```", example, re.S | re.M)
    for line in block.splitlines():
        result = CliRunner().invoke(cli.main, shlex.split(line)[1:])
        assert result.exit_code == 0, f"{line}: {result.output}"
    assert (tmp_path / "runs" / "int4" / "report.html").is_file()
    assert (tmp_path / "comparison" / "figures" / "speedups.svg").is_file()


@pytest.mark.usefixtures("no_pages")
def test_the_minute_of_the_readme_runs_as_it_stands(tiny_pair: Pair, tmp_path, monkeypatch):
    """A log of chats, a draft with a chat template, and nothing else."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(
        r"^```\n(.*?)^```", page[page.index("## In a minute") : page.index("## Why")], re.S | re.M
    )
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_pair.draft, "D")
    Path("D/chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b" * 20}]
    chats = [{"messages": said, "domain": name} for name in ("prose", "code")]
    chats[1]["messages"] = [{"role": "user", "content": "c"}, said[1]]
    Path("log.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    for line in block.splitlines():
        words = shlex.split(line.split("#")[0])
        result = CliRunner().invoke(cli.main, words[1:])
        assert result.exit_code == 0, f"{line}: {result.output}"
    assert re.search(r"^k +1 +2 +3 +4 ", result.stdout, re.M)
    assert re.search(r"^prose +1 +20 ", result.stdout, re.M)
    assert "\nNext: quantdraft evaluate D-int4 --target T " in result.stdout


def test_the_words_of_the_readme_are_those_of_the_reports():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    section = page[page.index("## Words") : page.index("## Read on")]
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", section, re.M)
    assert [row for row in rows if row != ("word", "meaning")] == list(WORDS)


def test_there_are_commands_to_test():
    assert len(commands()) > 20


def test_links_of_the_documentation_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_recipe_of_the_guide_can_be_applied(tiny_pair: Pair, tmp_path):
    (text,) = blocks(ROOT / "docs" / "extending.md", "yaml")
    (tmp_path / "mine.yaml").write_text(text)
    recipe = load_recipe(str(tmp_path / "mine.yaml"))
    made = apply(recipe, str(tiny_pair.draft), tmp_path / "out")
    packed = [name for name in made.tensors if name.endswith("weight_packed")]
    assert packed
    assert all(".layers.1." in name for name in packed)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_that_the_documentation_names_exist(page):
    text = page.read_text(encoding="utf-8")
    for module in re.findall(r"python -m (tests\.[\w.]+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
    for path in re.findall(r"`((?:quantdraft|tests|recipes)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
