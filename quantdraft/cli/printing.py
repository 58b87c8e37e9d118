"""Printing of results: text for people, or one JSON document for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from quantdraft.common.progress import aside


def tell(text: str) -> None:
    """Print a line of a result while the command still works."""
    with aside():
        click.echo(text)


def tell_aside(text: str) -> None:
    """Print a line that is no result, on stderr."""
    with aside():
        click.echo(text, err=True)


def print_lines(lines: Iterable[str]) -> None:
    """Print each line as it is."""
    for line in lines:
        click.echo(line)


def print_items(lines: Iterable[str], indent: int) -> None:
    """Print lines that begin with a label of `indent` columns; a terminal wraps them beside it."""
    from quantdraft.report.views.screen import here

    print_lines(here().listed(line[indent:], line[:indent]) for line in lines)


def print_json(value: Any) -> None:
    """Print a value as one JSON document; it holds no NaN."""
    click.echo(json.dumps(value, indent=1, allow_nan=False))


def print_recorded(record: Path, lines: Iterable[str], as_json: bool) -> None:
    """Print a result: the lines, or the record that the command has written to the disk."""
    print_lines([record.read_text(encoding="utf-8").rstrip()] if as_json else lines)
