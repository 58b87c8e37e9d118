"""Every limit has one home, and a changed policy changes every place that shows its limits."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path

import pytest

import quantdraft
from quantdraft.judge.advice.all import diagnoses
from quantdraft.judge.verdict.policy import Policy, policy_of
from quantdraft.quantize.apply import apply
from quantdraft.quantize.recipe import load_recipe
from quantdraft.record import Evaluation
from quantdraft.record.terms import MAX_K, USUAL_K, nearest_to_usual
from quantdraft.report.views.markdown import render
from tests.cli.test_commands import run
from tests.example_evaluation import evaluation, gridded, unmeasured
from tests.pages import comparison, document, render_terminal

ROOT = Path(quantdraft.__file__).parent
STRICT = Policy(min_speedup_over_baseline=1.17, min_speedup_over_autoregressive=1.21)


def under(policy: Policy, made: Evaluation) -> Evaluation:
    """The same measurements, judged by other limits."""
    return replace(made, provenance=made.provenance | {"policy": policy.model_dump()})


def flat(text: str) -> str:
    return " ".join(text.split())


def numbers_in(path: Path) -> list[object]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]


def test_the_speedup_that_a_go_needs_stands_once() -> None:
    homes = [path.name for path in sorted(ROOT.rglob("*.py")) if 1.02 in numbers_in(path)]
    assert homes == ["verdict.py"]


def test_the_largest_k_and_the_usual_one_stand_once() -> None:
    names = {"MAX_K", "USUAL_K"}
    homes = [
        path.name
        for path in sorted(ROOT.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assign) and {ast.unparse(each) for each in node.targets} & names
    ]
    assert homes == ["terms.py", "terms.py"]
    assert (MAX_K, USUAL_K) == (16, 4)


@pytest.mark.parametrize(
    ("ks", "nearest"), [((1, 2, 3, 4, 5), 4), ((3, 5), 3), ((8,), 8), ((1, 6), 6)]
)
def test_rates_are_shown_at_the_k_nearest_to_the_usual(ks, nearest) -> None:
    assert nearest_to_usual(ks) == nearest


@pytest.mark.parametrize("made", [evaluation(), gridded(), unmeasured()])
def test_a_changed_policy_changes_every_page(made: Evaluation) -> None:
    judged = under(STRICT, made)
    # The checks keep the limits they were decided by; no other place may show the default.
    shown = render(document(replace(judged, verdict=replace(judged.verdict, checks=()))))
    assert "1.170×" in shown
    assert "1.020×" not in shown
    assert "1.170×" in render_terminal(judged)


def test_a_changed_policy_changes_the_comparison_and_the_map() -> None:
    made = under(STRICT, gridded())
    shown = render(comparison([made, replace(made, name="other")]))
    assert "1.170×" in shown
    assert "1.020×" not in shown
    loose = Policy(min_speedup_over_baseline=0.1, min_speedup_over_autoregressive=0.1)
    assert verdicts(under(loose, gridded())) == {"go", "undefined"}
    hopeless = loose.model_copy(update={"min_speedup_over_autoregressive": 9.0})
    assert verdicts(under(hopeless, gridded())) == {"no-go", "undefined"}
    stopping = render(document(under(hopeless, gridded())))
    assert "Context 512: speculation stops paying at batch 1." in stopping


def verdicts(made: Evaluation) -> set[str]:
    """Those of the map of batch and context."""
    (chart,) = (each for each in document(made).charts if each.name == "verdict-map")
    return {row[2] for row in chart.data.rows}


def test_diagnoses_are_held_to_the_recorded_policy() -> None:
    made = under(Policy(warn_acceptance_rate=0.99), evaluation())
    found = {each.code for each in diagnoses(made, policy_of(made)) if each.state == "found"}
    assert "wrong-draft" in found
    assert "α below 99 %" in render(document(made))


def test_an_older_record_has_the_limits_of_its_checks() -> None:
    made = evaluation()
    assert "policy" not in made.provenance
    assert policy_of(made) == Policy()
    checks = tuple(
        replace(check, limit=1.11) if "baseline" in check.name else check
        for check in made.verdict.checks
    )
    older = replace(made, verdict=replace(made.verdict, checks=checks))
    assert policy_of(older) == Policy(min_speedup_over_baseline=1.11)


def test_check_and_apply_hold_the_bytes_to_the_given_policy(tiny_pair, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("min_speedup_over_baseline: 50\n")
    asked = ("check", "-t", tiny_pair.target, "-d", tiny_pair.draft)
    outlooks = json.loads(run(*asked, "--policy", policy, "--json").stdout)["outlooks"]
    known = [each["summary"] for each in outlooks if each["summary"] is not None]
    assert known
    assert not any(each["can_pay"] for each in known)
    assert {each["min_speedup"] for each in known} == {50.0}
    assert "50.00×, what a go needs" in flat(run(*asked, "--policy", policy).stdout)
    assert "1.02×, what a go needs" in flat(run(*asked).stdout)
    made = apply(load_recipe("identity"), str(tiny_pair.draft), tmp_path / "D", min_speedup=50.0)
    assert made.manifest is not None
    assert "a go needs 50.000×" in made.manifest["ledger"]["sentence"]
