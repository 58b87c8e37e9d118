"""Replay counts what the live loop counts, on a tiny real pair in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantdraft.checkpoints.tensors.loading import load_model
from quantdraft.engines.native.model import borrow
from quantdraft.errors import TrafficError
from quantdraft.judge.acceptance import replay_rounds
from quantdraft.measure import replay
from quantdraft.measure.capture import capture
from quantdraft.measure.live import live_probabilities, run_live, target_logprobs
from quantdraft.measure.replay import acceptance_probabilities
from quantdraft.measure.settings import CaptureSettings
from quantdraft.traffic.traffic import Sampling, Traffic
from tests.conftest import Pair

CPU = torch.device("cpu")
NUM_TOKENS = 40


@pytest.fixture(scope="module")
def models(tiny_pair: Pair) -> tuple[torch.nn.Module, torch.nn.Module]:
    return tuple(load_model(p, torch.float32, CPU) for p in (tiny_pair.target, tiny_pair.draft))


@pytest.fixture(scope="module")
def greedy(tiny_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Traffic:
    path = tmp_path_factory.mktemp("traffic") / "greedy.jsonl"
    return capture(
        CaptureSettings(
            str(tiny_pair.target),
            tiny_pair.prompts,
            path,
            sampling=Sampling(),
            max_new_tokens=NUM_TOKENS,
        )
    )


@pytest.fixture(scope="module")
def sampled(tiny_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Traffic:
    path = tmp_path_factory.mktemp("traffic") / "sampled.jsonl"
    sampling = Sampling(temperature=0.8, seed=3)
    return capture(
        CaptureSettings(
            str(tiny_pair.target),
            tiny_pair.prompts,
            path,
            sampling=sampling,
            max_new_tokens=NUM_TOKENS,
        )
    )


MORE_K = [pytest.param(k, marks=pytest.mark.slow) for k in (3, 7)]


@pytest.mark.parametrize("k", [1, 4, *MORE_K])
def test_live_rounds_equal_replayed_rounds_prompt_by_prompt(models, greedy, k):
    target, draft = models
    keep = acceptance_probabilities(draft, greedy, "greedy")
    live = run_live(borrow(target), borrow(draft), greedy, num_speculative_tokens=k, rule="greedy")
    replayed = replay_rounds([r.prompt_id for r in greedy.responses], keep, [k])

    assert [p.text for p in live] == ["identical"] * len(greedy.responses)
    assert [p.run.num_drafts for p in live] == replayed.num_drafts[0].tolist()
    counted = np.array([p.run.num_accepted_tokens_per_pos for p in live]).sum(0)
    assert counted.tolist() == list(replayed.counts(k).num_accepted_tokens_per_pos)
    # a pair that always or never agrees would prove nothing
    assert 0.1 < np.mean(np.concatenate(keep)) < 0.9


SLOW_RULES = [
    pytest.param(rule, marks=pytest.mark.slow) for rule in ("greedy_draft", "exact_match")
]


@pytest.mark.parametrize("rule", ["rejection", *SLOW_RULES])
def test_drawn_rounds_agree_with_replay_of_the_loops_own_text(models, sampled, rule):
    target, draft = models
    many = Traffic(sampled.responses * 5, sampled.sampling)
    live = run_live(
        borrow(target), borrow(draft), many, num_speculative_tokens=3, rule=rule, seed=11
    )
    keep = live_probabilities(target, draft, live, rule, sampled.sampling)
    expected = replay_rounds([str(i) for i in range(len(live))], keep, [3]).num_drafts[0]
    difference = np.array([p.run.num_drafts for p in live]) - expected
    # exact for a draft that argmaxes; else within 4 standard errors of the mean difference
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    assert abs(difference.mean()) <= 4 * error + 1e-9
    if rule == "greedy_draft":
        assert np.abs(difference).max() == 0


def test_padding_and_batching_change_no_keep_probability(models, sampled, monkeypatch):
    _, draft = models
    together = acceptance_probabilities(draft, sampled, "rejection")
    monkeypatch.setattr(replay, "MAX_BATCH_TOKENS", 1)  # one prompt a pass
    alone = acceptance_probabilities(draft, sampled, "rejection")
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_long_responses_in_pieces_give_the_same_numbers(models, sampled, monkeypatch):
    _, draft = models
    whole = acceptance_probabilities(draft, sampled, "rejection")
    monkeypatch.setattr(replay, "MAX_LOGITS", 7 * 512)  # seven tokens a piece
    pieces = acceptance_probabilities(draft, sampled, "rejection")
    for one, other in zip(whole, pieces, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize(
    ("free", "fitting"),
    [
        (None, 2**28),  # nobody knows
        (2**40, 2**28),
        (32 * 2**27, 2**27),
        (32 * 2**27 + 32 * 2**26, 2**27),  # a little more or less changes nothing
        (10, 2**24),
    ],
)
def test_a_pass_has_as_many_logits_as_memory_has_room_for(free, fitting, monkeypatch):
    monkeypatch.setattr(replay, "available_bytes", lambda device: free)
    assert replay.logits_in_memory(torch.device("cpu")) == fitting


def test_short_memory_makes_pieces_shorter_and_changes_neither_batches_nor_results(
    models, greedy, sampled, monkeypatch
):
    _, draft = models
    sizes: list[tuple[int, int]] = []
    hook = draft.lm_head.register_forward_hook(
        lambda module, inputs, out: sizes.append((out.shape[0], out.shape[1]))
    )
    found = {}
    monkeypatch.setattr(replay, "MIN_LOGITS", 1)
    for free in (2**40, 32 * 2**13):  # 8,192 logits: 16 tokens of one row of 512
        monkeypatch.setattr(replay, "available_bytes", lambda device, free=free: free)
        sizes.clear()
        found[free] = (
            acceptance_probabilities(draft, greedy, "greedy"),
            acceptance_probabilities(draft, sampled, "rejection"),
            sizes.copy(),
        )
    hook.remove()
    (whole, drawn, wide), (pieces, drawn_pieces, narrow) = found.values()
    assert {rows for rows, _ in wide} == {rows for rows, _ in narrow}
    assert max(tokens for _, tokens in narrow) < max(tokens for _, tokens in wide)
    for one, other in zip(whole, pieces, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(drawn, drawn_pieces, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_a_model_replayed_against_itself_keeps_everything(models, greedy, sampled):
    target, _ = models
    assert np.concatenate(acceptance_probabilities(target, greedy, "greedy")).min() == 1.0
    kept = np.concatenate(acceptance_probabilities(target, sampled, "rejection"))
    assert kept.min() > 1 - 1e-3  # log-probabilities in the file have six decimals


def test_captured_log_probabilities_are_the_teacher_forced_ones(models, sampled):
    target, _ = models
    forced = target_logprobs(target, sampled.responses, sampled.sampling)
    for response, logprobs in zip(sampled.responses, forced, strict=True):
        np.testing.assert_allclose(response.logprobs, logprobs, atol=1e-4)


def test_rejection_without_log_probabilities_is_refused(models, greedy):
    _, draft = models
    bare = tuple(r for r in greedy.responses)
    with pytest.raises(TrafficError, match="temperature above 0"):
        acceptance_probabilities(draft, Traffic(bare, Sampling()), "rejection")
