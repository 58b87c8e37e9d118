"""compare: several runs side by side."""

from __future__ import annotations

from pathlib import Path

import click

from quantdraft.cli import options
from quantdraft.cli.group import Command
from quantdraft.cli.printing import print_recorded
from quantdraft.cli.values import A_PATH
from quantdraft.common.progress import show_progress


@click.command(
    cls=Command,
    short_help="Compare several runs side by side.",
    example="quantdraft compare runs/* --output comparison",
)
@click.argument("runs", nargs=-1, required=True, type=A_PATH)
@options.output("The directory of the report.", "comparison")
@options.force()
@options.json_output("Print the comparison as JSON.")
def compare(runs: tuple[Path, ...], output: Path, force: bool, as_json: bool) -> None:
    """Compare recipes side by side: one report of several run directories."""
    with show_progress("compare"):
        from quantdraft.report import COMPARE_AGAIN, COMPARISON_FILE, render_comparison, where
        from quantdraft.workflows.compare import compare as compare_runs

        compared = compare_runs(list(runs), output, force=force)
    lines = [render_comparison(compared), where(output, COMPARISON_FILE, COMPARE_AGAIN)]
    print_recorded(output / COMPARISON_FILE, lines, as_json)
