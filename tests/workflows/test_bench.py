"""`quantdraft bench` from the command line to the record, on the tiny pair."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from quantdraft.cli import main
from quantdraft.cli.values import parse_numbers
from quantdraft.errors import OptionError, OutputExistsError
from quantdraft.judge.analysis import analysed_bench
from quantdraft.measure.latency import loaded as arms
from quantdraft.measure.latency import point as point_timing
from quantdraft.measure.latency import roofline
from quantdraft.measure.latency.merging import merge_loads
from quantdraft.measure.latency.point import PointTiming
from quantdraft.measure.latency.timing_plan import MIN_LOADS
from quantdraft.quantize.apply import apply
from quantdraft.quantize.recipe import load_recipe
from quantdraft.record import read_bench
from quantdraft.workflows.bench import BenchSettings, bench, contenders_of


@pytest.fixture(scope="module")
def candidate(tiny_pair, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "draft-int8"
    apply(load_recipe("int8"), str(tiny_pair.draft), path)
    return path


@pytest.fixture
def quick(monkeypatch, short_timing):
    """Small buffers and no trials: what is measured here is not the point."""
    monkeypatch.setattr(roofline, "BUFFER_BYTES", {"cpu": 8 << 20})
    monkeypatch.setattr(roofline, "LAST_SIZE", {"cpu": 128})
    monkeypatch.setattr(point_timing, "MAX_OVERRUN", float("inf"))
    monkeypatch.setattr(arms, "float_types", lambda device: [torch.float32])


def test_bench_of_checkpoints_times_every_arm_and_writes_the_record(
    tiny_pair, candidate, tmp_path, quick
):
    arguments = ["bench", str(candidate), "--target", str(tiny_pair.target)]
    arguments += ["--batch-sizes", "1,2", "--context-lengths", "32", "-m", "1,5"]
    arguments += ["--seconds", "0.2", "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    record = read_bench(tmp_path / "out" / "bench.json")
    assert [(p.batch_size, p.context_length) for p in record.points] == [(1, 32), (2, 32)]
    first = record.points[0]
    assert set(first.arms) == {"baseline", "int8", "target", "control"}
    assert set(first.arms["target"].steps) == {1, 5}
    assert first.arms["int8"].head_step is not None
    assert first.roofline is not None
    assert record.candidates == ("int8",)
    assert not record.has_random_weights
    assert "Ratio to baseline" in done.output
    assert (tmp_path / "out" / "bench.md").is_file()

    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 1
    assert "--force" in again.output


def test_a_kernel_that_cannot_be_recorded_leaves_its_arm_out_and_the_record_is_written(
    tiny_pair, candidate, tmp_path, quick, monkeypatch
):
    real = arms.Arm.open_step

    def open_step(arm, *point):  # a recording fails on every machine without a GPU
        is_quantized = arm.native.quantized_bytes > 0
        return real(replace(arm, mode="graph") if is_quantized else arm, *point)

    monkeypatch.setattr(arms.Arm, "open_step", open_step)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = ["bench", str(candidate), "--batch-sizes", "1", "--context-lengths", "16"]
    arguments += ["-m", "1", "--mode", "eager", "--seconds", "0.05"]
    done = CliRunner().invoke(main, [*arguments, "--output", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    point = read_bench(tmp_path / "out" / "bench.json").points[0]
    assert set(point.arms) == {"baseline", "control"}
    assert point.undefined["int8"].startswith("batch 1, context 16 cannot run: a step fails: ")


def test_bytes_of_a_step_are_the_ledgers_with_the_keys_of_every_row(
    tiny_pair, candidate, tmp_path, quick
):
    settings = BenchSettings(
        candidates=(str(candidate),),
        batch_sizes=(1, 4),
        context_lengths=(32,),
        seconds=0.05,
        output=tmp_path / "out",
    )
    measured = bench(settings)
    one, four = (point.arms["baseline"].step_bytes for point in measured.points)
    # 2 layers, keys and values of 2 heads of 64 numbers, float32, 32 tokens: per further row
    assert four - one == 3 * 2 * 2 * 2 * 64 * 4 * 32
    ledger = measured.provenance["arms"]["int8"]["ledger"]
    assert ledger["head_bytes"] == measured.points[0].arms["int8"].head_bytes == 512 * 256 * 2


def test_a_shape_has_random_weights_in_every_arm_and_the_same_in_both_baselines():
    settings = BenchSettings(
        shape="smollm2-135m", target_shape="smollm2-360m", recipes=("int8", "int8-head8")
    )
    contenders = contenders_of(settings)
    assert list(contenders.sources) == ["baseline", "int8", "int8-head8", "target", "control"]
    assert contenders.candidates == ("int8", "int8-head8")
    baseline, control = contenders.sources["baseline"], contenders.sources["control"]
    name = "model.layers.3.mlp.up_proj.weight"
    assert torch.equal(baseline.tensor(name), control.tensor(name))
    assert contenders.sources["int8"].ledger.mlp_bytes < baseline.ledger.mlp_bytes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (BenchSettings(), "nothing to time"),
        (BenchSettings(candidates=("x",), shape="qwen3-0.6b"), "--shape has random weights"),
        (BenchSettings(candidates=("x",), recipes=("int4",)), "go with --shape"),
        (BenchSettings(shape="qwen3-0.6b", recipes=("identity",)), "quantizes nothing"),
        (BenchSettings(shape="qwen3-9b"), "no shape 'qwen3-9b'"),
        (BenchSettings(shape="qwen3-0.6b", seconds=0.0), "--seconds 0.0 must be above 0"),
    ],
)
def test_settings_that_do_not_go_together_are_one_line(settings, message):
    with pytest.raises(OptionError, match=message):
        bench(settings)


def test_an_existing_output_is_refused_before_anything_is_timed(tmp_path):
    with pytest.raises(OutputExistsError):
        bench(BenchSettings(shape="qwen3-0.6b", recipes=("int4",), output=tmp_path))


def test_numbers_are_lists_and_ranges():
    assert parse_numbers("1,8, 32", "--batch-sizes") == (1, 8, 32)
    assert parse_numbers("1-3,17", "-m") == (1, 2, 3, 17)
    for wrong in ("", "0", "a", "4-2", "1,-2"):
        with pytest.raises(OptionError, match="--batch-sizes"):
            parse_numbers(wrong, "--batch-sizes")


def test_a_record_of_another_version_is_refused(tmp_path):
    from quantdraft.errors import CheckpointError

    (tmp_path / "bench.json").write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(CheckpointError, match="schema version 99"):
        read_bench(tmp_path / "bench.json")


def test_a_killed_bench_goes_on_at_the_next_point(
    tiny_pair, candidate, tmp_path, quick, monkeypatch
):
    settings = BenchSettings(
        candidates=(str(candidate),),
        batch_sizes=(1, 2),
        context_lengths=(32,),
        seconds=0.1,
        mode="eager",
        output=tmp_path / "out",
    )
    real, parts = PointTiming.time_arms, []

    def killed_at_the_third(run, *arguments):
        if len(parts) == 2:
            raise KeyboardInterrupt
        parts.append(real(run, *arguments))
        return parts[-1]

    monkeypatch.setattr(PointTiming, "time_arms", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        bench(settings)
    assert not (tmp_path / "out").exists()

    def only_the_rest(run, *arguments):
        parts.append(real(run, *arguments))
        return parts[-1]

    monkeypatch.setattr(PointTiming, "time_arms", only_the_rest)
    measured = bench(settings)
    num_parts = 2 * MIN_LOADS  # of two points
    assert len(parts) == num_parts
    points = merge_loads(parts[::2]), merge_loads(parts[1::2])
    assert measured == analysed_bench(replace(measured, points=points))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

    bench(replace(settings, force=True))  # a finished one: anew
    assert len(parts) == 2 * num_parts
