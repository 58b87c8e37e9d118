"""check: do target and draft fit, and can quantizing the draft pay?"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from quantdraft.cli import options
from quantdraft.cli.group import Command
from quantdraft.cli.printing import print_json, print_lines
from quantdraft.common.progress import show_progress
from quantdraft.record.terms import USUAL_K


@click.command(
    cls=Command,
    short_help="Check whether target and draft fit, and whether it can pay.",
    example="quantdraft check --target T --draft D",
)
@options.target(required=True)
@options.draft("The draft: a directory or Hub id[@revision].")
@options.speculative_tokens("Tokens proposed in a round.", USUAL_K)
@options.POLICY
@options.json_output()
def check(target: str, draft: str, k: int, policy: Path | None, as_json: bool) -> None:
    """Check whether target and draft fit, and how much quantizing the draft could gain at most.

    Exit code 0: they are compatible; 1: they are not. Every finding is one line with what to do.
    """
    with show_progress("check"):
        from quantdraft.workflows.check import check as check_pair

        result = check_pair(target, draft, k, policy)
    if as_json:
        print_json(asdict(result))
    else:
        print_lines(result.lines())
    if not result.is_compatible:
        sys.exit(1)
