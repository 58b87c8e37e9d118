"""evaluate, end to end on the tiny pair: what it may say, what it must refuse."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantdraft.common.files import file_sha256
from quantdraft.common.locks import sole_writer
from quantdraft.common.progress import show_progress
from quantdraft.engines.kernels import KERNELS, choice
from quantdraft.engines.kernels.book import Book
from quantdraft.errors import (
    OptionError,
    OutputBusyError,
    OutputExistsError,
    PairingError,
    TrafficError,
)
from quantdraft.measure import measure as measuring
from quantdraft.measure import step_times
from quantdraft.measure.capture import capture
from quantdraft.measure.settings import CaptureSettings, EvaluateSettings
from quantdraft.quantize.apply import apply
from quantdraft.quantize.recipe import load_recipe
from quantdraft.record import Evaluation, read_evaluation
from quantdraft.report.sections.evidence import evidence_section
from quantdraft.traffic.parts import calibration_part, place_of
from quantdraft.traffic.traffic import Sampling, read_traffic
from quantdraft.workflows.check import check
from quantdraft.workflows.evaluate import evaluate
from tests.conftest import Pair, save_tokenizer
from tests.engines.test_native import UnpackedLinear
from tests.evaluation_settings import changed, evaluation_settings

NUM_TOKENS = 24


@pytest.fixture(scope="module")
def traffic(tiny_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traffic") / "traffic.jsonl"
    sampling = Sampling()
    capture(
        CaptureSettings(
            str(tiny_pair.target),
            tiny_pair.prompts,
            path,
            sampling=sampling,
            max_new_tokens=NUM_TOKENS,
        )
    )
    return path


@pytest.fixture(scope="module")
def int4(tiny_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("candidates") / "int4"
    apply(load_recipe("int4"), str(tiny_pair.draft), path)
    return path


@pytest.fixture
def settings_with_pages(
    tiny_pair: Pair, traffic: Path, int4: Path, tmp_path: Path, short_timing: None
) -> EvaluateSettings:
    """Of a run whose pages the test reads."""
    return evaluation_settings(
        mode="eager",
        candidate=str(int4),
        target=str(tiny_pair.target),
        baseline=str(tiny_pair.draft),
        traffic_path=traffic,
        output=tmp_path / "run",
        ks=(1, 2, 4),
        latency_seconds=0.5,
        live_prompts=2,
    )


@pytest.fixture
def settings(settings_with_pages: EvaluateSettings, no_pages: None) -> EvaluateSettings:
    return settings_with_pages


def test_a_run_leaves_a_whole_record_and_its_views(settings_with_pages):
    settings = settings_with_pages
    evaluation, run_dir = evaluate(settings), settings.run_dir
    assert read_evaluation(run_dir / "evaluation.json") == evaluation
    assert {"report.md", "report.html"} <= {path.name for path in run_dir.iterdir()}
    assert evaluation.verdict.decision in {"go", "no-go", "inconclusive"}
    arms = {"baseline", "candidate", "control", "target", "target-control"}
    assert set(evaluation.latency.arms) == arms
    assert any(name.startswith("int4") for name in evaluation.latency.arms["candidate"].kernels)
    assert [check.num_divergent for check in evaluation.live] == [0, 0]
    for live in evaluation.live:
        assert live.num_speculative_tokens == 4  # the nearest of 1, 2 and 4 to 4
        assert live.num_drafts_live == live.num_drafts_replayed
    assert evaluation.provenance["traffic"]["num_prompts"] == 12


def test_without_a_target_there_is_acceptance_but_no_go(settings):
    evaluation = evaluate(changed(settings, target=None))
    assert evaluation.verdict.decision != "go"
    assert evaluation.operating_point.speedup_over_baseline is None
    assert "give --target" in evaluation.latency.undefined["candidate"]
    assert evaluation.acceptance[0].baseline.acceptance_rate > 0


def test_fp8_on_a_cpu_has_acceptance_and_no_latency(settings_with_pages, tiny_pair, tmp_path):
    apply(load_recipe("fp8"), str(tiny_pair.draft), tmp_path / "fp8")
    given = changed(settings_with_pages, candidate=str(tmp_path / "fp8"))
    evaluation, run_dir = evaluate(given), given.run_dir
    assert "candidate" not in evaluation.latency.arms
    assert "no cpu kernel" in evaluation.latency.undefined["candidate"]
    projected = evaluation.projection
    assert projected is not None
    assert evaluation.operating_point.speedup_over_baseline is None
    assert projected.ceiling > 1
    report = (run_dir / "report.md").read_text(encoding="utf-8")
    assert "Projection, not a measurement" in report
    assert evaluation.operating_point.candidate_draft_step_ms is None
    assert evaluation.verdict.decision != "go"


def test_identity_is_never_a_go(settings, tiny_pair, tmp_path):
    apply(load_recipe("identity"), str(tiny_pair.draft), tmp_path / "identity")
    evaluation = evaluate(changed(settings, candidate=str(tmp_path / "identity")))
    assert evaluation.verdict.decision != "go"  # inconclusive where a timing raised an alarm
    results = {check.name: check.result for check in evaluation.verdict.checks}
    assert results["another than the baseline"] == "fail"
    assert evaluation.acceptance[0].acceptance_rate_loss.value == 0


def test_another_draft_in_floats_is_judged_and_a_copy_is_a_control(settings, tiny_pair, tmp_path):
    shutil.copytree(tiny_pair.draft, tmp_path / "copy")
    verdicts = {}
    for name, path in {"copy": tmp_path / "copy", "other": tiny_pair.target}.items():
        quick = changed(
            settings,
            candidate=str(path),
            output=tmp_path / f"run-{name}",
            live_prompts=0,
            no_latency=True,
        )
        evaluation = evaluate(quick)
        verdicts[name] = evaluation.verdict
        assert not [a for a in evaluation.verdict.alarms if a.code == "not_quantized"]
    assert "control: nothing was quantized" in verdicts["copy"].summary
    assert verdicts["copy"].decision == "no-go"
    assert "control" not in verdicts["other"].summary
    checks = {check.name: check.result for check in verdicts["other"].checks}
    assert checks["another than the baseline"] == "pass"


def test_damaged_group_scales_are_a_no_go(settings, int4, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(int4, damaged)
    damage_scales(damaged)
    evaluation = evaluate(changed(settings, candidate=str(damaged)))
    assert evaluation.verdict.decision == "no-go"
    assert evaluation.acceptance[-1].acceptance_rate_loss.low > 0


def test_int4_claimed_over_bf16_weights_raises_the_alarm(settings, int4, tiny_pair, tmp_path):
    false = tmp_path / "false"
    shutil.copytree(tiny_pair.draft, false)
    config = json.loads((false / "config.json").read_text())
    claimed = json.loads((int4 / "config.json").read_text())
    config["quantization_config"] = claimed["quantization_config"]
    (false / "config.json").write_text(json.dumps(config))
    evaluation = evaluate(changed(settings, candidate=str(false)))
    assert "not_quantized" in {alarm.code for alarm in evaluation.verdict.alarms}
    assert evaluation.verdict.decision != "go"


def test_a_permuted_vocabulary_is_refused_by_check_and_by_evaluate(
    settings, tiny_pair, int4, tmp_path
):
    permuted = tmp_path / "permuted"
    shutil.copytree(int4, permuted)
    save_tokenizer(permuted, order=-1)
    assert not check(str(tiny_pair.target), str(permuted)).is_compatible
    with pytest.raises(PairingError):
        evaluate(changed(settings, candidate=str(permuted)))


def test_a_killed_run_goes_on_where_it_stopped(settings, monkeypatch):
    real = step_times.measure_grid

    def killed(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(step_times, "measure_grid", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(settings)
    assert not (settings.output / "evaluation.json").exists()

    monkeypatch.setattr(step_times, "measure_grid", real)

    def no_replay(*_args, **_options):
        raise AssertionError("replayed again")

    monkeypatch.setattr(measuring, "acceptance_probabilities", no_replay)
    evaluation = evaluate(settings)
    assert evaluation.acceptance


def test_a_killed_forced_run_goes_on_with_its_own_parts_and_keeps_the_old_record_till_its_end(
    settings, monkeypatch
):
    quick = changed(settings, no_latency=True, live_prompts=0)
    evaluate(quick)
    record = settings.output / "evaluation.json"
    old = record.read_bytes()
    forced = replace(quick, force=True)
    replays = []
    real = measuring.acceptance_probabilities
    monkeypatch.setattr(
        measuring, "acceptance_probabilities", lambda *a, **o: replays.append(1) or real(*a, **o)
    )
    with monkeypatch.context() as patch:

        def killed(*_arguments):
            raise KeyboardInterrupt

        patch.setattr(measuring, "probe_logits", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate(forced)
    assert len(replays) == 2  # measured anew, although the old parts were there
    assert record.read_bytes() == old
    time.sleep(1.1)  # records tell their times in whole seconds
    evaluate(forced)
    assert len(replays) == 2
    assert record.read_bytes() != old
    time.sleep(1.1)
    evaluate(forced)  # a finished run again: anew
    assert len(replays) == 4


def test_the_baseline_is_not_replayed_again_for_the_next_candidate(
    settings, tiny_pair, tmp_path, monkeypatch, notes
):
    replayed = []
    real = measuring.acceptance_probabilities
    monkeypatch.setattr(
        measuring, "acceptance_probabilities", lambda *a, **o: replayed.append(1) or real(*a, **o)
    )
    monkeypatch.setenv("QUANTDRAFT_REPLAYS", str(tmp_path / "replays"))
    first = changed(settings, no_latency=True, live_prompts=0)
    other = changed(first, candidate=str(tiny_pair.draft), output=tmp_path / "other")
    found = [evaluate(first), evaluate(other)]
    assert len(replayed) == 3
    assert len([line for line in notes.messages if "baseline's replay: taken from" in line]) == 1
    assert found[0].acceptance[0].baseline == found[1].acceptance[0].baseline
    evaluate(replace(other, output=tmp_path / "third", keeps_replays=False))
    assert len(replayed) == 5


def test_captured_traffic_of_other_prompts_is_not_taken_for_these(settings, tiny_pair, tmp_path):
    run = changed(
        settings,
        traffic_path=None,
        prompts=tiny_pair.prompts,
        max_new_tokens=8,
        no_latency=True,
        live_prompts=0,
    )
    evaluate(run)
    (run.output / "evaluation.json").unlink()  # as if it had been killed at its end
    others = tmp_path / "others.jsonl"
    others.write_text(tiny_pair.prompts.read_text() + '{"prompt": "one more"}\n')
    for change in ({"prompts": others}, {"max_new_tokens": 9}, {"temperature": 0.5}):
        with pytest.raises(OutputExistsError, match="captured from other prompts"):
            evaluate(changed(run, **change))
    evaluation = evaluate(changed(run, prompts=others, force=True))
    assert len(evaluation.prompts) == 13


def test_layers_held_in_floats_where_they_were_timed_raise_the_alarm(settings, monkeypatch):
    monkeypatch.setitem(KERNELS, ("cpu", "int4"), (UnpackedLinear,))
    book = Book(None)
    monkeypatch.setattr(choice, "book_of", lambda device, num_threads: book)
    evaluation = evaluate(settings)
    (alarm,) = [a for a in evaluation.verdict.alarms if a.code == "not_quantized"]
    assert "its quantized layers take" in alarm.message
    assert evaluation.verdict.decision != "go"


# A log that does not say how it was sampled


@pytest.fixture(scope="module")
def logs(tiny_pair, tmp_path_factory) -> dict[float, Path]:
    """Responses at a temperature, as captured (`header`) and as a log has them: no header."""
    found = {}
    for temperature in (0.0, 0.8):
        path = tmp_path_factory.mktemp("logs") / "captured.jsonl"
        sampling = Sampling(temperature=temperature, seed=2)
        capture(
            CaptureSettings(
                str(tiny_pair.target), tiny_pair.prompts, path, sampling=sampling, max_new_tokens=24
            )
        )
        log = path.with_name("log.jsonl")
        log.write_text("".join(path.read_text().splitlines(True)[1:]))
        found[temperature] = log
    return found


@pytest.fixture
def of_log(settings, logs) -> Callable[..., Evaluation]:
    """Evaluates the log of a temperature, without timing."""

    def run(sampled_at: float, **told: object) -> Evaluation:
        given = changed(settings, traffic_path=logs[sampled_at], no_latency=True)
        return evaluate(changed(given, **told))

    return run


def alarms_of(evaluation: Evaluation) -> set[str]:
    return {alarm.code for alarm in evaluation.verdict.alarms}


def test_a_log_of_unknown_sampling_is_checked_on_text_of_the_loops_own(of_log, notes):
    evaluation = of_log(0.8)
    assert evaluation.acceptance_rule == "greedy_draft"
    assert evaluation.provenance["traffic"]["sampling"] is None
    for live in evaluation.live:
        assert (live.num_own_texts, live.num_divergent, len(live.prompt_ids)) == (2, 0, 2)
        assert not live.is_expectation
    assert evaluation.live[0].num_drafts_live == evaluation.live[0].num_drafts_replayed
    assert not alarms_of(evaluation) & {"live_divergent", "replay_disagrees"}
    assert "does not say how it was sampled" in notes.text


def test_a_greedy_log_that_does_not_say_so_is_still_the_targets_text(of_log, notes):
    evaluation = of_log(0.0)
    assert [check.num_identical_texts for check in evaluation.live] == [2, 2]
    assert [check.num_own_texts for check in evaluation.live] == [0, 0]
    assert "does not say" not in notes.text


def test_the_user_may_say_how_a_log_was_sampled(of_log):
    evaluation = of_log(0.8, temperature=0.8, top_p=0.95)
    told = evaluation.provenance["traffic"]["sampling"]
    assert (told["temperature"], told["top_p"], told["top_k"]) == (0.8, 0.95, 0)
    assert evaluation.acceptance_rule == "greedy_draft"
    for live in evaluation.live:
        texts = live.num_identical_texts, live.num_own_texts, live.num_divergent
        assert (texts, len(live.prompt_ids)) == ((0, 0, 0), 2)
    # The draft takes its argmax: rounds of a text are a number, though tokens were drawn.
    assert evaluation.live[0].num_drafts_live == evaluation.live[0].num_drafts_replayed
    assert not evaluation.live[0].is_expectation


def test_a_drawn_log_that_is_said_to_be_greedy_raises_the_alarm(of_log):
    evaluation = of_log(0.8, temperature=0.0)
    assert evaluation.acceptance_rule == "greedy"
    assert "live_divergent" in alarms_of(evaluation)


def test_a_log_takes_the_rule_that_needs_its_sampling(of_log):
    evaluation = of_log(0.8, temperature=0.8, acceptance_rule="exact_match", live_prompts=0)
    assert evaluation.acceptance_rule == "exact_match"


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"temperature": 0.8}, "--temperature 0.8: .* says in its header .* temperature 0.0"),
        ({"temperature": 0.0, "top_k": 5}, "--top-k 5: .* says in its header .* top_k 0"),
    ],
)
def test_what_a_header_contradicts_is_refused(settings, told, message):
    with pytest.raises(OptionError, match=message):
        evaluate(changed(settings, **told))


def test_what_a_header_confirms_is_taken(settings):
    given = changed(settings, temperature=0.0, no_latency=True, live_prompts=0)
    evaluation = evaluate(given)
    assert evaluation.acceptance_rule == "greedy"


def test_a_limit_without_a_temperature_says_too_little_of_a_log(of_log):
    with pytest.raises(OptionError, match=r"--top-p alone does not say .* Give --temperature too"):
        of_log(0.8, top_p=0.9)


def test_two_runs_in_one_directory_exclude_each_other(settings):
    with (
        sole_writer(settings.output, is_inside=True),
        pytest.raises(OutputBusyError, match=f"process {os.getpid()}"),
    ):
        evaluate(settings)


@pytest.mark.parametrize(
    "line", ["not JSON", '{"prompt_token_ids": [1], "response_token_ids": []}']
)
def test_refused_traffic_leaves_no_directory(settings, tmp_path, line):
    (tmp_path / "bad.jsonl").write_text(line + "\n")
    given = changed(settings, traffic_path=tmp_path / "bad.jsonl", output=tmp_path / "runs" / "one")
    with pytest.raises(TrafficError):
        evaluate(given)
    assert not (tmp_path / "runs").exists()


def test_a_finished_run_is_not_overwritten(settings):
    evaluate(changed(settings, no_latency=True, live_prompts=0))
    with pytest.raises(OutputExistsError, match="--force"):
        evaluate(settings)


def test_prompts_are_captured_into_the_run(settings, tiny_pair):
    run = changed(
        settings, traffic_path=None, prompts=tiny_pair.prompts, max_new_tokens=8, no_latency=True
    )
    evaluate(run)
    run_dir = run.run_dir
    assert (run_dir / "traffic.jsonl").is_file()


def test_prompts_that_a_recipe_was_calibrated_on_are_left_out(
    settings, tiny_pair, traffic, tmp_path
):
    text = (load_recipe("int4-gptq").model_dump_json()).replace(
        '"num_samples":256', '"num_samples":4'
    )
    text = text.replace('"share":null', '"share":1.0')
    (tmp_path / "int4-gptq.yaml").write_text(text)  # JSON is YAML
    recipe = load_recipe(str(tmp_path / "int4-gptq.yaml"))
    apply(recipe, str(tiny_pair.draft), tmp_path / "gptq", calibration=traffic)
    run = changed(settings, candidate=str(tmp_path / "gptq"), no_latency=True, live_prompts=0)
    evaluation = evaluate(run)
    assert len(evaluation.prompts) == 12 - recipe.calibration.num_samples


def test_a_candidate_is_judged_on_the_half_that_it_was_not_calibrated_on(
    settings, tiny_pair, traffic, tmp_path, capsys
):
    """The manifest says which half: here that of a draft which only claims a calibration."""
    sha256, responses = file_sha256(traffic), read_traffic(traffic).responses
    part = calibration_part(responses, 0.5, sha256)
    candidate = shutil.copytree(settings.models.candidate, tmp_path / "calibrated")
    manifest = json.loads((candidate / "quantdraft.json").read_text())
    seen = {"sha256": sha256, "prompt_ids": ["p"], "part": part.as_record()}
    (candidate / "quantdraft.json").write_text(json.dumps(manifest | {"calibration": seen}))
    run = changed(settings, candidate=str(candidate), no_latency=True, live_prompts=0)
    with show_progress("evaluate"):
        evaluation = evaluate(run)
    assert "judged on 6 of 12 conversations" in capsys.readouterr().err
    held = {r.prompt_id for r in responses if not part.holds(place_of(r.prompt_id))}
    assert {prompt.prompt_id for prompt in evaluation.prompts} == held
    assert evaluation.provenance["traffic"]["part"]["num_conversations"] == 6
    assert "6 of its 12 conversations" in str(evidence_section(evaluation))
    same = changed(
        settings, no_latency=True, live_prompts=0, is_held_out=True, output=tmp_path / "o"
    )
    assert {prompt.prompt_id for prompt in evaluate(same).prompts} == held


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"traffic_path": None}, "either --traffic"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"latency_seconds": 0.0}, "--latency-seconds"),
        ({"baseline": None, "candidate": "DRAFT"}, "Give --baseline"),
    ],
)
def test_unusable_settings_say_what_to_do(settings, tiny_pair, change, message):
    if change.get("candidate") == "DRAFT":
        change = change | {"candidate": str(tiny_pair.draft)}
    with pytest.raises(OptionError, match=message):
        evaluate(changed(settings, **change))


def damage_scales(directory: Path) -> None:
    """Multiply every group scale by a factor drawn from [0, 2]."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if name.endswith("weight_scale"):
            factor = 2 * torch.rand(tensor.shape, generator=generator)
            tensors[name] = (tensor.float() * factor).to(tensor.dtype)
    save_file(tensors, path, metadata={"format": "pt"})
