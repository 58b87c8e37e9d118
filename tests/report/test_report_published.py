"""The published examples: what this code makes of their records is what is published."""

import json
import re
from pathlib import Path

import pytest

from quantdraft.common.files import read_record
from quantdraft.errors import OptionError
from quantdraft.record import provenance, read_evaluation
from quantdraft.report import write_document
from quantdraft.report.views import markdown
from quantdraft.workflows.demo import demo
from quantdraft.workflows.select.record import SELECTION_SCHEMA_VERSION, Selection
from quantdraft.workflows.select.view import selection_document
from tests.benchmarks.real_model_page import counters_of, document, runs_of
from tests.examples import EXAMPLES, REAL, compared, draw, take
from tests.pages import write_comparison, write_report

RUNS = sorted(path.parent for path in EXAMPLES.glob("*/evaluation.json"))
REAL_RUNS = [path.parent for model in REAL for path in sorted(model.glob("*/evaluation.json"))]


def text_of(page: Path) -> str:
    """A page without its pictures and scripts: they depend on fonts and on the library's build."""
    html = re.sub(r"<script.*?</script>|<svg.*?</svg>", "", page.read_text(), flags=re.DOTALL)
    return re.sub(r"'sha256-[^']+'", "", html)


def assert_same(made: Path, published: Path) -> None:
    """Rows with their specifications, Markdown, and the page's text; pictures by their names."""
    rows = [json.loads((path / "report.json").read_text()) for path in (made, published)]
    assert rows[0] == rows[1]
    assert (made / "report.md").read_text() == (published / "report.md").read_text()
    assert text_of(made / "report.html") == text_of(published / "report.html")
    names = [
        sorted(each.name for each in (path / "figures").iterdir()) for path in (made, published)
    ]
    assert names[0] == names[1]


def test_there_is_an_example_of_every_answer() -> None:
    found = {read_evaluation(run / "evaluation.json").verdict.decision for run in RUNS}
    assert found == {"go", "no-go", "inconclusive"}


@pytest.mark.parametrize(
    "run", [*RUNS, *REAL_RUNS], ids=lambda run: f"{run.parent.name}-{run.name}"
)
def test_a_published_report_is_what_its_record_gives(run: Path, tmp_path: Path) -> None:
    write_report(read_evaluation(run / "evaluation.json"), tmp_path)
    assert_same(tmp_path, run)


@pytest.mark.parametrize("examples", [EXAMPLES, *REAL], ids=lambda path: path.name)
def test_the_published_comparison_is_what_the_records_give(examples: Path, tmp_path: Path) -> None:
    write_comparison(compared(examples), tmp_path)
    assert_same(tmp_path, examples / "comparison")


@pytest.mark.parametrize("model", REAL, ids=lambda path: path.name)
def test_the_page_of_a_real_model_is_what_its_records_and_counters_give(model: Path) -> None:
    page = markdown.render(document(runs_of(model), counters_of(model)))
    assert page == (model / "report.md").read_text(encoding="utf-8")


CHOICES = sorted(path.parent for path in EXAMPLES.glob("*/selection.json"))


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.name)
def test_a_published_choice_is_what_its_record_gives(choice: Path, tmp_path: Path) -> None:
    selection = read_record(choice / "selection.json", Selection, SELECTION_SCHEMA_VERSION)
    write_document(selection_document(selection), tmp_path)
    assert_same(tmp_path, choice)


def test_the_examples_are_taken_and_drawn_as_the_commands_do(tmp_path: Path) -> None:
    for run in RUNS[-2:]:
        assert take(run, tmp_path).read_bytes() == (run / "evaluation.json").read_bytes()
    drawn = draw(tmp_path)
    assert [path.name for path in drawn] == [*(run.name for run in RUNS[-2:]), "comparison"]
    assert all((path / "report.html").is_file() for path in drawn)
    with pytest.raises(OptionError, match=r"neither evaluation\.json nor selection\.json"):
        take(tmp_path, tmp_path)


@pytest.mark.slow
def test_a_new_demo_does_not_contradict_the_published_one(tmp_path: Path) -> None:
    """One question, one answer: never a go here and a no-go there, on a processor of one kind."""
    published = {run.name: read_evaluation(run / "evaluation.json") for run in RUNS}
    cpu = provenance.environment("cpu")["cpu"]
    if cpu != published["int4"].provenance["cpu"]:
        pytest.skip(f"published on another processor: {published['int4'].provenance['cpu']}")
    for measured in demo(tmp_path / "demo"):
        answers = {measured.verdict.decision, published[measured.name].verdict.decision}
        assert answers != {"go", "no-go"}, measured.verdict.summary
