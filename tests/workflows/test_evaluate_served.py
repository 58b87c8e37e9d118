"""evaluate against vLLM servers: fakes that run, and a stand-in for vLLM's Python."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantdraft.checkpoints.tensors.loading import load_model
from quantdraft.errors import EngineError, OptionError
from quantdraft.measure.capture import capture
from quantdraft.measure.served import serve as served_module
from quantdraft.measure.served.cross_check import rounds_replayed
from quantdraft.measure.settings import CaptureSettings, EvaluateSettings
from quantdraft.record import Evaluation, read_evaluation
from quantdraft.traffic.traffic import Sampling, Traffic
from quantdraft.workflows.evaluate import evaluate
from tests.conftest import Pair
from tests.evaluation_settings import changed, evaluation_settings
from tests.fake_vllm import FakeServer, K, Script, serving
from tests.foreign import write_foreign

FACTS = json.dumps({"version": "9.9", "device_type": "cpu", "speculative_keys": ["model"]})


@pytest.fixture(scope="module")
def traffic(tiny_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Traffic]:
    path = tmp_path_factory.mktemp("served") / "traffic.jsonl"
    found = capture(
        CaptureSettings(
            str(tiny_pair.target), tiny_pair.prompts, path, sampling=Sampling(), max_new_tokens=16
        )
    )
    return path, found


def scripts_of(tiny_pair: Pair, traffic: Traffic) -> dict[tuple[int, ...], Script]:
    """What an engine that does as the checkpoint says would answer and count."""
    draft = load_model(tiny_pair.draft, torch.float32, torch.device("cpu"))
    rounds = rounds_replayed(draft, traffic.responses, "greedy", Sampling(), K)
    return {
        r.prompt_token_ids: Script(r.response_token_ids, round(n), (1, 0, 0, 0))
        for r, n in zip(traffic.responses, rounds, strict=True)
    }


def evaluated(
    tiny_pair: Pair, path: Path, run_dir: Path, fakes: dict[str, FakeServer]
) -> Evaluation:
    with contextlib.ExitStack() as stack:
        urls = {arm: stack.enter_context(serving(fake)) for arm, fake in fakes.items()}
        return evaluate(
            evaluation_settings(
                candidate=str(tiny_pair.draft),
                baseline=str(tiny_pair.draft),
                target=str(tiny_pair.target),
                traffic_path=path,
                output=run_dir,
                ks=(2, K),
                engine="vllm",
                urls=tuple(f"{arm}={url}" for arm, url in urls.items()),
            )
        )


def test_evaluate_takes_speed_counters_and_text_from_the_servers(tiny_pair, traffic, tmp_path):
    path, found = traffic
    scripts = scripts_of(tiny_pair, found)
    silent = {p: replace(s, num_drafts=0, accepted=(0,) * K) for p, s in scripts.items()}
    fakes = {
        "autoregressive": FakeServer(silent, 0.006),
        "baseline": FakeServer(scripts, 0.004),
        "candidate": FakeServer(scripts, 0.002),
        "control": FakeServer(scripts, 0.004),
    }
    run_dir = tmp_path / "run"
    evaluation = evaluated(tiny_pair, path, run_dir, fakes)
    assert read_evaluation(run_dir / "evaluation.json") == evaluation
    assert set(evaluation.served.arms) == set(fakes)
    codes = {alarm.code for alarm in evaluation.verdict.alarms}
    assert not codes & {"engine_disagrees", "live_divergent"}
    for arm in ("baseline", "candidate"):
        for request in evaluation.served.arms[arm].requests:
            assert request.text == "identical"
            assert request.num_drafts == request.num_drafts_replayed
    point = evaluation.operating_point
    # Sleeps of 4 and 2 ms a token, and what sending a token costs both: 2 at most, but for noise.
    assert point.speedup_over_baseline.value > 1.2
    assert point.speedup_over_baseline.low <= 2.2
    assert point.speedup_over_autoregressive.value > point.speedup_over_baseline.value
    assert point.candidate_draft_step_ms is None
    assert evaluation.best_k == {"baseline": None, "candidate": None}
    report = (run_dir / "report.md").read_text()
    assert "Served by vLLM" in report
    assert "Tokens per second" in report


def test_an_engine_that_accepts_nothing_raises_the_alarm_and_no_verdict(
    tiny_pair, traffic, tmp_path
):
    path, found = traffic
    scripts = scripts_of(tiny_pair, found)
    assert any(script.num_drafts < len(script.token_ids) - 1 for script in scripts.values())
    broken = {
        prompt: replace(script, num_drafts=len(script.token_ids) - 1, accepted=(0,) * K)
        for prompt, script in scripts.items()
    }
    fakes = {"candidate": FakeServer(broken)}
    evaluation = evaluated(tiny_pair, path, tmp_path / "run", fakes)
    assert "engine_disagrees" in {alarm.code for alarm in evaluation.verdict.alarms}
    assert evaluation.verdict.decision == "inconclusive"
    assert evaluation.operating_point.speedup_over_baseline is None
    assert "no server was given" in evaluation.served.undefined["baseline"]


def test_a_server_with_another_k_is_refused(tiny_pair, traffic, tmp_path):
    path, found = traffic
    fake = FakeServer(scripts_of(tiny_pair, found))
    with serving(fake) as url, pytest.raises(EngineError, match="Give -k 4"):
        evaluate(
            evaluation_settings(
                candidate=str(tiny_pair.draft),
                baseline=str(tiny_pair.draft),
                target=str(tiny_pair.target),
                traffic_path=path,
                output=tmp_path / "run",
                ks=(3,),
                engine="vllm",
                urls=(url,),
            )
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "native", "spec": ("a=1",)}, "--engine-spec needs --engine vllm"),
        ({"target": None}, "needs --target"),
        ({"batch_size": 8}, "one at a time"),
        ({"urls": ("http://h:1",), "spec": ("a=1",)}, "have their own settings"),
        ({"urls": ("http://h:1",), "num_loads": 3}, "not started again"),
        ({"k": 17}, "--engine-k 17 is not replayed. Add it to -k"),
        ({"num_loads": 0}, "--engine-loads 0 must be at least 1"),
        ({"engine": "native", "k": 4}, "--engine-k needs --engine vllm"),
    ],
)
def test_settings_that_do_not_fit_are_refused_first(changes, message):
    plain = evaluation_settings(candidate="c", target="t", traffic_path=Path("x"), engine="vllm")
    with pytest.raises(OptionError, match=message):
        evaluate(changed(plain, **changes))


# Servers of ours, with a stand-in for vLLM's Python


@pytest.fixture
def fake_vllm(tiny_pair, traffic, tmp_path, monkeypatch) -> Callable[..., Path]:
    """Makes a Python that answers the probe, and serves what an honest engine would."""
    scripts = scripts_of(tiny_pair, traffic[1])

    def make(*refused: str) -> Path:
        plain = [[p, s.token_ids, s.num_drafts, s.accepted] for p, s in scripts.items()]
        plan = {"scripts": plain, "refused": refused, "seconds_per_token": 0.001}
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        monkeypatch.setenv("FAKE_VLLM", str(tmp_path / "plan.json"))
        python = tmp_path / "env" / "bin" / "python"
        python.parent.mkdir(parents=True)
        root = Path(__file__).parents[2]
        lines = ["#!/bin/sh", f"if [ \"$1\" = -c ]; then echo '{FACTS}'; exit; fi", f"cd '{root}'"]
        lines += [f"exec '{sys.executable}' -m tests.fake_vllm \"$@\""]
        python.write_text("\n".join(lines) + "\n")
        python.chmod(0o755)
        return python

    return make


@pytest.fixture
def own(tiny_pair, traffic, tmp_path) -> EvaluateSettings:
    return evaluation_settings(
        candidate=str(tiny_pair.draft),
        baseline=str(tiny_pair.draft),
        target=str(tiny_pair.target),
        traffic_path=traffic[0],
        output=tmp_path / "run",
        ks=(K,),
        engine="vllm",
        num_prompts=5,
    )


@pytest.mark.parametrize("is_interleaved", [True, False])
def test_our_servers_answer_in_turns_or_one_after_another(
    own, fake_vllm, monkeypatch, is_interleaved
):
    memory = served_module.Memory(is_interleaved, None)
    monkeypatch.setattr(served_module, "memory_for", lambda *_: memory)
    given = changed(own, path=fake_vllm())
    evaluation, run_dir = evaluate(given), given.run_dir
    found = evaluation.served
    assert (found.is_interleaved, found.dtype, found.undefined) == (is_interleaved, "float32", {})
    assert list(found.arms) == ["autoregressive", "baseline", "candidate", "control"]
    for arm in found.arms.values():
        assert arm.is_exact
        assert sorted((r.load, r.prompt_id) for r in arm.requests) == sorted(
            (load, f"line-{p}") for load in (0, 1) for p in range(1, 6)
        )
    assert {r.num_drafts for r in found.arms["autoregressive"].requests} == {0}
    assert "engine_disagrees" not in {alarm.code for alarm in evaluation.verdict.alarms}
    assert {path.stem for path in run_dir.glob("vllm-*.log")} == {f"vllm-{a}" for a in found.arms}


def test_a_format_that_needs_16_bits_is_served_in_them(own, fake_vllm):
    evaluation = evaluate(changed(own, path=fake_vllm("float32")))
    assert (evaluation.served.dtype, evaluation.served.replay_dtype) == ("bfloat16", "bfloat16")
    assert not evaluation.served.arms["candidate"].is_exact
    for request in evaluation.served.arms["candidate"].requests:
        assert request.num_drafts_low <= request.num_drafts_replayed <= request.num_drafts_high
    alarms = {alarm.code: alarm.message for alarm in evaluation.verdict.alarms}
    assert "Measure with --dtype bfloat16" in alarms["dtype_mismatch"]
    assert "engine_disagrees" not in alarms
    measured = changed(own, path=own.output.parent / "env" / "bin" / "python")
    again = evaluate(changed(measured, dtype="bfloat16", output=own.output.parent / "again"))
    assert "dtype_mismatch" not in {alarm.code for alarm in again.verdict.alarms}


@pytest.mark.parametrize("num_loads", [1, 3])
def test_servers_are_started_as_often_as_asked_for(own, fake_vllm, notes, num_loads):
    given = changed(own, path=fake_vllm(), num_loads=num_loads, num_prompts=2)
    evaluation, run_dir = evaluate(given), given.run_dir
    for arm in evaluation.served.arms.values():
        assert Counter(r.load for r in arm.requests) == dict.fromkeys(
            range(num_loads), 4 if num_loads == 1 else 2
        )
    is_said = "started once: what differs from one start to the next is in no interval"
    assert (is_said in notes.text) == (num_loads == 1)
    words = "is in no interval" if num_loads == 1 else "Each server was started 3 times"
    assert words in (run_dir / "report.md").read_text()


@pytest.mark.parametrize(
    ("ks", "asked", "k"),
    [((6,), None, 6), ((2, 6), None, 2), ((2, 4, 6), 6, 6), ((1, 2, 4), None, 4)],
)
def test_vllm_serves_the_k_that_is_asked_for(own, fake_vllm, tmp_path, notes, ks, asked, k):
    given = changed(own, path=fake_vllm(), ks=ks, k=asked, num_prompts=1)
    evaluation = evaluate(given)
    assert evaluation.served.num_speculative_tokens == k
    assert evaluation.operating_point.candidate_num_speculative_tokens == k
    started = (tmp_path / "plan.json.started").read_text().splitlines()
    configs = [json.loads(line.partition(" ")[2]) for line in started if "{" in line]
    assert {config["num_speculative_tokens"] for config in configs} == {k}
    assert len(configs) == 2 * 3  # two loads of three arms with a draft
    said = notes.text
    assert (f"vLLM serves one k: {k}" in said) == (len(ks) > 1 and asked is None)


def test_a_format_that_vllm_cannot_run_leaves_the_speed_undefined_with_its_reason(own, fake_vllm):
    evaluation = evaluate(changed(own, path=fake_vllm("float32", "bfloat16")))
    assert evaluation.served.arms == {}
    assert "no kernel for this format in bfloat16" in evaluation.served.undefined["candidate"]
    assert evaluation.operating_point.speedup_over_baseline is None
    assert "no kernel for this format" in evaluation.latency.undefined["candidate"]
    assert evaluation.verdict.decision != "go"
    assert evaluation.acceptance[0].baseline.acceptance_rate > 0


def test_a_name_that_vllm_reads_as_another_method_is_refused(own, fake_vllm, tiny_pair, tmp_path):
    shutil.copytree(tiny_pair.draft, tmp_path / "eagle-draft")
    with pytest.raises(OptionError, match=r"vLLM cannot serve .*eagle-"):
        evaluate(changed(own, candidate=str(tmp_path / "eagle-draft"), path=fake_vllm()))


def test_what_export_refuses_by_its_tensors_is_refused_before_a_server_starts(
    own, fake_vllm, tiny_pair, tmp_path
):
    """FP8 of blocks has scales of another name than FP8 of whole weights, in vLLM."""
    path = tmp_path / "draft-fp8"
    write_foreign("autofp8-dynamic", tiny_pair.draft, path)
    weights = load_file(path / "model.safetensors")
    renamed = {n.replace("weight_scale", "weight_scale_inv"): w for n, w in weights.items()}
    save_file(renamed, path / "model.safetensors", metadata={"format": "pt"})
    given = changed(own, candidate=str(path), path=fake_vllm())
    with pytest.raises(OptionError, match=r"vLLM cannot serve .*'weight_scale_inv', and vLLM"):
        evaluate(given)
    assert not list(given.output.glob("vllm-*.log"))


def test_an_unknown_key_is_refused_before_a_server_starts(own, fake_vllm):
    given = changed(own, path=fake_vllm(), spec=("methd=1",))
    with pytest.raises(OptionError, match=r"vLLM 9\.9 has no speculative setting 'methd'"):
        evaluate(given)
    assert not list(given.output.glob("vllm-*.log"))
