"""How results reach the terminal: text for people, or one JSON document for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from quantdraft.common.progress import aside


def tell(text: str) -> None:
    """A line of a result that appears while the command still works."""
    with aside():
        click.echo(text)


def tell_aside(text: str) -> None:
    """What is said on the way and is no result: stderr."""
    with aside():
        click.echo(text, err=True)


def print_lines(lines: Iterable[str]) -> None:
    """Each line as it is."""
    for line in lines:
        click.echo(line)


def print_items(lines: Iterable[str], indent: int) -> None:
    """Lines that begin with a label of `indent` columns: wrapped beside it in a terminal."""
    from quantdraft.report.views.screen import here

    print_lines(here().listed(line[indent:], line[:indent]) for line in lines)


def print_json(value: Any) -> None:
    """One document, which programs read; NaN does not occur in it."""
    click.echo(json.dumps(value, indent=1, allow_nan=False))


def print_record(path: Path) -> None:
    """The document that a command has written to the disk."""
    click.echo(path.read_text(encoding="utf-8").rstrip())
