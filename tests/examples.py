"""The published examples: records taken from finished runs, and every page drawn from its record.

    python -m tests.examples                              draw all examples again
    python -m tests.examples --take RUN… [SELECTION]      first take these directories' records

The runs of real models, in a directory each of reports/real, are drawn too;
`tests.benchmarks.real_model` makes them.

A run directory holds evaluation.json, that of a choice selection.json; each keeps its name.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from quantdraft.common.files import read_record
from quantdraft.errors import OptionError
from quantdraft.judge.analysis import analyse
from quantdraft.record import RECORD_FILE, Evaluation, read_evaluation, write_evaluation
from quantdraft.report import write_document
from quantdraft.workflows.select.record import SELECTION_FILE, SELECTION_SCHEMA_VERSION, Selection
from quantdraft.workflows.select.view import selection_document
from tests.benchmarks.real_model_page import draw_page
from tests.pages import write_comparison, write_report

EXAMPLES = Path(__file__).parent.parent / "reports" / "example"
REAL = sorted(EXAMPLES.parent.glob("real/*/"))
COMPARISON = "comparison"
APART = "another-draft"  # two drafts, not a recipe: its baseline is not that of the others


def take(directory: Path, examples: Path = EXAMPLES) -> Path:
    """Copy one directory's record beside the others. Raises OptionError where it has none."""
    records = (directory / name for name in (RECORD_FILE, SELECTION_FILE))
    record = next((path for path in records if path.is_file()), None)
    if record is None:
        raise OptionError(
            f"'{directory}' has neither {RECORD_FILE} nor {SELECTION_FILE}. Name a finished run."
        )
    taken = examples / directory.resolve().name / record.name
    taken.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(record, taken)
    return taken


def draw(examples: Path = EXAMPLES) -> list[Path]:
    """Write every run's analysis and pages, the recipes' comparison, and every choice's pages."""
    records = sorted(examples.glob(f"*/{RECORD_FILE}"))
    for record in records:
        evaluation = analyse(read_evaluation(record))
        write_evaluation(evaluation, record)
        write_report(evaluation, record.parent)
    write_comparison(compared(examples), examples / COMPARISON)
    choices = sorted(examples.glob(f"*/{SELECTION_FILE}"))
    for path in choices:
        selection = read_record(path, Selection, SELECTION_SCHEMA_VERSION)
        write_document(selection_document(selection), path.parent)
    return [path.parent for path in (*records, *choices)] + [examples / COMPARISON]


def compared(examples: Path = EXAMPLES) -> list[Evaluation]:
    """The records of the recipes, in the order of their names."""
    records = sorted(examples.glob(f"*/{RECORD_FILE}"))
    return [read_evaluation(record) for record in records if record.parent.name != APART]


@click.command()
@click.option("--take", "is_taking", is_flag=True, help="Take the records of DIRECTORIES first.")
@click.argument("directories", nargs=-1, type=click.Path(path_type=Path))
def main(is_taking: bool, directories: tuple[Path, ...]) -> None:
    """Draw the published examples again from their records."""
    if bool(directories) != is_taking:
        raise click.UsageError("--take and the directories of finished runs go together.")
    for directory in directories:
        click.echo(f"taken: {take(directory)}")
    for examples in (EXAMPLES, *REAL):
        for written in draw(examples):
            click.echo(f"drawn: {written}")
    for model in REAL:
        draw_page(model)


if __name__ == "__main__":
    main()
