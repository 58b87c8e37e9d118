"""A log as it is: every command that reads one has the same options, and they reach the record."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from quantdraft.traffic.traffic import read_traffic
from tests.cli.test_commands import one_line, run
from tests.conftest import Pair
from tests.traffic.templated import TEMPLATE, Templated

USER, SAID = {"role": "user", "content": "ab"}, {"role": "assistant", "content": "cdef"}
TALK = [USER, SAID, {"role": "user", "content": "gh"}, {"role": "assistant", "content": "ijkl"}]
TALKS = (TALK, TALK[2:])
FROM = {"user": "human", "assistant": "gpt"}
NO_THINKING = ("--chat-template-kwargs", '{"enable_thinking": false}')
SHORT = ("--max-new-tokens", 4)
CALIBRATED = ("--set", "group_size=64")
ACCEPTANCE = ("--no-latency", "--live-prompts", 0, "-k", 2)


@pytest.fixture(scope="module")
def draft(tiny_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A draft whose tokenizer has a chat template."""
    path = tmp_path_factory.mktemp("logs") / "draft"
    shutil.copytree(tiny_pair.draft, path)
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


def lines(path: Path, *entries: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in entries))
    return path


def sharegpt(path: Path) -> Path:
    turns = [{"from": FROM[turn["role"]], "value": turn["content"]} for turn in TALK]
    return lines(path, {"id": "a", "conversations": turns}, {"id": "b", "conversations": turns[2:]})


def wildchat(path: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"conversation_hash": str(i), "conversation": talk} for i, talk in enumerate(TALKS)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def batch(directory: Path) -> tuple[Path, Path]:
    """Both files of a batch: its replies, and its requests."""
    choices = [{"index": 0, "message": SAID, "finish_reason": "stop"}]
    replies = [
        {"custom_id": name, "response": {"status_code": 200, "body": {"choices": choices}}}
        for name in "ab"
    ]
    asked = [
        {"custom_id": name, "method": "POST", "body": {"messages": [{**USER, "content": name}]}}
        for name in "ab"
    ]
    return lines(directory / "out.jsonl", *replies), lines(directory / "in.jsonl", *asked)


def traffic_of(draft: Path, tmp_path: Path, *options: object) -> dict[str, Any]:
    """Return what the record of an evaluation says of its traffic."""
    done = run("evaluate", draft, "-b", draft, *ACCEPTANCE, "-o", tmp_path / "run", *options)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads((tmp_path / "run/evaluation.json").read_text())
    return found["provenance"]["traffic"]


@pytest.mark.usefixtures("no_pages")
@pytest.mark.parametrize(("turns", "num_prompts"), [("last", 2), ("all", 3)])
def test_evaluate_reads_the_turns_that_are_asked_for(
    draft: Path, tmp_path: Path, turns: str, num_prompts: int
) -> None:
    log = sharegpt(tmp_path / "log.jsonl")
    found = traffic_of(draft, tmp_path, "--traffic", log, "--turns", turns, "--format", "sharegpt")
    # The second conversation is not a part of the first: it has no history.
    assert found["num_prompts"] == num_prompts
    assert found["read_with"] == {"format": "sharegpt", "turns": turns}
    assert found["reading"]["formats"] == {"ShareGPT": 2}


@pytest.mark.usefixtures("no_pages")
def test_evaluate_gives_the_template_its_arguments(draft: Path, tmp_path: Path) -> None:
    log = lines(tmp_path / "log.jsonl", {"messages": TALK[:2]}, {"messages": TALK[2:]})
    found = traffic_of(draft, tmp_path, "--traffic", log, *NO_THINKING)
    assert found["read_with"] == {"chat_template_kwargs": {"enable_thinking": False}}
    shown = run("traffic", log, "--draft", draft, "--json")
    told = run("traffic", log, "--draft", draft, "--json", *NO_THINKING)
    longer = [json.loads(each.stdout)["files"][0]["lengths"]["prompt"] for each in (shown, told)]
    totals = [each["tokens"]["total"] for each in longer]
    assert totals[1] - totals[0] == 2 * len("<think>\n\n</think>\n\n")


@pytest.mark.usefixtures("no_pages")
def test_evaluate_joins_a_batch_with_its_requests(draft: Path, tmp_path: Path) -> None:
    replies, asked = batch(tmp_path)
    found = traffic_of(draft, tmp_path, "--traffic", replies, "--requests", asked)
    assert found["num_prompts"] == 2
    assert list(found["read_with"]) == ["requests_sha256"]
    alone = run("evaluate", draft, "-b", draft, "--traffic", replies, "-o", tmp_path / "other")
    assert "its request is not known: give the batch's input file with --requests" in alone.stderr
    assert alone.exit_code == 1


def test_what_is_left_out_after_reading_stands_in_the_record(draft: Path, tmp_path: Path) -> None:
    """Repeats and responses beyond the model's positions are found when the text is tokens."""
    long = {"messages": [USER, {**SAID, "content": "x" * 600}]}
    log = lines(tmp_path / "log.jsonl", {"messages": TALK[:2]}, {"messages": TALK[:2]}, long)
    reading = traffic_of(draft, tmp_path, "--traffic", log)["reading"]
    assert [(each["count"], each["reason"]) for each in reading["left_out"]] == [
        (1, "responses longer, with their prompts, than the 512 positions of 'draft'"),
        (1, "responses that repeat another to the token"),
    ]
    page = (tmp_path / "run/report.md").read_text()
    assert "responses that repeat another to the token" in page


@pytest.mark.usefixtures("no_pages")
def test_parquet_is_evaluated_and_captured(draft: Path, tmp_path: Path) -> None:
    log = wildchat(tmp_path / "log.parquet")
    assert traffic_of(draft, tmp_path, "--traffic", log)["num_prompts"] == 3
    done = run("capture", "-t", draft, "--prompts", log, "-o", tmp_path / "t.jsonl", *SHORT)
    assert done.exit_code == 0, done.output
    assert len(read_traffic(tmp_path / "t.jsonl").responses) == 2  # up to the first answer


@pytest.mark.parametrize(("turns", "num_asked"), [("last", 2), ("all", 3)])
def test_capture_asks_the_turns_that_are_asked_for(
    draft: Path, tmp_path: Path, turns: str, num_asked: int
) -> None:
    log, output = sharegpt(tmp_path / "log.jsonl"), tmp_path / "t.jsonl"
    how = ("--turns", turns, "--format", "sharegpt", *NO_THINKING)
    done = run("capture", "-t", draft, "--prompts", log, "-o", output, *SHORT, *how)
    assert done.exit_code == 0, done.output
    asked = read_traffic(output).responses
    assert len(asked) == num_asked
    prompt = Templated().apply_chat_template(
        TALK[2:3], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert "<think>" in prompt
    assert len(asked[-1].prompt_token_ids) == len(prompt)


def test_capture_asks_the_requests_of_a_batch(draft: Path, tmp_path: Path) -> None:
    replies, asked = batch(tmp_path)
    given = ("-t", draft, "-o", tmp_path / "t.jsonl", *SHORT)
    done = run("capture", *given, "--prompts", replies, "--requests", asked)
    assert done.exit_code == 0, done.output
    assert len(read_traffic(tmp_path / "t.jsonl").responses) == 2


@pytest.mark.usefixtures("no_pages")
def test_a_recipe_is_calibrated_on_a_log_that_evaluate_reads(draft: Path, tmp_path: Path) -> None:
    replies, asked = batch(tmp_path)
    how = ("--format", "batch", "--requests", asked, *NO_THINKING)
    made = run("apply", "-r", "int4-gptq", "-d", draft, "-o", tmp_path / "made", *CALIBRATED,
               "--calibration", replies, *how)  # fmt: skip
    assert made.exit_code == 0, made.output
    record = json.loads((tmp_path / "made/quantdraft.json").read_text())["calibration"]
    assert record["num_samples"] == 1
    assert record["part"]["num_in_file"] == 2
    assert record["reading"]["formats"] == {"OpenAI Batch output": 2}
    assert set(record["read_with"]) == {"format", "chat_template_kwargs", "requests_sha256"}
    found = run("evaluate", tmp_path / "made", *ACCEPTANCE, "--traffic", replies, *how,
                "-o", tmp_path / "run")  # fmt: skip
    assert found.exit_code == 0, found.output
    assert "judged on 1 of 2 conversations" in found.stderr


def test_how_a_log_is_read_is_refused_where_none_is(draft: Path, tmp_path: Path) -> None:
    wrong = run("apply", "-r", "int8", "-d", draft, "--turns", "all", "-o", tmp_path / "made")
    assert "recipe 'int8' is not calibrated on a log. Leave out" in one_line(wrong)


@pytest.mark.usefixtures("no_pages")
def test_a_sweep_reads_and_calibrates_alike(draft: Path, tmp_path: Path) -> None:
    replies, asked = batch(tmp_path)
    given = ("sweep", "-d", draft, "-r", "int8,int4-gptq", *CALIBRATED, "--traffic", replies,
             "--calibration", replies, *ACCEPTANCE, "-o", tmp_path / "sweep")  # fmt: skip
    done = run(*given, "--requests", asked, *NO_THINKING)
    assert done.exit_code == 0, done.output
    for path in (tmp_path / "sweep/runs").glob("*/evaluation.json"):
        found = json.loads(path.read_text())["provenance"]["traffic"]
        assert set(found["read_with"]) == {"chat_template_kwargs", "requests_sha256"}
        assert found["num_prompts"] == 1
    other = run(*given, "--requests", asked)
    assert "holds something else than this sweep" in one_line(other)


@pytest.mark.usefixtures("short_timing")
def test_the_verdict_is_given_over_a_trace(tiny_pair: Pair, draft: Path, tmp_path: Path) -> None:
    """Four requests at once of 60 tokens, far apart: the trace lies at batch 4 alone."""
    said = [{"prompt": "ab", "response": "cdefgh"[: 3 + at] * 4} for at in range(4)]
    log = lines(tmp_path / "log.jsonl", *said)
    bursts = [{"timestamp": 10**6 * at, "input_length": 34, "output_length": 60} for at in range(3)]
    trace = lines(tmp_path / "trace.jsonl", *(each for each in bursts for _ in range(4)))
    timed = ("-t", tiny_pair.target, "-k", 2, "--live-prompts", 0, "--latency-seconds", 0.3)
    given = ("evaluate", draft, "-b", draft, *timed, "--traffic", log, "--trace", trace)
    done = run(*given, "--batch-sizes", "4", "-o", tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert "the trace: read as a trace of lengths: 12 of 12 lines" in done.stderr
    found = json.loads((tmp_path / "run/evaluation.json").read_text())["trace"]
    assert [(c["batch_size"], c["context_length"]) for c in found["cells"]] == [(4, 64)]
    assert found["cells"][0]["num_tokens"] == pytest.approx(720)
    assert found["speed"]["speedup_over_baseline"]["low"] > 0
    page = (tmp_path / "run/report.md").read_text()
    assert "Over the trace" in page
    assert "a token shares its batch with 4.00 requests in the mean, 4 at most" in page
    again = run("report", tmp_path / "run")
    assert "Over the trace" in again.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--trace", "TRACE", "--no-latency"), "--no-latency times none"),
        (("--trace", "TRACE"), "--trace needs --target"),
        (("--trace-servers", 2), "need --trace"),
        (("--trace", "LOG", "-t", "TARGET"), "is no trace of requests with lengths and times"),
    ],
)
def test_a_trace_that_cannot_be_used_is_one_line(
    tiny_pair: Pair, draft: Path, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    log = lines(tmp_path / "log.jsonl", {"messages": TALK[:2]})
    trace = lines(tmp_path / "t.jsonl", {"timestamp": 1, "input_length": 3, "output_length": 4})
    names = {"TRACE": trace, "LOG": log, "TARGET": tiny_pair.target}
    given = [names.get(str(each), each) for each in options]
    wrong = run("evaluate", draft, "-b", draft, "--traffic", log, "-o", tmp_path / "r", *given)
    assert message in one_line(wrong)
    assert not (tmp_path / "r").exists()
