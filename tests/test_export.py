"""export: what is written, what is refused, and that nothing is left behind."""

import json
import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from quantdraft.errors import (
    CheckpointError,
    OptionError,
    OutputExistsError,
    PairingError,
    VerdictError,
)
from quantdraft.export import export
from quantdraft.files import file_sha256, write_json
from quantdraft.results import Evaluation, write_evaluation
from tests.example_evaluation import alarmed, evaluation, unmeasured


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Files alone: nothing here is loaded as a model."""
    directory = tmp_path / "candidate"
    directory.mkdir()
    save_file(
        {"model.embed_tokens.weight": np.ones((8, 4), np.float32)}, directory / "model.safetensors"
    )
    write_json(directory / "config.json", {"vocab_size": 8, "dtype": "bfloat16"})
    write_json(directory / "tokenizer.json", {})
    write_json(
        directory / "quantdraft.json",
        {
            "schema_version": 1,
            "draft": {"name": "org/Draft-0.5B"},
            "recipe": {"name": "int8", "summary": "INT8 weights and inputs.", "scheme": "W8A8"},
        },
    )
    (directory / "pytorch_model.bin").write_bytes(b"pickle")
    return directory


@pytest.fixture
def target(tmp_path: Path) -> str:
    directory = tmp_path / "target"
    directory.mkdir()
    write_json(directory / "config.json", {"vocab_size": 8, "dtype": "bfloat16"})
    return str(directory)


def run_of(checkpoint: Path, made: Evaluation) -> Path:
    """A run directory whose record is of this checkpoint's weights."""
    identity = made.provenance["candidate"] | {
        "sha256": {
            "config.json": "0" * 64,
            "model.safetensors": file_sha256(checkpoint / "model.safetensors"),
        }
    }
    run = checkpoint.parent / f"run-{made.verdict.decision}"
    provenance = made.provenance | {"candidate": identity}
    write_evaluation(replace(made, provenance=provenance), run / "evaluation.json")
    return run


def config_of(line: str) -> Any:
    words = shlex.split(line)
    return json.loads(words[words.index("--speculative-config") + 1])


def test_a_go_is_exported_with_card_launch_line_and_measured_k(
    checkpoint: Path, target: str, tmp_path: Path
) -> None:
    output = tmp_path / "served"
    lines = export(
        checkpoint,
        "vllm",
        output,
        target=target,
        run=run_of(checkpoint, evaluation()),
        require_go=True,
    )
    assert not [line for line in lines if line.startswith("WARNING")]
    names = {path.name for path in output.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "launch.sh"} <= names
    assert "pytorch_model.bin" not in names
    assert (output / "model.safetensors").read_bytes() == (
        checkpoint / "model.safetensors"
    ).read_bytes()

    launch = (output / "launch.sh").read_text().splitlines()[-1]
    assert os.access(output / "launch.sh", os.X_OK)
    assert config_of(launch) == {
        "method": "draft_model",
        "model": str(output),
        "num_speculative_tokens": 5,  # the candidate's best k in the record
    }
    assert launch in lines[-1]


def test_the_card_has_front_matter_evidence_and_verdict(
    checkpoint: Path, target: str, tmp_path: Path
) -> None:
    output = tmp_path / "served"
    export(checkpoint, "vllm", output, target=target, run=run_of(checkpoint, evaluation()))
    card = (output / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == "org/Draft-0.5B"
    assert front["base_model_relation"] == "quantized"
    assert {"speculative-decoding", "w8a8"} <= set(front["tags"])
    assert "## Verdict: go" in card
    assert "1.133×" in card
    assert "a" * 64 in card  # the traffic's sha256
    assert (output / "launch.sh").read_text().splitlines()[-1] in card


def test_require_go_refuses_everything_else(checkpoint: Path, target: str, tmp_path: Path) -> None:
    for made in (alarmed(), unmeasured()):
        run = run_of(checkpoint, made)
        with pytest.raises(VerdictError, match=made.verdict.decision):
            export(checkpoint, "vllm", tmp_path / "served", target=target, run=run, require_go=True)
    with pytest.raises(VerdictError, match="--run"):
        export(checkpoint, "vllm", tmp_path / "served", target=target, require_go=True)
    assert not (tmp_path / "served").exists()


def test_a_no_go_warns_on_screen_and_on_the_card(
    checkpoint: Path, target: str, tmp_path: Path
) -> None:
    output = tmp_path / "served"
    lines = export(checkpoint, "vllm", output, target=target, run=run_of(checkpoint, alarmed()))
    warnings = [line for line in lines if line.startswith("WARNING")]
    assert "NO-GO" in warnings[0]
    assert "acceptance-collapsed" in warnings[1]
    card = (output / "README.md").read_text()
    assert "## Verdict: no-go" in card
    assert "NO-GO" in card


def test_no_evaluation_and_no_measured_k_are_said(
    checkpoint: Path, target: str, tmp_path: Path
) -> None:
    lines = export(checkpoint, "vllm", tmp_path / "a", target=target)
    assert any("Not evaluated" in line for line in lines)
    assert any("k = 4 is a guess" in line for line in lines)
    assert "## Verdict: none" in (tmp_path / "a" / "README.md").read_text()

    run = run_of(checkpoint, unmeasured())
    lines = export(checkpoint, "vllm", tmp_path / "b", target=target, run=run)
    assert any("not a measured best" in line for line in lines)
    assert "undefined" in (tmp_path / "b" / "README.md").read_text()


def test_a_k_that_was_asked_for_is_used(checkpoint: Path, target: str, tmp_path: Path) -> None:
    output, run = tmp_path / "served", run_of(checkpoint, evaluation())
    lines = export(checkpoint, "vllm", output, target=target, run=run, num_speculative_tokens=3)
    assert config_of((output / "launch.sh").read_text())["num_speculative_tokens"] == 3
    assert any("measured best is 5" in line for line in lines)
    with pytest.raises(OptionError):
        export(checkpoint, "vllm", tmp_path / "x", target=target, num_speculative_tokens=0)


def test_an_evaluation_of_other_weights_is_refused(
    checkpoint: Path, target: str, tmp_path: Path
) -> None:
    run = run_of(checkpoint, evaluation())
    save_file(
        {"model.embed_tokens.weight": np.zeros((8, 4), np.float32)},
        checkpoint / "model.safetensors",
    )
    with pytest.raises(PairingError, match="other weights"):
        export(checkpoint, "vllm", tmp_path / "served", target=target, run=run)


def test_a_record_without_hashes_vouches_for_nothing(
    checkpoint: Path, target: str, tmp_path: Path
) -> None:
    made = evaluation()
    provenance = made.provenance | {"candidate": {"name": "int8"}}
    write_evaluation(replace(made, provenance=provenance), tmp_path / "r" / "evaluation.json")
    with pytest.raises(PairingError, match="cannot vouch"):
        export(checkpoint, "vllm", tmp_path / "served", target=target, run=tmp_path / "r")


def test_what_the_engine_would_refuse_is_not_written(
    checkpoint: Path, target: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="eagle-"):
        export(checkpoint, "vllm", tmp_path / "eagle-draft", target=target)
    write_json(Path(target) / "config.json", {"vocab_size": 16})
    with pytest.raises(CheckpointError, match="vocab_size is 8 in the draft and 16"):
        export(checkpoint, "vllm", tmp_path / "served", target=target)
    assert not (tmp_path / "served").exists()


def test_outputs_are_kept_unless_forced(checkpoint: Path, target: str, tmp_path: Path) -> None:
    output = tmp_path / "served"
    export(checkpoint, "vllm", output, target=target)
    with pytest.raises(OutputExistsError):
        export(checkpoint, "transformers", output, target=target)
    export(checkpoint, "transformers", output, target=target, force=True)
    assert (output / "launch.py").is_file()
    assert not (output / "launch.sh").exists()
    with pytest.raises(OptionError, match="the checkpoint itself"):
        export(checkpoint, "vllm", checkpoint, target=target, force=True)
    assert (checkpoint / "model.safetensors").is_file()
