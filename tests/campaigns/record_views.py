"""Every view of a record: terminal, Markdown, HTML, rows, card, comparison, choice."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from quantdraft.errors import QuantDraftError
from quantdraft.judge.analysis import analyse, analysed, analysed_bench
from quantdraft.judge.compare import compare_runs
from quantdraft.record import Arm, Evaluation, read_bench, read_evaluation
from quantdraft.record.terms import nearest_to_usual
from quantdraft.report import render_verdict
from quantdraft.report.blocks import Document
from quantdraft.report.card import model_card
from quantdraft.report.charts import drawing, style
from quantdraft.report.comparison import comparison_document
from quantdraft.report.evaluation import document
from quantdraft.report.sections.bench import bench_document
from quantdraft.report.views import html, markdown, terminal
from quantdraft.report.views.plain import plain
from quantdraft.report.views.screen import Screen
from quantdraft.workflows.export.evidence import choose_k, require_verdict, verdict_warnings
from quantdraft.workflows.select import ranking
from quantdraft.workflows.select.ranking import Contender, basis_of, rank
from quantdraft.workflows.select.record import SELECTION_SCHEMA_VERSION, Selection
from quantdraft.workflows.select.traits import Traits
from quantdraft.workflows.select.view import selection_document
from quantdraft.workflows.sweep.sweep import _figures

# What no number of a page looks like: what is not a number, or one of more digits than any count.
NONSENSE = re.compile(r"\b(?:nan|inf|Infinity|NaN)\b|\d{1,3}(?:,\d{3}){7,}|\d{22,}")
TRAITS = Traits("llama", 1000, 2, 64, 2, 2, 128, 256, None)
SCREEN = Screen(100)

Views = dict[str, Callable[[], str]]


@contextlib.contextmanager
def without_pictures(with_altair: bool) -> Iterator[None]:
    """No SVG is drawn; without Altair no specification is made either, which is far quicker."""
    before = drawing.svg, drawing.scripts, style.altair, ranking.NUM_RESAMPLES
    ranking.NUM_RESAMPLES = 200
    drawing.svg = lambda spec: "<svg></svg>"  # type: ignore[assignment]
    drawing.scripts = str  # type: ignore[assignment]
    if not with_altair:
        style.altair = lambda: style.Undrawn("left out")  # type: ignore[assignment]
    try:
        yield
    finally:
        drawing.svg, drawing.scripts, style.altair, ranking.NUM_RESAMPLES = before  # type: ignore[assignment]


def evaluation_views(path: Path, other: Evaluation) -> Views:
    """Return what draws each view of a record, by name; CheckpointError where it is refused.

    other: a sound record of the same question, to compare it with
    """
    read = read_evaluation(path)
    made = analysed(read)
    return {
        "json": lambda: json.dumps(asdict(made), allow_nan=False),
        "verdict": lambda: render_verdict(made),
        "pages": lambda: "".join(_texts(document(made))),
        "analysis": lambda: terminal.render(document(analyse(read)), SCREEN),
        "compare": lambda: "".join(_texts(comparison_document(compare_runs([other, read])))),
        "sweep": lambda: json.dumps(_figures(read), allow_nan=False),
        "select": lambda: "".join(_texts(selection_document(_selection(read, other)))),
        "card": lambda: _card(read),
    }


def bench_views(path: Path) -> Views:
    """Return what draws each view of a bench, by name."""
    made = analysed_bench(read_bench(path))
    return {
        "json": lambda: json.dumps(asdict(made), allow_nan=False),
        "pages": lambda: "".join(_texts(bench_document(made))),
    }


def _texts(built: Document) -> Iterator[str]:
    yield terminal.render(built, SCREEN)
    yield markdown.render(built)
    yield html.render(built)
    yield json.dumps(plain(built), allow_nan=False)


def _card(read: Evaluation) -> str:
    """Return what export writes of a record: k, warnings and the model card."""
    with contextlib.suppress(QuantDraftError):
        require_verdict(read, require_go=True)
    k, notes = choose_k(read, None)
    return model_card(
        "draft",
        None,
        read,
        engine="vllm",
        launch=f"vllm serve --k {k}",
        target="target",
        notes=notes,
        warnings=verdict_warnings(read),
    )


def _selection(read: Evaluation, other: Evaluation) -> Selection:
    pairs: tuple[tuple[Evaluation, Arm, str], ...] = (
        (other, "baseline", "none"),
        (other, "candidate", "int8"),
        (read, "candidate", "int4"),
    )
    contenders = tuple(
        Contender("draft", recipe, arm, run, _bytes(run, arm), 10**8, TRAITS, 4.0)
        for run, arm, recipe in pairs
    )
    common_k = nearest_to_usual(other.num_speculative_tokens)
    return Selection(
        schema_version=SELECTION_SCHEMA_VERSION,
        target="target",
        traffic="traffic.jsonl",
        acceptance_rule=other.acceptance_rule,
        num_prompts=len(other.prompts),
        common_k=common_k,
        basis=basis_of(contenders),
        basis_reason="",
        rows=rank(contenders, common_k, 0),
    )


def _bytes(run: Evaluation, arm: Arm) -> int:
    return int((run.ledger.get(arm) or {}).get("step_bytes") or 10**6)
