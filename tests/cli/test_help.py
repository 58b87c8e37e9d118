"""Every command explains itself: a line in the list, a help that ends with an example."""

from __future__ import annotations

import re
import shlex
import typing
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from quantdraft.cli import main
from quantdraft.cli.group import Command, Commands
from quantdraft.record.choices import DtypeChoice

ROOT = Path(__file__).parents[2]


def walked(
    group: click.Group, names: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command and group, with the words that call it."""
    yield names, group
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from walked(command, (*names, name))
        else:
            yield (*names, name), command


COMMANDS = dict(walked(main))


@pytest.mark.parametrize("names", COMMANDS, ids=" ".join)
def test_help_ends_with_an_example_that_the_command_understands(names):
    result = CliRunner().invoke(main, [*names, "--help"])
    assert result.exit_code == 0
    *_, title, example = result.stdout.rstrip().splitlines()
    assert title == "Example:"
    command = COMMANDS[names]
    assert isinstance(command, Command | Commands)
    assert example.strip() == command.example
    assert f"quantdraft {' '.join(names)}".strip() in example
    given = {word for word in shlex.split(example) if re.match(r"--?[a-z]", word)}
    if isinstance(command, Command):
        assert given <= {name for each in command.params for name in each.opts}


def test_the_list_of_commands_cuts_no_line():
    shown = CliRunner().invoke(main, ["--help"]).stdout
    lines = shown.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert len(lines) == len(main.commands)
    assert not [line for line in lines if line.endswith("...") or len(line) > 80]


def test_the_readme_lists_every_command_in_the_same_words():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, command in main.commands.items():
        assert f"| `{name}` | {command.get_short_help_str()} |" in text


def test_every_float_type_can_be_chosen():
    from quantdraft.checkpoints.tensors.devices import DTYPES

    assert typing.get_args(DtypeChoice) == ("auto", *DTYPES)
