"""JSON is the record: what a page shows is computed by the judge, stored, and read back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from quantdraft.common.files import read_record
from quantdraft.judge.analysis import analyse, analysed, token_fates
from quantdraft.judge.compare import compare_runs
from quantdraft.judge.verdict.policy import Policy
from quantdraft.record import (
    COMPARISON_SCHEMA_VERSION,
    Comparison,
    Evaluation,
    Interval,
    read_evaluation,
    write_evaluation,
)
from quantdraft.record.wording import estimated, faster, loss_words
from quantdraft.report import evaluation as page
from quantdraft.report import write_comparison
from tests.example_evaluation import evaluation, gridded, unmeasured
from tests.structure import imports_of, module_files

OLD = Path(__file__).parent.parent / "records" / "evaluation-0.1.0.json"


def test_the_report_imports_nothing_of_the_judge() -> None:
    found = imports_of(module_files())
    report = {module: taken for module, taken in found.items() if module.startswith("report")}
    assert len(report) > 20
    assert not {each for taken in report.values() for each in taken if each.startswith("judge")}


@pytest.mark.parametrize("made", [evaluation(), gridded(), unmeasured()])
def test_an_analysis_reads_back_as_it_was_written(made: Evaluation, tmp_path: Path) -> None:
    filled = analysed(made)
    write_evaluation(filled, tmp_path / "evaluation.json")
    again = read_evaluation(tmp_path / "evaluation.json")
    assert again == filled
    assert page.document(again) == page.document(filled)


def test_a_record_keeps_the_analysis_that_it_was_written_with() -> None:
    filled = analysed(evaluation())
    assert analysed(filled) is filled
    other = replace(filled, analysis=replace(filled.known_analysis, turning_points=()))
    assert analysed(other).known_analysis.turning_points == ()
    assert analyse(other).known_analysis == filled.known_analysis


def test_a_record_of_an_older_version_is_filled_in() -> None:
    old = read_evaluation(OLD)
    assert old.analysis is None
    with pytest.raises(ValueError, match="no analysis"):
        page.document(old)
    filled = analysed(old)
    assert page.document(filled).sections
    assert filled.prompts == old.prompts
    steps = {name: arm.steps for name, arm in old.latency.arms.items()}
    assert {name: arm.steps for name, arm in filled.latency.arms.items()} == steps


def test_the_analysis_holds_the_limits_that_the_run_was_judged_by() -> None:
    policy = Policy(min_speedup_over_baseline=1.17, min_speedup_over_autoregressive=1.21)
    made = evaluation()
    judged = replace(made, provenance=made.provenance | {"policy": policy.model_dump()})
    found = analysed(judged).known_analysis
    assert found.min_speedup_over_baseline == 1.17
    assert found.min_speedup_over_autoregressive == 1.21
    assert all("1.170×" in line for line in found.turning_points)


def test_fates_are_those_of_certain_tokens() -> None:
    # k = 2: the first token is the prefill's; two kept, then the bonus token; one rejected.
    assert token_fates((1.0, 1.0, 1.0, 1.0, 0.0, 1.0), 2) == ".++.x+"


def test_a_comparison_is_stored_as_it_was_computed(tmp_path: Path) -> None:
    runs = [evaluation("one"), evaluation("two"), unmeasured()]
    compared = compare_runs(runs)
    write_comparison(compared, tmp_path)
    stored = read_record(tmp_path / "comparison.json", Comparison, COMPARISON_SCHEMA_VERSION)
    assert stored == compared.comparison
    assert [run.name for run in stored.runs] == [each.name for each in compared.evaluations]
    assert len(stored.pairs) == 3


def test_a_negative_loss_is_called_a_gain() -> None:
    assert loss_words(Interval(-0.003, -0.012, 0.006)) == (
        "a gain of 0.3 points (95 % interval −0.6 to +1.2 points)"
    )
    assert loss_words(Interval(0.041, 0.030, 0.052)) == (
        "a loss of 4.1 points (95 % interval +3.0 to +5.2 points)"
    )


def test_a_number_has_one_form_in_sentences() -> None:
    assert estimated(Interval(0.93, 0.9, 0.96), "speedup") == (
        "0.930× (95 % interval 0.900× to 0.960×)"
    )
    assert estimated(Interval(0.612, 0.58, 0.641), "rate") == (
        "61.2 % (95 % interval 58.0 to 64.1 %)"
    )
    assert faster(Interval(2.2, 2.1, 2.3), "it") == (
        "2.2 times as fast as it (95 % interval 2.100× to 2.300×)"
    )
