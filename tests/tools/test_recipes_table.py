"""The table of recipes has a row for each recipe, and keeps the parts that are finished."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from quantdraft.engines.registry import support_tables
from quantdraft.quantize.recipe import load_recipe
from quantdraft.record import Interval
from quantdraft.report.views import markdown
from quantdraft.workflows.list_recipes import Entry
from tests.benchmarks import recipe_gguf, recipe_parts, recipes_table
from tests.benchmarks.recipe_plan import PartFailed, Plan
from tests.benchmarks.recipe_rows import Counted, Made, Row, Served, Tried
from tests.benchmarks.recipes_page import counters_of, document, refusals_of, table_of
from tests.benchmarks.recipes_table import empty_row, measured, summary, write

MADE = Made(
    apply_seconds=12.5,
    cpu_seconds=10.0,
    peak_bytes=500_000_000,
    start_bytes=250_000_000,
    disk_bytes=2_900_000,
    step_bytes=2_000_000,
    context_step_bytes=2_500_000,
    logit_error=0.1125,
    reload_error=0.0,
    baseline_rate=Interval(0.62, 0.57, 0.67),
    rate=Interval(0.61, 0.56, 0.66),
    loss=Interval(0.01, -0.005, 0.025),
    num_prompts=64,
    num_tokens=8128,
)
TRIED = [
    Tried("native", "refuses", "no cpu kernel computes in fp8"),
    Tried("transformers", "loads", "float32, the target's own text", 0.0),
]
COUNTED = Counted("float32", (13, 16), (13.0, 17.0), True, (True, False))
SERVED = Served(Tried("vllm", "loads", "vLLM 0.32.0, float32"), COUNTED, 60.0)
SIZES = {"num_tokens": 128, "served_prompts": 2, "served_tokens": 64}


def silent(line: str) -> None:
    """Progress goes nowhere."""


class FakeParts:
    """Answers each part at once; remembers what was asked, and fails where it is told to."""

    def __init__(self, work: Path) -> None:
        self.work, self.asked, self.failing = work, [], {}

    def __call__(self, given: list[str], log: Path) -> None:
        options = dict(each.split("=", 1) for each in given[1:])
        part, recipe = given[0], options["--recipe"]
        self.asked.append((part, recipe))
        if (part, recipe) in self.failing:
            raise PartFailed(self.failing[part, recipe])
        if part == "traffic":
            for name in recipes_table.SETS:
                (self.work / name).write_text("{}", encoding="utf-8")
        answers = {"traffic": {}, "made": asdict(MADE), "served": asdict(SERVED)}
        answers["tried"] = [asdict(each) for each in TRIED]
        Path(options["--output"]).write_text(json.dumps(answers[part]), encoding="utf-8")


@pytest.fixture
def parts(tmp_path) -> FakeParts:
    return FakeParts(tmp_path)


def plan_of(
    parts: FakeParts, vllm: Path | None = Path("python"), llamacpp: Path | None = None
) -> Plan:
    return Plan(parts.work, vllm, llamacpp, SIZES, parts)


def entry(name: str, missing: tuple[str, ...] = ()) -> Entry:
    recipe = load_recipe(name)
    install = "pip install 'quantdraft[x]'" if missing else None
    engines = {name: table.of_recipe(recipe) for name, table in support_tables().items()}
    return Entry(recipe, missing, install, {"cuda": ("Fp8Linear",)}, None, engines)


def rows_of(parts: FakeParts, *entries: Entry) -> list[Row]:
    return measured(plan_of(parts), list(entries), [], silent)


def test_what_is_finished_is_not_measured_again_and_what_failed_is(parts):
    parts.failing["made", "int8"] = "CheckpointError: its scales are corrupt."
    entries = (entry("fp8"), entry("int8"))
    first = rows_of(parts, *entries)
    assert [row.problem for row in first] == [None, "CheckpointError: its scales are corrupt."]

    parts.asked, parts.failing = [], {}
    second = rows_of(parts, *entries)
    assert second[0] == first[0]
    assert parts.asked == [("made", "int8"), ("tried", "int8"), ("served", "int8")]


def test_another_vllm_serves_again_and_applies_nothing_again(parts):
    rows_of(parts, entry("fp8"))
    parts.asked = []
    measured(plan_of(parts, Path("other")), [entry("fp8")], [], silent)
    assert parts.asked == [("served", "fp8")]


def test_a_recipe_without_its_back_end_is_a_row_with_the_command_that_brings_it(parts):
    row = rows_of(parts, entry("nf4", missing=("bitsandbytes",)))[0]
    assert row.problem == "needs bitsandbytes: pip install 'quantdraft[x]'"
    assert ("made", "nf4") not in parts.asked
    assert row.engine("native") == Tried("native", "not tried", "no checkpoint")
    assert table_of([row]).rows[0][1] == "undefined"
    assert ("apply", "no checkpoint", row.problem, "nf4") in refusals_of([row]).rows


def test_an_engine_that_kills_its_process_is_a_refusal_in_its_last_words(parts):
    parts.failing["tried", "fp8"] = "Illegal instruction"
    row = rows_of(parts, entry("fp8"))[0]
    assert row.engine("transformers") == Tried("transformers", "refuses", "Illegal instruction")
    assert row.engine("vllm").level == "loads"


def test_without_vllm_it_was_not_tried(parts):
    row = measured(plan_of(parts, None), [entry("fp8")], [], silent)[0]
    assert row.engine("vllm") == Tried("vllm", "not tried", "no --vllm-python was given")
    assert "served" not in {part for part, _ in parts.asked}


def test_when_time_is_up_rows_stay_and_the_next_run_goes_on(parts):
    rows_of(parts, entry("fp8"))
    parts.asked = []
    late = replace(plan_of(parts), deadline=0.0)
    rows = measured(late, [entry("fp8"), entry("int8")], [], silent)
    assert rows[0].counted == COUNTED
    assert rows[1].problem is not None
    assert rows[1].problem.startswith("not measured: --max-minutes were over")
    assert parts.asked == []


def test_every_refusal_is_on_the_page_with_its_own_words(parts):
    row = rows_of(parts, entry("fp8"))[0]
    page = markdown.render(document([row], {"versions": {"torch": "2.13.0"}}, "python -m x"))
    assert "| native | refuses | no cpu kernel computes in fp8 | fp8 |" in page
    assert "61.0 % (56.0 to 66.0)" in page
    assert "+1.0 (-0.5 to +2.5)" in page


def test_equal_reasons_are_told_once(parts):
    rows = rows_of(parts, entry("fp8"), entry("fp8-head8"))
    found = ("native", "refuses", "no cpu kernel computes in fp8", "fp8, fp8-head8")
    assert found in refusals_of(rows).rows


def test_llama_cpp_has_rows_of_its_own_and_without_it_they_say_so(parts):
    absent = measured(plan_of(parts), [], ["q8_0"], silent)[0]
    assert absent.problem == "not tried here: no --llamacpp was given"
    row = measured(plan_of(parts, llamacpp=Path("llama.cpp")), [], ["q8_0"], silent)[0]
    assert row.name == "gguf-q8_0"
    assert row.made == MADE
    assert row.engine("native").level == row.engine("vllm").level == "not tried"
    assert row.counted == COUNTED
    assert ("tried", "gguf-q8_0") not in parts.asked


def test_rows_of_a_gguf_come_back_in_the_usual_order():
    weight = torch.arange(2 * 8 * 3).reshape(16, 3)  # two heads of eight rows
    # What llama.cpp's converter does to queries and keys (LlamaModel.permute).
    permuted = weight.reshape(2, 2, 4, 3).swapaxes(1, 2).reshape(16, 3)
    assert not torch.equal(permuted, weight)
    assert torch.equal(recipe_gguf.interleaved(permuted, 2), weight)


def test_names_of_a_gguf_are_the_usual_ones():
    name = "model.layers.3.self_attn.q_proj.weight"
    assert recipe_gguf.usual_name("blk.3.attn_q.weight") == name
    assert recipe_gguf.usual_name("output_norm.weight") == "model.norm.weight"
    assert recipe_gguf.usual_name("rope_freqs.weight") is None


def test_rounds_that_differ_are_shown_by_prompt_and_deny_equality(parts):
    row = rows_of(parts, entry("fp8"))[0]
    cells = counters_of([row]).rows[0]
    assert cells == ("fp8", "float32", "29", "30", "0, -1", "equal", "1 of 2")
    assert summary([row], 1.0)["equal_where_exact"] is False
    inexact = replace(row, counted=replace(COUNTED, is_exact=False))
    assert summary([inexact], 1.0)["equal_where_exact"] is None


def test_an_engine_that_does_otherwise_than_known_is_a_surprise():
    row = replace(
        empty_row(entry("fp8")), expected={"vllm": "yes", "transformers": "no"}, made=MADE
    )
    refused = Tried("vllm", "refuses", "RuntimeError: no")
    loaded = Tried("transformers", "loads", "float32")
    found = replace(row, tried=(refused, loaded)).surprises()
    assert [text.split()[1] for text in found] == ["vllm", "transformers"]
    agreeing = replace(row, expected={"vllm": "no", "transformers": "part"})
    assert replace(agreeing, tried=(refused, loaded)).surprises() == []


def test_record_and_page_are_written_from_the_same_rows(parts, tmp_path):
    rows = rows_of(parts, entry("fp8"), entry("int4"))
    write(rows, tmp_path / "reports", "python -m tests.benchmarks.recipes_table")
    record = json.loads((tmp_path / "reports" / "recipes.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in record["rows"]] == ["fp8", "int4"]
    assert record["rows"][0]["made"]["disk_bytes"] == 2_900_000
    page = (tmp_path / "reports" / "recipes.md").read_text(encoding="utf-8")
    assert "Command: python -m tests.benchmarks.recipes\\_table" in page or "recipes_table" in page


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("RuntimeError: expected scalar type BFloat16 but found Float", True),
        ("ValueError: float32 is not supported for quantization method gptq", True),
        ("'_C' object has no attribute 'cpu_gemm_wna16'", False),
        ("Quant type (uint8b128) not supported", False),
    ],
)
def test_another_float_type_is_tried_where_the_refusal_is_of_one(reason, expected):
    assert bool(recipe_parts.FLOAT_TYPE.search(reason)) is expected
