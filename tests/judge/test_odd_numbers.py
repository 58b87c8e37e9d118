"""Numbers that break arithmetic, and traffic at the edges: each has a defined outcome.

Elsewhere: responses of no token or one, ids that are none (test_traffic); prompts beyond the
target's positions (test_capture); an end token inside a round (test_speculation); scripts
(test_lines and below).
"""

from __future__ import annotations

import json
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from quantdraft.checkpoints.tensors.loading import load_model, load_tokenizer
from quantdraft.errors import TrafficError, UndefinedMetricError
from quantdraft.judge.acceptance import replay_rounds
from quantdraft.judge.comparison.lengths import compare_acceptance
from quantdraft.judge.comparison.speeds import speed_point
from quantdraft.judge.verdict.checks import Evidence
from quantdraft.judge.verdict.decision import decide
from quantdraft.measure import replay
from quantdraft.measure.capture import _fitting
from quantdraft.measure.filters import usable, without_repeats
from quantdraft.measure.generation import generate
from quantdraft.measure.probabilities import open_store_at
from quantdraft.measure.replay import acceptance_probabilities
from quantdraft.traffic import jsonl as lines
from quantdraft.traffic.prompts import Prompt, encode_prompt, read_prompts
from quantdraft.traffic.responses import Response
from quantdraft.traffic.traffic import Sampling, Traffic, read_traffic
from tests.judge.test_comparison import noisy_latency
from tests.traffic.test_jsonl import SCRIPTS

CPU = torch.device("cpu")
VOCAB = 16
NAN, INF = float("nan"), float("inf")


class FakeDraft:
    """Says the token after the one it read; `spoil` has the logits; `num_rows` are counted."""

    device = CPU
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=VOCAB))

    def __init__(self, spoil=lambda logits: None) -> None:
        self.spoil, self.num_rows = spoil, 0

    def __call__(self, input_ids, logits_to_keep, **_):
        self.num_rows += len(input_ids)
        logits = torch.nn.functional.one_hot((input_ids + 1) % VOCAB, VOCAB).float()
        self.spoil(logits)
        return SimpleNamespace(logits=logits[:, -logits_to_keep:])


def counting_up(num: int, length: int = 6) -> Traffic:
    """Responses that FakeDraft predicts, each of another length; no prompt begins as another."""
    responses = [
        Response(f"p{i}", (i, 2), tuple(t % VOCAB for t in range(3, 3 + length + i)), None)
        for i in range(num)
    ]
    return Traffic(tuple(responses), Sampling())


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_drafts_broken_logits_are_undefined_by_the_name_of_the_prompt(value):
    def spoil(logits: torch.Tensor) -> None:
        logits[-1, -2, 4] = value  # the last row of a batch is its longest

    traffic = counting_up(3)
    keeps = acceptance_probabilities(FakeDraft(spoil), traffic, "greedy")
    assert [bool(np.isnan(each).any()) for each in keeps] == [False, False, True]
    with pytest.raises(UndefinedMetricError, match=r"prompt 'p2'.*float32"):
        replay_rounds([r.prompt_id for r in traffic.responses], keeps, [2])


def test_tokens_that_are_ruled_out_by_minus_infinity_are_no_broken_logits():
    def rule_out(logits: torch.Tensor) -> None:
        logits[..., 0] = -INF

    traffic = counting_up(2)
    found = acceptance_probabilities(FakeDraft(), traffic, "greedy")
    assert all((each == 1).all() for each in found)
    responses = tuple(r for r in traffic.responses if 0 not in r.response_token_ids)
    keeps = acceptance_probabilities(FakeDraft(rule_out), Traffic(responses, Sampling()), "greedy")
    assert all((each == 1).all() for each in keeps)


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8)])
def test_a_targets_broken_logits_stop_the_capture(tiny_pair, value, sampling):
    model = load_model(tiny_pair.target, torch.float32, CPU)
    with torch.no_grad():
        model.lm_head.weight[7] = value
    with pytest.raises(UndefinedMetricError, match="logits are not finite after 0 tokens"):
        generate(model, [[40, 41]], sampling, 4, [0])


def test_a_log_probability_of_minus_infinity_is_no_number(tmp_path):
    line = {"prompt_token_ids": [1], "response_token_ids": [2, 3], "logprobs": [-0.5, -INF]}
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(TrafficError, match="not one log-probability for each"):
        read_traffic(path)


def test_one_prompt_gives_no_interval_and_the_verdict_says_how_many_are_needed():
    arm = replay_rounds(["only"], [np.array([1.0, 1, 1, 0, 1, 1])], [4])
    found = compare_acceptance(arm, arm, 4)
    rate = found.candidate_rate
    assert (rate.low, rate.high) == (0, 1)  # everything is possible
    speed = speed_point(
        arm, arm, noisy_latency(40, np.random.default_rng(0), 0.5), baseline_k=4, candidate_k=4
    )
    verdict = decide(Evidence("int4", "bf16 draft", False, found, speed, 1, 40))
    assert verdict.decision == "inconclusive"
    assert verdict.to_settle == "about 5 prompts (now 1)"


def test_identical_responses_count_once(notes):
    traffic = counting_up(3)
    copies = Traffic(traffic.responses * 4, Sampling())
    assert without_repeats(copies).responses == traffic.responses
    assert "left out: 9 responses that repeat another" in notes.text
    assert without_repeats(traffic) is traffic


def test_ids_beyond_the_drafts_vocabulary_are_refused_by_the_name_of_the_prompt():
    candidate = SimpleNamespace(text_config={"vocab_size": 8}, manifest=None, name="draft")
    with pytest.raises(TrafficError, match=r"prompt 'p1' has token id 8, but .* ends at 7"):
        usable(counting_up(2, length=5), SimpleNamespace(candidate=candidate, baseline=candidate))


def with_positions(number: int | None, **more: object) -> SimpleNamespace:
    config = {"vocab_size": VOCAB, "max_position_embeddings": number, **more}
    return SimpleNamespace(text_config=config, manifest=None, name="draft")


def models_of(draft: SimpleNamespace, target: SimpleNamespace | None = None) -> SimpleNamespace:
    return SimpleNamespace(candidate=draft, baseline=draft, target=target)


def test_responses_beyond_the_models_positions_are_left_out_and_said(notes):
    traffic = counting_up(4)  # with their prompts 8, 9, 10 and 11 tokens
    left = usable(traffic, models_of(with_positions(9), with_positions(64)))
    assert left.responses == traffic.responses[:2]
    said = "left out: 2 responses longer, with their prompts, than the 9 positions of 'draft'"
    assert said in notes.text
    with pytest.raises(TrafficError, match="all responses are longer"):
        usable(traffic, models_of(with_positions(7)))


@pytest.mark.parametrize(
    "model",
    [with_positions(11), with_positions(None), with_positions(6, rope_scaling={"factor": 2.0})],
)
def test_responses_within_the_models_positions_stay(model):
    traffic = counting_up(4)
    assert usable(traffic, models_of(model)) is traffic


def test_prompts_in_every_script_survive_the_tokenizer(tiny_pair):
    tokenizer = load_tokenizer(tiny_pair.target)
    prompts = [Prompt(str(i), text=text) for i, text in enumerate(SCRIPTS)]
    for text, prompt in zip(SCRIPTS, prompts, strict=True):
        assert tokenizer.decode(list(encode_prompt(prompt, tokenizer))) == text


def test_a_killed_replay_runs_no_finished_batch_again(tmp_path, monkeypatch):
    monkeypatch.setattr(replay, "MAX_BATCH_TOKENS", 25)
    traffic = counting_up(10)
    lengths = [len(r.response_token_ids) for r in traffic.responses]
    whole = FakeDraft()
    expected = acceptance_probabilities(whole, traffic, "greedy")
    assert whole.num_rows == 10

    class Killed(FakeDraft):
        def __call__(self, *arguments, **options):
            if self.num_rows >= 4:
                raise KeyboardInterrupt
            return super().__call__(*arguments, **options)

    first, second = Killed(), FakeDraft()
    with (
        open_store_at(tmp_path / "keep.f64", {}, lengths) as keeps,
        pytest.raises(KeyboardInterrupt),
    ):
        acceptance_probabilities(first, traffic, "greedy", store=keeps)
    done: list[int] = []
    with open_store_at(tmp_path / "keep.f64", {}, lengths) as keeps:
        found = acceptance_probabilities(second, traffic, "greedy", done.append, keeps)
    assert first.num_rows >= 4
    assert first.num_rows + second.num_rows == 10
    assert [each.tolist() for each in found] == [each.tolist() for each in expected]
    assert sum(done) == 10


def test_a_capture_holds_neither_its_prompts_nor_their_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_BYTES_IN_MEMORY", 0)

    def tokenizer(text):
        return {"input_ids": [ord(c) for c in text]}

    def peak_bytes(length: int) -> int:
        path = tmp_path / f"{length}.jsonl"
        path.write_text(f'{{"prompt": "{"x" * length}"}}\n' * 400)
        tracemalloc.start()
        indices, skipped = _fitting(read_prompts(path), tokenizer, 8, None)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert (len(indices), skipped) == (400, [])
        return peak

    # Held, the longer prompts would take 400 x 2,000 x 8 bytes more; one of them takes 1/400.
    assert peak_bytes(2100) - peak_bytes(100) < 400 * 2000 * 8 / 20
