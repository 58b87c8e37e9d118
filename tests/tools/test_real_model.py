"""A real model's publication: prompts are split once, and each step goes on where it stopped."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from quantdraft.record import RECORD_FILE, read_evaluation
from quantdraft.report.views import markdown
from quantdraft.traffic.traffic import Response, Traffic
from tests.benchmarks import real_model
from tests.benchmarks.real_model_page import K, document
from tests.benchmarks.vllm_counters import first_of_each_domain, longest
from tests.examples import EXAMPLES

TASKS = ("writing", "coding", "qa", "rag")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "question.jsonl"
    rows = [
        {
            "question_id": number,
            "category": TASKS[number % 4],
            "turns": [f"what is {number}?", "so?"],
        }
        for number in range(160)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_two_sets_share_no_question_and_each_task_has_its_number(questions, tmp_path) -> None:
    model = tmp_path / "model"
    real_model.choose_prompts(questions, model, tmp_path)
    sets = [rows_of(tmp_path / f"{name}.jsonl") for name in ("prompts", "calibration")]
    ids = [{row["id"] for row in rows} for rows in sets]
    assert not ids[0] & ids[1]
    for rows in sets:
        domains = Counter(row["domain"] for row in rows)
        assert domains == dict.fromkeys(("conversation", "qa", "rag"), real_model.NUM_PER_TASK)
    again = tmp_path / "again"
    again.mkdir()
    real_model.choose_prompts(questions, model, again)
    assert (again / "prompts.jsonl").read_bytes() == (tmp_path / "prompts.jsonl").read_bytes()


@pytest.mark.parametrize("is_chat", [True, False])
def test_a_model_is_asked_by_its_chat_template_where_it_has_one(
    questions, tmp_path, is_chat
) -> None:
    if is_chat:
        (tmp_path / "chat_template.jinja").touch()
    real_model.choose_prompts(questions, tmp_path, tmp_path)
    row = rows_of(tmp_path / "prompts.jsonl")[0]
    assert ("messages" in row, "text" in row) == (is_chat, not is_chat)


def test_a_run_without_step_times_goes_on_with_them_and_a_whole_one_stays(
    tmp_path, monkeypatch
) -> None:
    whole = read_evaluation(EXAMPLES / "int8" / RECORD_FILE)
    untimed = replace(whole, latency=replace(whole.latency, arms={}))
    for name in ("int8", "fp8"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / RECORD_FILE).touch()
    monkeypatch.setattr(
        real_model, "read_evaluation", lambda path: whole if "int8" in path.parts else untimed
    )
    asked: list[str] = []
    monkeypatch.setattr(real_model, "quantdraft", lambda work, *given: asked.append(given[1]))
    recipes = ("int8", "fp8", "int4")
    job = real_model.Job(tmp_path, "model", group_size=64)
    real_model.evaluate_all(job, recipes, no_latency=True, seconds=1)
    assert asked == ["candidates/int4-g64"]
    real_model.evaluate_all(job, recipes, no_latency=False, seconds=1)
    assert asked[1:] == ["candidates/fp8", "candidates/int4-g64"]
    assert not (tmp_path / "runs" / "fp8" / RECORD_FILE).exists()


def test_the_page_shows_every_recipe_and_the_engines_count() -> None:
    runs = [read_evaluation(EXAMPLES / name / RECORD_FILE) for name in ("identity", "int4")]
    counted = {
        "version": "0.32.0",
        "device": "cpu",
        "dtype": {"int4": "float32", "int8": "float32"},
        "is_exact": {"int4": True, "int8": False},
        "rounds_engine": {"int4": [12, 9], "int8": [12, 10]},
        "rounds_replay": {"int4": [12.0, 9.0], "int8": [12.0, 9.0]},
        "undefined": {"fp8": "it did not start"},
    }
    page = markdown.render(document(runs, counted))
    rate = runs[1].acceptance_at(K).candidate_rate.value
    assert f"| int4 | {100 * rate:.1f} %" in page
    assert "| int4 | float32 | 21 | 21 | equal | equal |" in page
    assert "| int8 | float32 | 22 | 21 | near-ties may differ | not equal |" in page
    assert "fp8: it did not start." in page
    assert "were not counted" in markdown.render(document(runs, {}))


def test_served_prompts_take_turns_between_domains_and_are_cut() -> None:
    responses = tuple(
        Response(f"{domain}-{number}", (1, 2, 3), (4, 5, 6, 7), domain=domain)
        for domain in ("qa", "rag")
        for number in range(3)
    )
    chosen = first_of_each_domain(Traffic(responses, None), 3, 2)
    assert [each.prompt_id for each in chosen.responses] == ["qa-0", "rag-0", "qa-1"]
    assert {each.response_token_ids for each in chosen.responses} == {(4, 5)}
    assert longest(chosen) == 512
