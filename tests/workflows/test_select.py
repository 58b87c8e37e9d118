"""Choosing among drafts: orders known beforehand, refusals, and a whole choice of tiny drafts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from quantdraft.cli import main
from quantdraft.common.locks import sole_writer
from quantdraft.errors import OptionError
from quantdraft.judge.comparison.lengths import compare_acceptance
from quantdraft.judge.comparison.points import replayed_of
from quantdraft.judge.comparison.speeds import speed_point
from quantdraft.measure.capture import capture
from quantdraft.measure.settings import CaptureSettings
from quantdraft.quantize.apply import apply
from quantdraft.quantize.recipe import load_recipe
from quantdraft.record import Alarm, Evaluation, Latency, PromptReplay, read_evaluation
from quantdraft.report import write_document
from quantdraft.report.blocks import Chart
from quantdraft.traffic.traffic import Sampling
from quantdraft.workflows.evaluate import evaluate
from quantdraft.workflows.select.ranking import Contender, basis_of, rank
from quantdraft.workflows.select.record import SELECTION_SCHEMA_VERSION, Selection
from quantdraft.workflows.select.traits import Traits
from quantdraft.workflows.select.view import (
    answer,
    selection_banner,
    selection_document,
    selection_text,
)
from tests.conftest import Pair, save_noisy, save_tokenizer
from tests.evaluation_settings import evaluation_settings
from tests.example_evaluation import evaluation, rounds
from tests.judge.test_advice import timed
from tests.pages import require_valid_charts
from tests.report.test_report_charts import values

NUM_TOKENS = 126
KS = evaluation().num_speculative_tokens
SMALL = Traits("llama", 1_000_000, 2, 256, 4, 2, 768, 4096, "code")
DEEP = replace(SMALL, num_parameters=3_000_000, num_layers=6, training_domain=None)


def run_of(alphas: list[float], latency: Latency) -> Evaluation:
    """A run whose two arms accept independently, each prompt with its own probability."""
    prompts = []
    for at, alpha in enumerate(alphas):
        lengths = [rounds(alpha, k).mean_acceptance_length for k in KS]
        drafts = tuple(NUM_TOKENS / length for length in lengths)
        kept = tuple(NUM_TOKENS - each for each in drafts)
        prompts.append(PromptReplay(f"p{at}", "code", 100, NUM_TOKENS, drafts, drafts, kept, kept))
    run = replace(evaluation(), prompts=tuple(prompts), latency=latency)
    arms = replayed_of(run, "baseline"), replayed_of(run, "candidate")
    points = [speed_point(*arms, latency, baseline_k=k, candidate_k=k) for k in KS]
    rates = [compare_acceptance(*arms, k) for k in KS]
    return replace(run, equal_k=tuple(points), acceptance=tuple(rates))


def contender(
    name: str,
    alpha: float | list[float],
    draft_ms: float,
    *,
    recipe: str = "none",
    traits: Traits = SMALL,
    bytes_: int = 100,
    latency: Latency | None = None,
) -> Contender:
    alphas = [alpha] * 24 if isinstance(alpha, float) else alpha
    steps = timed(1, draft_ms, 10.0, 0.0) if latency is None else latency
    arm = "baseline" if recipe == "none" else "candidate"
    return Contender(name, recipe, arm, run_of(alphas, steps), bytes_, 1000, traits, 7.0)


def test_the_order_is_that_of_the_speed_equation() -> None:
    """speed(k) = tau(k) 10 / (k t_d + 10), the best over k worked out by hand."""
    given = {"cheap": (0.6, 0.2), "dear": (0.8, 4.0), "good": (0.8, 1.0)}
    rows = rank([contender(name, *each) for name, each in given.items()], common_k=4)
    by_hand = {
        name: max((sum(alpha**j for j in range(k + 1)) * 10 / (k * ms + 10), k) for k in KS)
        for name, (alpha, ms) in given.items()
    }
    assert [row.draft for row in rows] == sorted(by_hand, key=lambda name: -by_hand[name][0])
    for row in rows:
        assert row.measured is not None
        assert row.measured.value == pytest.approx(by_hand[row.draft][0])
        assert row.num_speculative_tokens == by_hand[row.draft][1]


def test_the_reasons_multiply_to_the_speed_ratio() -> None:
    first, second = rank([contender("a", 0.8, 1.0), contender("b", 0.6, 0.5)], common_k=4)
    assert first.speed_ratio is None
    assert second.speed_ratio is not None
    assert second.speed_ratio.value == pytest.approx(second.length_ratio / second.round_ratio)
    assert second.acceptance_gap is not None
    gap = rounds(0.6, 4).acceptance_rate - rounds(0.8, 4).acceptance_rate
    assert second.acceptance_gap.value == pytest.approx(gap)


def test_without_noise_a_slower_draft_is_surely_slower() -> None:
    _, second = rank([contender("a", 0.8, 1.0), contender("b", 0.6, 0.5)], common_k=4)
    assert second.is_slower is True


def test_one_missing_speed_makes_the_whole_order_a_prediction() -> None:
    untimed = replace(timed(1, 1.0, 10.0, 0.0), arms={}, undefined={"baseline": "no kernel"})
    pair = [contender("a", 0.7, 1.0), contender("b", 0.7, 1.0, bytes_=50, latency=untimed)]
    assert basis_of(pair) == "predicted"
    rows = rank(pair, common_k=4)
    assert [row.draft for row in rows] == ["b", "a"]
    best = max(sum(0.7**j for j in range(k + 1)) / (k * 0.05 + 1) for k in KS)
    assert rows[0].measured is None
    assert rows[0].predicted.value == pytest.approx(best)
    assert basis_of(pair[:1]) == "measured"


@pytest.mark.slow
def test_equal_drafts_are_told_apart_no_oftener_than_the_interval_promises() -> None:
    """Two drafts of one distribution over prompts, 120 runs: 5 % and four standard errors."""
    rng, num_runs, told = np.random.default_rng(1), 120, 0
    for seed in range(num_runs):
        level = rng.beta(12, 5, 24)
        noisy = [(level + rng.normal(0, 0.05, 24)).clip(0.05, 0.95).tolist() for _ in range(2)]
        pair = [contender(name, alphas, 1.0) for name, alphas in zip("ab", noisy, strict=True)]
        told += rank(pair, common_k=4, seed=seed)[1].is_slower is True
    assert told / num_runs < 0.05 + 4 * (0.05 * 0.95 / num_runs) ** 0.5


def test_nothing_to_rank_is_an_error() -> None:
    with pytest.raises(OptionError, match="no draft to choose from"):
        rank([], common_k=4)


def selection_of(*contenders: Contender) -> Selection:
    rows = rank(contenders, common_k=4)
    return Selection(
        SELECTION_SCHEMA_VERSION, "T", "t.jsonl", "greedy", 24, 4, basis_of(contenders), "", rows
    )


def test_the_answer_names_draft_recipe_and_k() -> None:
    made = selection_of(
        contender("a", 0.8, 1.0, recipe="int4"), contender("b", 0.6, 1.0, traits=DEEP)
    )
    text = answer(made)
    assert text.startswith("Take a with the recipe int4, at k = ")
    assert "cannot tell" not in text
    page = " ".join(selection_text(made).split())
    assert "layers 6 against 2" in page
    assert "training domain not stated against code" in page


def test_an_answer_that_the_intervals_do_not_bear_says_so() -> None:
    rng = np.random.default_rng(0)
    level = rng.beta(8, 4, 24)
    noisy = [(level + rng.normal(0, 0.1, 24)).clip(0.05, 0.95).tolist() for _ in range(2)]
    made = selection_of(contender("a", noisy[0], 1.0), contender("b", noisy[1], 1.0))
    assert "The intervals cannot tell it from" in answer(made)


def test_a_choice_of_which_none_pays_says_serve_without() -> None:
    made = selection_of(contender("a", 0.2, 9.0), contender("b", 0.1, 9.0))
    assert answer(made).startswith("None of these pays")


def test_a_policy_raises_the_speed_that_is_asked_for() -> None:
    made = selection_of(contender("a", 0.8, 1.0), contender("b", 0.6, 1.0))
    assert made.pays
    strict = replace(made, min_speedup=20.0)
    assert answer(strict).startswith("None of these pays")
    assert "the policy asks for 20.000×" in answer(strict)
    assert selection_banner(strict).word == "NONE"


def drawn(made: Selection) -> dict[str, Chart]:
    require_valid_charts(selection_document, made)
    return {chart.name: chart for chart in selection_document(made).charts}


def rows_of(chart: Chart) -> list[dict[str, Any]]:
    """Every data row of its specification."""
    return values(chart.spec)


def test_the_plane_puts_every_row_at_its_measured_cost_and_acceptance() -> None:
    """A draft step of 2 ms beside a target's of 10 ms is c = 0.2, without noise in its interval."""
    made = selection_of(contender("a", 0.8, 2.0), contender("b", 0.6, 0.5, recipe="int4"))
    rows = {row["name"]: row for row in rows_of(drawn(made)["kept-for-cost"])}
    assert [rows["a"][key] for key in ("x", "x_low", "x_high")] == pytest.approx([0.2] * 3)
    assert rows["b + int4"]["x"] == pytest.approx(0.05)
    assert rows["a"]["y"] == pytest.approx(rounds(0.8, 4).acceptance_rate)
    assert [row["standing"] for row in rows.values()].count("recommended") == 1
    assert rows["b + int4"]["recipe"] == "int4"


def test_a_prediction_is_drawn_as_one() -> None:
    untimed = replace(timed(1, 1.0, 10.0, 0.0), arms={}, undefined={"baseline": "no kernel"})
    made = selection_of(contender("a", 0.7, 1.0), contender("b", 0.7, 1.0, latency=untimed))
    pictures = drawn(made)
    assert "a prediction" in pictures["kept-for-cost"].description
    assert {row["x"] for row in rows_of(pictures["kept-for-cost"])} == {0.1}  # 100 of 1000 bytes
    speeds = [row for row in rows_of(pictures["speeds"]) if "predicted" in row]
    assert {row["value"] for row in speeds} == {None}
    assert selection_banner(made).tone == "doubt"


def test_acceptance_by_domain_is_that_of_the_domains_prompts() -> None:
    """Half of the prompts are code at 0.9, half prose at 0.5: each domain has its own rate."""
    half = contender("half", [0.9] * 12 + [0.5] * 12, 1.0)
    prompts = tuple(
        replace(prompt, domain="code" if at < 12 else "prose")
        for at, prompt in enumerate(half.run.prompts)
    )
    made = selection_of(replace(half, run=replace(half.run, prompts=prompts)))
    rows = {row["domain"]: row for row in rows_of(drawn(made)["rates-by-domain"])}
    for name, alpha in (("code", 0.9), ("prose", 0.5)):
        assert rows[name]["value"] == pytest.approx(rounds(alpha, 4).acceptance_rate)
        assert rows[name]["num_prompts"] == 12
    assert "rates-by-domain" not in drawn(selection_of(contender("a", 0.8, 1.0)))


def test_the_banner_is_sure_only_where_every_other_is_slower() -> None:
    sure = selection_of(contender("a", 0.8, 1.0), contender("b", 0.6, 1.0))
    assert (selection_banner(sure).word, selection_banner(sure).tone) == ("a", "good")
    none = selection_of(contender("a", 0.2, 9.0), contender("b", 0.1, 9.0))
    assert (selection_banner(none).word, selection_banner(none).tone) == ("NONE", "bad")


def test_the_pages_and_pictures_of_a_choice_are_written(tmp_path: Path) -> None:
    name = "</script><script>alert(1)</script>"
    made = selection_of(contender(name, 0.8, 1.0), contender("b", 0.6, 1.0, recipe="int8"))
    write_document(selection_document(made), tmp_path)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        "speeds.svg",
        "kept-for-cost.svg",
    }
    assert "figures/kept-for-cost.svg" in (tmp_path / "report.md").read_text()
    assert "<script>alert" not in (tmp_path / "report.html").read_text()


def test_an_alarm_stands_beside_its_row() -> None:
    one = contender("a", 0.8, 1.0, recipe="int4")
    alarm = Alarm("replay-disagrees", "…")
    alarmed = replace(one.run, verdict=replace(one.run.verdict, alarms=(alarm,)))
    page = selection_text(selection_of(replace(one, run=alarmed), contender("b", 0.6, 1.0)))
    assert "alarm: replay-disagrees" in page


def judged_as(decision: str, one: Contender) -> Contender:
    verdict = replace(one.run.verdict, decision=decision)
    return replace(one, run=replace(one.run, verdict=verdict))


def test_a_recipe_without_a_go_is_not_recommended_and_the_page_says_why() -> None:
    """compare would say: serve the full-precision draft."""
    plain = contender("a", 0.8, 1.0)
    faster = contender("a", 0.8, 0.9, recipe="int4")
    made = selection_of(plain, judged_as("inconclusive", faster))
    assert made.rows[0].recipe == "int4"  # in the order of the measured speeds
    assert answer(made).startswith("Take a as it is, at k = ")
    assert "a + int4 is faster by the estimate" in answer(made)
    assert "its verdict is inconclusive" in answer(made)
    assert selection_banner(made).word == "a"
    standings = {row["name"]: row["standing"] for row in rows_of(drawn(made)["kept-for-cost"])}
    assert standings == {"a": "recommended", "a + int4": "faster, no go"}
    assert answer(selection_of(plain, judged_as("go", faster))).startswith("Take a with the recipe")


def test_the_reasons_compare_rates_at_the_common_k_alone() -> None:
    made = selection_of(contender("a", 0.8, 1.0), contender("b", 0.6, 4.0))
    ks = {row.num_speculative_tokens for row in made.rows}
    assert len(ks) == 2  # each is fastest at another k
    page = " ".join(selection_text(made).split())
    gap = 100 * (rounds(0.8, 4).acceptance_rate - rounds(0.6, 4).acceptance_rate)
    assert f"its acceptance rate at k = 4 is {gap:.1f} points lower" in page
    assert "its draft step costs 40.0 % of a step of the target, the first's 10.0 %" in page
    assert "the tokens a round" not in page


@pytest.fixture(scope="module")
def traffic(tiny_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traffic") / "traffic.jsonl"
    capture(
        CaptureSettings(
            str(tiny_pair.target), tiny_pair.prompts, path, sampling=Sampling(), max_new_tokens=12
        )
    )
    return path


@pytest.fixture(scope="module")
def other_words(tiny_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The draft's weights under a tokenizer whose ids mean other tokens."""
    directory = tmp_path_factory.mktemp("drafts") / "other-words"
    shutil.copytree(tiny_pair.draft, directory)
    save_tokenizer(directory, order=-1)
    return directory


def choose(*options: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["select", *map(str, options)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_a_choice_refuses_another_vocabulary_ranks_the_rest_and_is_not_done_twice(
    tiny_pair: Pair, traffic: Path, other_words: Path, tmp_path: Path
) -> None:
    worse = tmp_path / "worse"
    shutil.copytree(tiny_pair.draft, worse)
    save_noisy(tiny_pair.target, worse, noise=0.5)
    given = ["--target", tiny_pair.target, "--traffic", traffic, "-o", tmp_path / "out"]
    given += ["--draft", tiny_pair.draft, "--draft", worse, "--draft", other_words]
    given += ["--no-latency", "-k", "1-4"]
    code, shown, told = choose(*given)
    assert code == 0
    assert f"Refused: {other_words}: " in told
    assert "token ids mean different tokens" in told
    record = json.loads((tmp_path / "out" / "selection.json").read_text())
    assert [row["draft"] for row in record["rows"]] == [str(tiny_pair.draft), str(worse)]
    assert record["basis"] == "predicted"
    assert list(record["refused"]) == [str(other_words)]
    assert "Ordered by prediction" in " ".join(shown.split())

    runs = sorted((tmp_path / "out" / "runs").glob("*/evaluation.json"))
    before = [path.stat().st_mtime_ns for path in runs]
    code, _, _ = choose(*given)
    assert code == 0
    assert [path.stat().st_mtime_ns for path in runs] == before


def test_a_run_that_measured_it_already_is_taken_as_it_is(
    tiny_pair: Pair, traffic: Path, tmp_path: Path
) -> None:
    runs = []
    for recipe in ("int8", "int4"):
        made, run = tmp_path / f"D-{recipe}", tmp_path / f"run-{recipe}"
        apply(load_recipe(recipe), str(tiny_pair.draft), made)
        # int4 was replayed at other k: it is another measurement.
        ks = (1, 2, 3, 4) if recipe == "int8" else (1, 2)
        evaluate(
            evaluation_settings(
                candidate=str(made),
                target=str(tiny_pair.target),
                traffic_path=traffic,
                output=run,
                ks=ks,
                no_latency=True,
                live_prompts=0,
            )
        )
        runs += ["--run", run]
    given = ["--target", tiny_pair.target, "--traffic", traffic, "-o", tmp_path / "out"]
    given += ["--draft", tiny_pair.draft, "--recipe", "int8", "--recipe", "int4"]
    code, _, told = choose(*given, *runs, "--no-latency", "-k", "1-4")
    assert code == 0
    assert f"Measured before: {tiny_pair.draft} + int8, {tmp_path / 'run-int8'}" in told
    assert "run-int4" not in told
    made_here = [path.name for path in (tmp_path / "out" / "candidates").iterdir() if path.is_dir()]
    assert made_here == ["draft-int4"]
    record = json.loads((tmp_path / "out" / "selection.json").read_text())
    (row,) = (row for row in record["rows"] if row["recipe"] == "int8")
    known = read_evaluation(tmp_path / "run-int8" / "evaluation.json")
    assert row["decision"] == known.verdict.decision


def test_two_choices_into_one_directory_exclude_each_other(
    tiny_pair: Pair, traffic: Path, tmp_path: Path
) -> None:
    given = ["--target", tiny_pair.target, "--traffic", traffic, "-o", tmp_path / "out"]
    given += ["--draft", tiny_pair.draft, "--recipe", "int8", "--no-latency"]
    with sole_writer(tmp_path / "out", is_inside=True):
        code, _, told = choose(*given)
    assert code == 1
    assert "is being written by process" in told


def test_wrong_input_is_one_line(
    tiny_pair: Pair, traffic: Path, other_words: Path, tmp_path: Path
) -> None:
    target, draft = tiny_pair.target, tiny_pair.draft
    base = ["--target", target, "--traffic", traffic, "-o", tmp_path / "out"]
    busy = tmp_path / "busy"
    busy.mkdir()
    (busy / "mine.txt").write_text("x")
    cases = (
        ([*base, "--draft", draft], "nothing to choose"),
        ([*base, "--draft", draft, "--draft", draft], "is given twice"),
        ([*base, "--draft", draft, "--recipe", "fp9"], "no recipe 'fp9'"),
        ([*base, "--draft", draft, "--draft", tmp_path / "none"], "no model directory"),
        ([*base, "--draft", other_words, "--recipe", "int8"], "no draft fits target"),
        ([*base, "--draft", draft, "--recipe", "int8", "-k", "0"], "lies in 1..16"),
        (
            ["--target", target, "--draft", draft, "--recipe", "int8", "--traffic", "no.jsonl"],
            "no traffic file 'no.jsonl'",
        ),
        (
            [*base[:4], "-o", busy, "--draft", draft, "--recipe", "int8"],
            "holds something else than this choice",
        ),
    )
    for given, said in cases:
        code, _, told = choose(*given)
        assert code == 1
        errors = [line for line in told.splitlines() if line.startswith("Error: ")]
        assert len(errors) == 1
        assert said in errors[0]
