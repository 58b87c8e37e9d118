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
    """Print a run's verdict, and write its report anew from the record; of a bench its tables."""
    run_dir = run if run.is_dir() else run.parent
    with show_progress("report"):
        from quantdraft.workflows.report import drawn_anew, read_shown, shown

        record = read_shown(run)
        page = None if as_json else drawn_anew(record, run_dir)
    if page is None:
        print_json(asdict(record))
        return
    print_lines([shown(record)])
    if not isinstance(page, Path):  # the record is shown all the same
        raise page
    print_lines([f"Report: {page}"])
    if is_opened:
        click.launch(str(page))
