"""Check at full size, on the embedded pair, that replay counts what the live loop counts.

Slow: `make test-slow`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.checkpoints.reference import pair_dir
from quantdraft.checkpoints.tensors.loading import load_model
from quantdraft.engines.native.model import load_native
from quantdraft.engines.native.weight_sources import stored_weights
from quantdraft.judge.acceptance import replay_rounds
from quantdraft.measure.capture import capture
from quantdraft.measure.live import run_live
from quantdraft.measure.replay import acceptance_probabilities
from quantdraft.measure.settings import CaptureSettings
from quantdraft.quantize.apply import apply
from quantdraft.quantize.recipe import load_recipe
from quantdraft.traffic.traffic import Sampling, Traffic
from quantdraft.workflows.evaluate import evaluate
from tests.evaluation_settings import evaluation_settings

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def natives():
    paths = [pair_dir() / name for name in ("target", "draft")]
    return tuple(
        load_native(stored_weights(open_checkpoint(path)), torch.float32, CPU) for path in paths
    )


@pytest.fixture(scope="module")
def draft():
    return load_model(pair_dir() / "draft", torch.float32, CPU)


def captured(path: Path, sampling: Sampling, num_prompts: int, num_tokens: int) -> Traffic:
    return capture(
        CaptureSettings(
            str(pair_dir() / "target"),
            pair_dir() / "prompts.jsonl",
            path,
            sampling=sampling,
            max_new_tokens=num_tokens,
            limit=num_prompts,
        )
    )


def test_greedy_rounds_are_equal_for_every_prompt_and_every_k(natives, draft, tmp_path):
    traffic = captured(tmp_path / "t.jsonl", Sampling(), num_prompts=24, num_tokens=128)
    long = tuple(r for r in traffic.responses if len(r.response_token_ids) == 128)
    assert len(long) >= 20
    traffic = replace(traffic, responses=long)
    keep = acceptance_probabilities(draft, traffic, "greedy")
    ids = [response.prompt_id for response in traffic.responses]
    for k in range(1, 9):
        live = run_live(*natives, traffic, num_speculative_tokens=k, rule="greedy")
        replayed = replay_rounds(ids, keep, [k]).num_drafts[0]
        assert [prompt.text for prompt in live] == ["identical"] * len(ids)
        assert [prompt.run.num_drafts for prompt in live] == replayed.tolist()
        print(f"k = {k}: {int(replayed.sum())} rounds live and replayed, {len(ids)} prompts")


def test_rejection_means_agree_within_four_standard_errors(natives, draft, tmp_path):
    num_seeds, num_prompts, num_tokens, ks = 12, 6, 48, [1, 3, 5]
    replayed, live = {k: [] for k in ks}, {k: [] for k in ks}
    for seed in range(num_seeds):
        sampling = Sampling(temperature=0.8, seed=seed)
        traffic = captured(tmp_path / f"{seed}.jsonl", sampling, num_prompts, num_tokens)
        keep = acceptance_probabilities(draft, traffic, "rejection")
        rounds = replay_rounds([r.prompt_id for r in traffic.responses], keep, ks)
        for k in ks:
            run = run_live(
                *natives, traffic, num_speculative_tokens=k, rule="rejection", seed=1000 * seed + k
            )
            counted = sum(prompt.run.num_drafts for prompt in run)
            tokens = sum(len(prompt.run.token_ids) - 1 for prompt in run)
            live[k].append(counted / tokens)
            replayed[k].append(rounds.counts(k).num_drafts / rounds.counts(k).num_tokens)
    for k in ks:
        one, other = np.array(live[k]), np.array(replayed[k])
        error = np.sqrt((one.var(ddof=1) + other.var(ddof=1)) / num_seeds)
        print(
            f"k = {k}: rounds a token {one.mean():.4f} live, {other.mean():.4f} replayed, "
            f"standard error {error:.4f}"
        )
        assert abs(one.mean() - other.mean()) < 4 * error


def test_identity_is_never_a_go_in_twenty_runs(tmp_path):
    traffic = tmp_path / "t.jsonl"
    captured(traffic, Sampling(), num_prompts=16, num_tokens=64)
    apply(load_recipe("identity"), str(pair_dir() / "draft"), tmp_path / "identity")
    decisions = []
    for seed in range(20):
        settings = evaluation_settings(
            mode="eager",
            candidate=str(tmp_path / "identity"),
            target=str(pair_dir() / "target"),
            traffic_path=traffic,
            output=tmp_path / f"run-{seed}",
            ks=(1, 2, 4),
            latency_seconds=2.0,
            live_prompts=0,
            seed=seed,
        )
        evaluation = evaluate(settings)
        speedup = evaluation.operating_point.speedup_over_baseline
        decisions.append(evaluation.verdict.decision)
        print(f"run {seed}: {decisions[-1]}, speedup {speedup}")
    assert "go" not in decisions
