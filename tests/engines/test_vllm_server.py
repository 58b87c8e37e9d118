"""The vLLM server: its settings and command, its process, and its last words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from quantdraft.engines.measured import ServerPlan
from quantdraft.engines.process import free_port, running
from quantdraft.engines.vllm.environment import Environment
from quantdraft.engines.vllm.server import LOG, vllm_variables
from quantdraft.engines.vllm.settings import (
    parse_pairs,
    require_known_keys,
    require_possible,
    vllm_command,
)
from quantdraft.errors import EngineError, OptionError
from tests.fake_vllm import K

HERE = Environment(
    "/env/bin/python", "0.32.0", "cpu", ("method", "model", "num_speculative_tokens")
)


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
