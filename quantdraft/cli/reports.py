"""Views of records: report and compare."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from quantdraft.cli import options
from quantdraft.cli.group import Command
from quantdraft.cli.printing import print_json, print_lines, print_record
from quantdraft.cli.values import DIRECTORY
from quantdraft.common.progress import step


@click.command(
    cls=Command,
    short_help="Several runs side by side.",
    example="quantdraft compare runs/* --output comparison",
)
@click.argument("runs", nargs=-1, required=True, type=DIRECTORY)
@click.option("--output", "-o", type=DIRECTORY, default=Path("comparison"), show_default=True)
@options.force()
@options.as_json("Print the comparison as JSON.")
def compare(runs: tuple[Path, ...], output: Path, force: bool, as_json: bool) -> None:
    """Recipes side by side: one report of several run directories."""
    with step("compare"):
        from quantdraft.report import COMPARISON_FILE, render_comparison
        from quantdraft.workflows.compare import compare as compare_runs

        compared = compare_runs(list(runs), output, force=force)
    if as_json:
        print_record(output / COMPARISON_FILE)
    else:
        print_lines([render_comparison(compared), f"Report: {output / 'report.html'}"])


@click.command(
    cls=Command,
    short_help="A run's verdict again, and its pages anew.",
    example="quantdraft report runs/D-int4 --open",
)
@click.argument("run", type=DIRECTORY)
@click.option("--open", "is_opened", is_flag=True, help="Show the page in the browser.")
@options.as_json("Print the record as JSON.")
def report(run: Path, is_opened: bool, as_json: bool) -> None:
    """Print a run's verdict, and write its report anew from the record."""
    run_dir = run if run.is_dir() else run.parent
    with step("report"):
        from quantdraft.report import render_terminal, write_report
        from quantdraft.workflows.report import read_run

        evaluation = read_run(run)
        if not as_json:
            write_report(evaluation, run_dir)
    if as_json:
        print_json(asdict(evaluation))
        return
    print_lines([render_terminal(evaluation), f"Report: {run_dir / 'report.html'}"])
    if is_opened:
        click.launch(str(run_dir / "report.html"))
