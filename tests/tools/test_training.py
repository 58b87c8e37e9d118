"""The training script is seeded, can be resumed, and takes any corpus."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.tools.reference import train
from tests.tools.reference.corpus import read_corpus
from tests.tools.reference.lessons import Size
from tests.tools.reference.muon import orthogonalize
from tests.tools.reference.publish import publish_models

CPU = torch.device("cpu")


@pytest.fixture
def work_dir(tmp_path, monkeypatch) -> Path:
    """A corpus of a few small files, and steps of a few short sequences."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i in range(60):
        body = "".join(f"def function_{i}_{j}(x):\n    return x + {j}\n\n" for j in range(20))
        (corpus / f"module_{i}.py").write_text(body)
    monkeypatch.setattr(train, "SEQUENCE_LENGTH", 32)
    monkeypatch.setattr(train, "SEQUENCES_PER_STEP", 2)
    monkeypatch.setattr(train, "read_corpus", lambda: read_corpus(corpus))
    work = tmp_path / "work"
    work.mkdir()
    train.train_tokenizer(work)
    return work


def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(work_dir, monkeypatch):
    whole = train.TrainingRun("target", work_dir, 6 * 64, CPU)
    whole.train()
    whole.state_path.unlink()

    class KilledError(Exception):
        pass

    first = train.TrainingRun("target", work_dir, 6 * 64, CPU)
    update = first._update

    def kill_after_three(scale: float) -> None:
        if first.step == 3:
            first.save()
            raise KilledError
        update(scale)

    monkeypatch.setattr(first, "_update", kill_after_three)
    with pytest.raises(KilledError):
        first.train()
    second = train.TrainingRun("target", work_dir, 6 * 64, CPU)
    assert second.step == 3
    second.train()
    for one, other in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_training_lowers_the_loss_and_the_draft_learns_from_the_target(
    work_dir, tmp_path, monkeypatch
):
    target = train.TrainingRun("target", work_dir, 12 * 64, CPU)
    before = float(target.loss(target.batch(0)).detach())
    target.train()
    monkeypatch.setattr(train, "NUM_RESPONSES", 4)
    monkeypatch.setattr(train, "RESPONSE_BATCH", 2)
    monkeypatch.setattr(train, "RESPONSE_PROMPT_LENGTH", 8)
    train.write_responses(work_dir, CPU)
    assert float(target.loss(target.batch(0)).detach()) < before - 1
    draft = train.TrainingRun("draft", work_dir, 4 * 64, CPU)
    draft.train()
    library = train.TrainingRun("draft-library", work_dir, 2 * 64, CPU)
    assert library.responses is None
    library.train()
    publish_models(work_dir, tmp_path / "out", ("target", "draft", "draft-library"))
    assert (tmp_path / "out" / "draft" / "model.safetensors").is_file()
    config = json.loads((tmp_path / "out" / "draft-library" / "config.json").read_text())
    assert config["training_domain"] == "Python standard library, library alone"


def test_orthogonalize_brings_singular_values_near_one():
    matrices = torch.randn((3, 40, 24), generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices))
    # the quintic's coefficients are tuned to end in about [0.7, 1.2]
    assert values.min() > 0.5
    assert values.max() < 1.5


def test_the_learning_rate_warms_up_holds_and_falls_to_zero():
    scale = [train.learning_rate_scale(step, 1000) for step in range(1001)]
    assert scale[0] == pytest.approx(1 / train.WARMUP_STEPS)
    assert scale[500] == 1.0
    assert scale[800] == pytest.approx(0.5)
    assert scale[1000] == 0.0
    assert sys.float_info.epsilon < scale[999] < 0.01


def test_a_training_ends_with_its_time_and_a_call_that_is_over_is_gone_on_with(work_dir):
    small = Size(4096, 128, 128, 1, 1, 1, draft_layers=(0,))

    def run() -> train.TrainingRun:
        return train.TrainingRun("target", work_dir, 10**9, CPU, small, 0.3, 3)

    stopped = run()
    assert stopped.batch(0).shape == (3, 32)
    assert not stopped.train(until=0.0)
    assert stopped.step == 0
    first = run()
    assert first.train()
    assert first.trained_s >= 0.3
    assert first.num_steps <= first.step
    second = run()
    assert second.train()
    assert second.step == first.step  # the time is over, in this call too
