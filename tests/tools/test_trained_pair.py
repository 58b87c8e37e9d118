"""The pair that is trained on the spot: its sizes, its steps, and what is said of its speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.checkpoints.reference import pair_dir
from quantdraft.checkpoints.tensors.loading import load_model
from quantdraft.errors import OptionError
from quantdraft.quantize.apply import apply
from quantdraft.quantize.recipe import load_recipe
from quantdraft.record import Interval, read_evaluation
from tests.benchmarks import trained_pair
from tests.benchmarks.pair_live import lines, rows
from tests.benchmarks.rounded_draft import round_draft
from tests.tools.reference.lessons import model_config

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "tests" / "records" / "evaluation-0.1.0.json"


@pytest.mark.slow
def test_the_dry_run_trains_a_pair_and_does_the_whole_job_in_two_calls_without_what_draws(tmp_path):
    absent = "altair,vl_convert,llmcompressor,hypothesis,playwright"
    command = [sys.executable, "-m", "tests.hidden", absent, "tests.benchmarks.trained_pair"]
    command += ["--dry-run", "--device=cpu", f"--work-dir={tmp_path / 'work'}", "-k", "2"]
    command += [f"--output={tmp_path / 'out'}", "--recipes", "fp8", "int4-head8"]
    stopped = run([*command, "--minutes=0"])
    assert stopped.returncode == 3, stopped.stderr
    assert "train:target is next; run the command again" in stopped.stdout
    done = run([*command, "--minutes=30"])
    assert done.returncode == 0, done.stderr
    assert "tokenizer:" not in done.stdout  # not done again
    found = json.loads((tmp_path / "out" / "pair.json").read_text())
    known = {(row["temperature"], row["draft"]): row for row in found["speedups"]}
    assert len(known) == 6
    for temperature in ("greedy", "0.8"):
        for draft in ("baseline", "int4-head8"):
            assert known[temperature, draft]["gap"] is not None
        assert "no cpu kernel computes in fp8" in known[temperature, "fp8"]["undefined"]
        record = read_evaluation(tmp_path / "out" / f"int4-head8-{temperature}" / "evaluation.json")
        assert record.num_speculative_tokens == (2,)
    assert known["greedy", "baseline"]["texts"] == {"identical": 3}
    again = run(command)
    assert again.returncode == 0
    assert "live:" not in again.stdout


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """The command, when it has ended."""
    return subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=900, check=False
    )


def test_the_target_has_300_million_parameters_and_the_draft_30() -> None:
    numbers = {}
    for name in ("target", "draft"):
        with torch.device("meta"):
            model = LlamaForCausalLM(model_config(name, trained_pair.FULL.size))
        numbers[name] = model.num_parameters()
    assert numbers["target"] >= 300e6
    assert numbers["draft"] >= 30e6
    assert numbers["draft"] < numbers["target"] / 5
    assert trained_pair.FULL.num_prompts >= 200
    assert trained_pair.FULL.num_tokens >= 256


def test_a_step_begins_only_with_time_for_the_longest_of_its_kind(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pair", f"--work-dir={tmp_path}", f"--output={tmp_path}"])
    job = trained_pair.Job(trained_pair.parsed(), torch.device("cpu"))
    assert job.expected_s("live:greedy:int4:2") == pytest.approx(1.2 * job.plan.margin_s)
    job.done |= {"live:greedy:target:0": 100.0, "live:greedy:int8:2": 40.0, "models": 9.0}
    assert job.expected_s("live:greedy:int4:2") == pytest.approx(120.0)
    assert job.expected_s("train:draft") == job.plan.margin_s / 3  # it stops by itself
    names = [name for name, _ in job.steps()]
    assert len(names) == len(set(names)) == 5 + 4 + 2 + 2 * (4 + 1 + 5 * 2)


def test_live_and_predicted_speedups_are_told_apart_by_three_percent() -> None:
    record = read_evaluation(RECORD)
    k = record.num_speculative_tokens[0]
    at = [p.candidate_num_speculative_tokens for p in record.equal_k].index(k)
    point = replace(
        record.equal_k[at],
        speedup_over_autoregressive=Interval(2.0, 1.9, 2.1),
        baseline_speedup_over_autoregressive=Interval(1.5, 1.4, 1.6),
    )
    record = replace(record, equal_k=(point,))
    live = {"greedy:target:0": {"ms_per_token": 10.0}}
    live |= {f"greedy:baseline:{k}": {"ms_per_token": 10 / 1.53}}
    live |= {f"greedy:int4:{k}": {"ms_per_token": 10 / 1.9, "texts": {"identical": 3}}}
    base, own = rows(live, {"int4": record}, "greedy", [k])
    assert (base["draft"], own["draft"]) == ("baseline", "int4")
    assert base["gap"] == pytest.approx(0.02)
    assert base["is_met"] is True
    assert own["gap"] == pytest.approx(-0.05)
    assert own["is_met"] is False
    said = lines([base, own])
    assert "1.530x" in said[1]
    assert said[2].endswith("-5.0 %  over 3 %")
    (missing, _) = rows({}, {"int4": record}, "greedy", [k])
    assert missing["gap"] is missing["is_met"] is None


@pytest.mark.parametrize("recipe", ["int4-head8", "int8", "fp8"])
def test_rounding_without_the_library_makes_the_weights_that_the_library_makes(
    recipe, tmp_path
) -> None:
    (tmp_path / "own").mkdir()
    round_draft(recipe, pair_dir() / "draft", tmp_path / "own")
    apply(load_recipe(recipe), str(pair_dir() / "draft"), tmp_path / "library")
    ids = torch.arange(40)[None]
    logits = [
        load_model(tmp_path / name, torch.float32, torch.device("cpu"))(input_ids=ids).logits
        for name in ("own", "library")
    ]
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-3, atol=1e-3)
    own, library = (open_checkpoint(tmp_path / name) for name in ("own", "library"))
    assert own.tensors.keys() == library.tensors.keys()


def test_a_recipe_that_needs_data_is_refused_without_the_library(tmp_path) -> None:
    with pytest.raises(OptionError, match="needs data"):
        round_draft("int4-gptq", pair_dir() / "draft", tmp_path)
