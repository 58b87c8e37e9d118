"""Replays kept by content: whatever its numbers come from, a change of it is another replay."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quantdraft.common.resume import key_of
from quantdraft.measure import kept_replays, measure
from quantdraft.measure.kept_replays import VARIABLE, kept_replays_dir, replay_facts, shared_replays
from quantdraft.measure.measure import replay_arm
from quantdraft.measure.models import Models
from quantdraft.measure.subject import Subject
from quantdraft.traffic.responses import Response
from quantdraft.traffic.traffic import Sampling, Traffic
from tests.conftest import save_tokenizer
from tests.evaluation_settings import evaluation_settings

RESPONSES = (
    Response("a", (1, 2, 3), (4, 5, 6), logprobs=(-0.5, -0.25, -0.125)),
    Response("b", (7,), (8, 9), logprobs=(-0.5, -0.25)),
)


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one layer and 32 wide."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("kept") / "draft"
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=512, num_hidden_layers=1, eos_token_id=0, **sizes)
    LlamaForCausalLM(config).save_pretrained(path)
    save_tokenizer(path)
    return path


@pytest.fixture
def subject(draft: Path, tmp_path: Path) -> Subject:
    return subject_of(draft, tmp_path / "run")


def subject_of(draft: Path, run_dir: Path) -> Subject:
    from quantdraft.checkpoints.checkpoint import open_checkpoint

    opened = open_checkpoint(draft)
    traffic = Traffic(RESPONSES, Sampling(0.8, 0.9, 40), sha256="of the file")
    models = Models(None, opened, opened)
    return Subject(models, traffic, "rejection", torch.device("cpu"), torch.float32, run_dir)


def with_responses(subject: Subject, *responses: Response) -> Subject:
    return replace(subject, traffic=replace(subject.traffic, responses=responses))


def with_sampling(subject: Subject, sampling: Sampling) -> Subject:
    return replace(subject, traffic=replace(subject.traffic, sampling=sampling))


A, B = RESPONSES
CHANGES: dict[str, Callable[[Subject], Subject]] = {
    "prompt": lambda s: with_responses(s, replace(A, prompt_token_ids=(1, 2, 4)), B),
    "response": lambda s: with_responses(s, replace(A, response_token_ids=(4, 5, 7)), B),
    # the same ids one after another, divided in another way
    "border": lambda s: with_responses(
        s, replace(A, prompt_token_ids=(1, 2), response_token_ids=(3, 4, 5, 6)), B
    ),
    "order": lambda s: with_responses(s, B, A),
    "left out": lambda s: with_responses(s, A),
    "log-probabilities": lambda s: with_responses(s, replace(A, logprobs=(-0.5, -0.25, -0.1)), B),
    "temperature": lambda s: with_sampling(s, Sampling(0.7, 0.9, 40)),
    "top-p": lambda s: with_sampling(s, Sampling(0.8, 0.8, 40)),
    "top-k": lambda s: with_sampling(s, Sampling(0.8, 0.9, 41)),
    "rule": lambda s: replace(s, rule="exact_match"),
    "dtype": lambda s: replace(s, dtype=torch.bfloat16),
    "device": lambda s: replace(s, device=torch.device("meta")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_replayed_and_how_is_part_of_the_key(subject: Subject, change: str) -> None:
    assert key(CHANGES[change](subject)) != key(subject)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_the_drafts_weights_and_config_are_part_of_the_key(
    subject: Subject, draft: Path, tmp_path: Path, file: str
) -> None:
    copy = shutil.copytree(draft, tmp_path / "copy")
    assert key(subject_of(copy, tmp_path)) == key(subject)  # not its place
    if file == "config.json":
        config = json.loads((copy / file).read_text()) | {"rms_norm_eps": 1e-3}
        (copy / file).write_text(json.dumps(config))
    else:
        with open(copy / file, "r+b") as weights:
            weights.seek(-1, os.SEEK_END)
            weights.write(b"\x01")
    assert key(subject_of(copy, tmp_path)) != key(subject)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("package_versions", lambda: {"torch": "another"}),
        ("cpu_name", lambda: "another"),
        ("_code_sha256", lambda: "another"),
    ],
)
def test_versions_code_and_machine_are_part_of_the_key(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    before = key(subject)
    monkeypatch.setattr(kept_replays, name, value)
    assert key(subject) != before


def test_any_file_of_the_code_changes_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "replay.py").write_text("a = 1\n")
    monkeypatch.setattr(kept_replays, "PACKAGE", tmp_path)
    before = kept_replays._code_sha256.__wrapped__()
    (tmp_path / "replay.py").write_text("a = 12\n")
    assert kept_replays._code_sha256.__wrapped__() != before


def test_threads_are_part_of_the_key(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key(subject)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 97)
    assert key(subject) != before


def test_names_of_prompts_and_what_a_rule_does_not_read_are_no_part_of_it(subject: Subject) -> None:
    greedy = replace(subject, rule="greedy_draft")
    renamed = with_responses(greedy, replace(A, prompt_id="x", logprobs=None, domain="d"), B)
    again = replace(renamed.traffic, sampling=Sampling(0.3, seed=4), sha256="of another file")
    assert key(replace(renamed, traffic=again)) == key(greedy)


def key(subject: Subject) -> str:
    return key_of(replay_facts(subject, "baseline"))


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for every replay that is computed."""
    found: list[str] = []
    real = measure.acceptance_probabilities
    monkeypatch.setattr(
        measure,
        "acceptance_probabilities",
        lambda *given: (found.append("replayed"), real(*given))[1],
    )
    return found


def test_the_next_run_takes_the_baselines_replay_and_says_from_where(
    draft: Path, tmp_path: Path, replays: list[str], notes: pytest.LogCaptureFixture
) -> None:
    shared = tmp_path / "replays"
    runs = [subject_of(draft, tmp_path / name) for name in ("one", "two")]
    first, second = (replay_arm(run, "baseline", shared) for run in runs)
    assert len(replays) == 1
    assert [each.tolist() for each in first] == [each.tolist() for each in second]
    (file,) = shared.glob("*.f64")
    assert notes.messages == [f"baseline's replay: taken from '{file}'"]
    replay_arm(with_responses(runs[1], A), "baseline", shared)
    assert len(replays) == 2
    replay_arm(runs[1], "baseline", shared)  # the other has not taken its place
    assert len(replays) == 2
    replay_arm(runs[1], "candidate")  # is kept with its run
    assert len(replays) == 3


def test_a_directory_that_cannot_be_written_costs_the_sharing_alone(
    subject: Subject, tmp_path: Path, replays: list[str], notes: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "file"
    place.write_text("in the way")
    for _ in range(2):
        replay_arm(subject, "baseline", place / "replays")
    assert len(replays) == 1  # the second one goes on with the run's own
    assert "cannot be written (a file stands where a directory is needed)" in notes.messages[0]
    assert place.read_text() == "in the way"


def test_what_was_used_longest_ago_makes_room_but_not_what_is_in_use(
    draft: Path, tmp_path: Path, replays: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "replays"
    whole = subject_of(draft, tmp_path / "run")
    some = [with_responses(whole, replace(A, prompt_token_ids=(n,))) for n in range(1, 5)]
    for run in some[:3]:
        replay_arm(run, "baseline", shared)
    files = sorted(shared.glob("*.f64"), key=lambda file: file.stat().st_mtime_ns)
    for age, file in enumerate(files):
        os.utime(file, (age, age))
    replay_arm(some[0], "baseline", shared)  # used again: now the newest
    monkeypatch.setattr(kept_replays, "MAX_BYTES", 2 * files[0].stat().st_size)
    with open(files[1], "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        replay_arm(some[3], "baseline", shared)
    left = set(shared.glob("*.f64"))
    assert files[1] in left
    assert files[2] not in left
    assert {file.with_suffix(".json") for file in left} == set(shared.glob("*.json"))


def test_the_user_names_another_directory_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = evaluation_settings(candidate="c", traffic_path=tmp_path / "t")
    own = replace(settings, sweep_replays=tmp_path / "shared")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "mine"))
    assert shared_replays(own) == tmp_path / "mine"
    assert shared_replays(replace(own, keeps_replays=False)) == tmp_path / "shared"
    assert shared_replays(replace(settings, keeps_replays=False)) is None
    monkeypatch.setenv(VARIABLE, "")
    assert kept_replays_dir() is None
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kept_replays_dir() == tmp_path / "quantdraft" / "replays"


def test_the_numbers_are_those_of_a_replay_that_is_not_kept(
    subject: Subject, tmp_path: Path
) -> None:
    from quantdraft.measure.replay import acceptance_probabilities

    model = subject.load(subject.models.baseline)
    plain = acceptance_probabilities(model, subject.traffic, subject.rule)
    for _ in range(2):
        kept = replay_arm(subject, "baseline", tmp_path / "replays")
        assert [each.tolist() for each in kept] == [each.tolist() for each in plain]
    assert np.concatenate(plain).max() <= 1
