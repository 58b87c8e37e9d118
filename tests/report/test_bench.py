"""The bench's tables, from samples whose ratios are known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quantdraft.judge.analysis import analysed_bench
from quantdraft.judge.comparison.speeds import step_ratio, with_step_speedups
from quantdraft.record import (
    BENCH_SCHEMA_VERSION,
    ArmLatency,
    Bench,
    Latency,
    Roofline,
    StepSamples,
    read_bench,
)
from quantdraft.report.blocks import Table
from quantdraft.report.sections import bench as bench_page
from quantdraft.report.sections.bench import RANDOM_WEIGHTS, draft_blocks, target_blocks
from tests.example_evaluation import evaluation
from tests.pages import (
    bench_document,
    render_bench,
    render_terminal,
    require_valid_charts,
    write_bench,
)

DRIFT = [1.0 + 0.01 * block for block in range(20)]  # the machine slows down; ratios do not


def samples(ms: float) -> StepSamples:
    return StepSamples(tuple(ms * drift for drift in DRIFT))


def arm(name: str, ms: float, size: int, head_ms: float | None = None) -> ArmLatency:
    return ArmLatency(
        name=name,
        compute_dtype="bfloat16",
        kernels=(f"{name}_kernel",),
        weight_bytes=size,
        steps={1: samples(ms)},
        step_bytes=size,
        head_bytes=10_000_000,
        head_step=None if head_ms is None else samples(head_ms),
        mode="eager",
        runtime="native decoder",
    )


def point(batch_size: int = 1, context_length: int = 128) -> Latency:
    target = replace(arm("target", 30.0, 400_000_000), steps={1: samples(30.0), 5: samples(33.0)})
    return Latency(
        engine="native",
        device="cpu",
        num_threads=2,
        batch_size=batch_size,
        context_length=context_length,
        arms={
            "baseline": arm("baseline", 10.0, 100_000_000, head_ms=1.0),
            "int4": arm("int4", 4.0, 25_000_000, head_ms=1.0),
            "target": target,
        },
        undefined={"fp8": "no cpu kernel computes in fp8"},
        load_average=(0.5, 0.7),
        roofline=Roofline(20e9, 15e9, {"float32": 1e11}),
    )


def bench(*points: Latency, has_random_weights: bool = True) -> Bench:
    return Bench(
        schema_version=BENCH_SCHEMA_VERSION,
        created="2026-11-22T00:00:00+00:00",
        name="llama-3.2-1b",
        has_random_weights=has_random_weights,
        candidates=("int4", "fp8"),
        points=points,
        provenance={},
    )


def test_a_draft_that_is_smaller_and_slower_saves_memory_not_time():
    slow = point()
    slow.arms["nf4"] = arm("nf4", 40.0, 25_000_000)
    text = " ".join(render_bench(bench(slow)).split())
    assert (
        "Memory, not speed: nf4 reads 4.00 times fewer bytes a step than the baseline, and its "
        "step takes 4.00 times as long (4.00 to 4.00)." in text
    )
    assert "Memory, not speed: int4" not in text
    both = " ".join(render_bench(bench(slow, point(8))).split())
    assert "nf4 at 1 × 128 reads" in both


def test_figures_of_a_step_are_those_of_its_time_and_bytes():
    figures = with_step_speedups(point()).figures("int4")
    assert figures.ratio is not None
    # the same drift in every block: the ratio is 2.5 in each, and its interval has no width
    assert (figures.ratio.value, figures.ratio.low, figures.ratio.high) == pytest.approx((2.5,) * 3)
    assert figures.byte_ratio == 4.0
    assert figures.median_ms == pytest.approx(4.0 * 1.095)
    assert figures.bytes_per_s == pytest.approx(25e6 / (4.38e-3))
    assert figures.bandwidth_fraction == pytest.approx(25e6 / 4.38e-3 / 20e9)
    assert figures.limit_ms == pytest.approx(1.25)
    assert figures.head_bytes_share == pytest.approx(0.4)
    assert figures.head_time_share == pytest.approx(0.25)


def test_what_was_not_measured_is_none_and_never_a_number():
    bare = ArmLatency("int4", "float32", (), 5, {1: samples(4.0)})
    latency = replace(point(), arms={"int4": bare}, roofline=None)
    figures = with_step_speedups(latency).figures("int4")
    assert figures.median_ms == pytest.approx(4.38)
    assert (figures.ratio, figures.byte_ratio, figures.bytes_per_s) == (None, None, None)
    assert (figures.bandwidth_fraction, figures.limit_ms) == (None, None)
    assert (figures.head_bytes_share, figures.head_time_share) == (None, None)


def test_a_ratio_of_too_few_blocks_is_undefined():
    few = StepSamples((1.0, 1.0))
    assert step_ratio(few, few, point()) is None


def test_the_table_has_a_row_a_draft_and_point_and_none_for_the_target():
    (table,) = draft_blocks([with_step_speedups(each) for each in (point(), point(batch_size=8))])
    assert isinstance(table, Table)
    assert [row[:3] for row in table.rows] == [
        ("1", "128", "baseline"),
        ("1", "128", "int4"),
        ("8", "128", "baseline"),
        ("8", "128", "int4"),
    ]
    cells = dict(zip(table.columns, table.rows[1], strict=True))
    assert cells["Ratio to baseline"] == "2.500× (2.500× to 2.500×)"
    assert cells["Limit"] == "4.000×"
    assert cells["Bytes"] == "25.0 MB"
    assert cells["GB/s"] == "5.71"
    assert cells["Of copy bandwidth"] == "28.5 %"
    assert cells["Head, of bytes"] == "40.0 %"
    assert cells["Head, of time"] == "25.0 %"


def test_the_targets_table_has_a_column_for_each_number_of_new_tokens():
    (table,) = target_blocks([point()])
    assert isinstance(table, Table)
    assert table.columns == ("Batch", "Context", "m = 1", "m = 5")
    assert table.rows == (("1", "128", "32.9", "36.1"),)


def test_random_weights_are_said_to_be_latency_only():
    assert RANDOM_WEIGHTS.split(":")[0] in render_bench(bench(point())).replace("\n", " ")
    assert "Random weights" not in render_bench(bench(point(), has_random_weights=False))


def test_what_was_left_out_is_listed_once_with_where_and_why():
    made = analysed_bench(bench(point(), point(8)))
    assert require_valid_charts(bench_page.bench_document, made)
    sections = {s.title: s for s in bench_page.bench_document(made).sections}
    (table,) = sections["Left out"].blocks
    assert isinstance(table, Table)
    assert table.rows == (("fp8", "every point", "undefined: no cpu kernel computes in fp8"),)


def test_the_record_reads_back_as_it_was_written(tmp_path):
    made = bench(point(), point(8))
    write_bench(made, tmp_path)
    assert read_bench(tmp_path / "bench.json") == analysed_bench(made)
    assert (tmp_path / "bench.md").read_text(encoding="utf-8").startswith("# Step times of llama")
    page = (tmp_path / "bench.html").read_text(encoding="utf-8")
    assert "<h1>Step times of llama" in page


def test_an_evaluation_shows_the_limit_beside_the_measured_saving():
    made = evaluation()
    before, after = (replace(made.latency.arms[a], step_bytes=size) for a, size in
                     (("baseline", 100_000_000), ("candidate", 40_000_000)))  # fmt: skip
    arms = made.latency.arms | {"baseline": before, "candidate": after}
    latency = replace(made.latency, arms=arms, roofline=Roofline(200e9, 150e9, {}))
    shown = render_terminal(replace(made, latency=latency, grid=(replace(latency, batch_size=8),)))
    text = " ".join(shown.split())
    assert "draft step against the baseline's: 38.1 % shorter (37.1 to 39.2 %)." in text
    assert "By its bytes alone it would be 60.0 % shorter." in text
    assert "At other batch sizes and contexts:" in text
    assert "Head, of time" not in text  # an evaluation does not time the head alone


def test_the_benchmarks_json_line_holds_these_figures_and_null_for_what_was_not_timed():
    from tests.benchmarks.draft_step import figures

    found = figures(point())
    assert found["int4_ratio"] == pytest.approx(2.5)
    assert found["int4_ratio_interval"] == pytest.approx([2.5, 2.5])
    assert found["int8_ratio"] is found["int4_head8_ratio_interval"] is None
    assert found["bandwidth_fraction"]["baseline"] == pytest.approx(100e6 / 10.95e-3 / 20e9)
    assert found["head_share"]["int4"] == pytest.approx(0.25)
    assert found["copy_bandwidth_gb_s"] == pytest.approx(20.0)


def test_pictures_show_every_draft_against_the_baseline_and_the_target_by_its_tokens(tmp_path):
    one, four = point(), point(batch_size=4)
    built = bench_document(bench(one, four))
    drafts, target = built.charts
    assert drafts.data.rows[0] == ("int4 at 1 × 128", "2.500× (2.500× to 2.500×)", "4.000×")
    assert target.data.rows[1] == ("1 × 128", "5", "36.1 ms (1.100×)")
    (alone, _) = bench_document(bench(one)).charts
    assert [row[0] for row in alone.data.rows] == ["int4"]
    write_bench(bench(one), tmp_path)
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {"draft-steps.svg", "target-steps.svg"}
    assert "figures/draft-steps.svg" in (tmp_path / "bench.md").read_text(encoding="utf-8")


def test_points_left_out_for_one_reason_are_named_in_short():
    many = [replace(point(batch_size=size), arms={}, undefined={"int4": "dear"}) for size in (2, 4)]
    built = bench_document(bench(point(), *many))
    table = next(s for s in built.sections if s.title == "Left out").blocks[0]
    assert isinstance(table, Table)
    assert table.rows[-1][1] == "batch 2, context 128; batch 4, context 128"
    more = [replace(many[0], batch_size=size) for size in (8, 16)]
    built = bench_document(bench(point(), *many, *more))
    table = next(s for s in built.sections if s.title == "Left out").blocks[0]
    assert isinstance(table, Table)
    assert table.rows[-1][1] == "batch 2, context 128 and 3 larger"
