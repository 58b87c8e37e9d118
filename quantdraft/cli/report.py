"""report: the verdict of a finished run, and its pages written anew."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from quantdraft.cli import options
from quantdraft.cli.group import Command
from quantdraft.cli.printing import print_json, print_lines
from quantdraft.cli.values import A_PATH
from quantdraft.common.progress import show_progress


@click.command(
    cls=Command,
    short_help="Print a run's verdict, and write its pages anew.",
    example="quantdraft report runs/D-int4 --open",
)
@click.argument("run", type=A_PATH)
@click.option("--open", "is_opened", is_flag=True, help="Show the page in the browser.")
@options.json_output("Print the record as JSON.")
def report(run: Path, is_opened: bool, as_json: bool) -> None:
    """Print a run's verdict, and write its report anew from the record."""
    run_dir = run if run.is_dir() else run.parent
    with show_progress("report"):
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
