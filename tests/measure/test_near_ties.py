"""What a near-tie is: in last places of the float type, at the top, on texts that really part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.checkpoints.tensors.loading import load_model
from quantdraft.engines.native.model import NativeModel, load_native
from quantdraft.engines.native.weight_sources import stored_weights
from quantdraft.judge.acceptance import replay_rounds, rounds_between
from quantdraft.measure.live import run_live
from quantdraft.measure.near_ties import coarsest, greedy_acceptance, near_tie_limit, text_status
from quantdraft.record import Evaluation
from quantdraft.record.terms import nearest_to_usual
from quantdraft.traffic.responses import Response
from quantdraft.traffic.traffic import Sampling, Traffic
from quantdraft.workflows.evaluate import evaluate
from tests.conftest import VOCAB_SIZE, save_tokenizer
from tests.evaluation_settings import changed, evaluation_settings
from tests.fake_vllm import FakeServer, K, Script, serving
from tests.traffic.files import write_traffic

CPU = torch.device("cpu")
NUM_TOKENS, AT = 20, 8  # of a response; where it parts from the target's own
PROMPTS = tuple(tuple(range(first, first + 12)) for first in (5, 40, 90, 200))


# The limit


@pytest.mark.parametrize(
    ("dtype", "size", "limit"),
    [
        # 16 to 32: the last place is 2^(4 - 23) in float32, 2^(4 - 7) in bfloat16.
        ("float32", 16.0, 64 * 2.0**-19),
        ("float32", 31.9, 64 * 2.0**-19),
        ("float32", 1.0, 64 * 2.0**-23),
        ("bfloat16", 16.0, 4 * 2.0**-3),
        ("bfloat16", 32.0, 4 * 2.0**-2),
        ("float16", 16.0, 4 * 2.0**-6),
        ("unheard", 16.0, 4 * 2.0**-3),
    ],
)
def test_the_limit_is_so_many_last_places_at_the_logits_size(dtype, size, limit) -> None:
    assert near_tie_limit(dtype, size) == limit


def test_inputs_rounded_to_a_step_spread_by_the_root_of_step_and_last_place() -> None:
    # FP8: a step of 2^-3, last places of 2^-7 and 2^-23: 2^-5 and 2^-13, so 4 and 1,024 times.
    assert near_tie_limit("bfloat16", 16.0, 2.0**-3) == 4 * near_tie_limit("bfloat16", 16.0)
    assert near_tie_limit("float32", 16.0, 2.0**-3) == 1024 * near_tie_limit("float32", 16.0)


def test_the_coarsest_of_what_is_known_counts() -> None:
    assert coarsest("float32", "bfloat16") == "bfloat16"
    assert coarsest("float32", "float16") == "float16"
    assert coarsest("float32", None) == "float32"
    assert coarsest(None, "None") == "bfloat16"


def status(gap: float, wanted=(1, 2, 3), found=(1, 0, 3), dtype="float32", low: float = 0.0):
    """Of texts that part at token 1, where tokens 0 and 2 are `gap` apart and `low` under 16."""
    logits = torch.tensor([16.0 - low, 5.0, 16.0 - low - gap, 16.0 if low else 4.0])
    return text_status(wanted, found, lambda at: logits, dtype)


@pytest.mark.parametrize(("size", "place"), [(9.0, 0.0625), (33.0, 0.25), (70.0, 0.5)])
def test_a_tie_in_16_bits_grows_with_the_logits_as_their_last_place_does(size, place) -> None:
    """A fixed 0.125 would call one last place at 33 and 70 another text."""
    assert near_tie_limit("bfloat16", size) == 4 * place

    def status_at(num_places: int) -> str:
        logits = torch.tensor([size - num_places * place, 1.0, size])
        return text_status((1, 2), (1, 0), lambda at: logits, "bfloat16")

    assert [status_at(n) for n in (1, 4)] == ["near-tie"] * 2
    assert [status_at(n) for n in (5, 8)] == ["divergent"] * 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_texts_that_part_within_the_limit_are_near_ties_and_beyond_it_divergent(dtype) -> None:
    limit = near_tie_limit(dtype, 16.0)
    assert [status(share * limit, dtype=dtype) for share in (0, 0.5, 1.0)] == ["near-tie"] * 3
    assert [status(share * limit, dtype=dtype) for share in (1.5, 20)] == ["divergent"] * 2


def test_two_tokens_that_the_target_likes_equally_little_are_no_tie() -> None:
    assert status(0.0, low=1.0) == "divergent"


def test_equal_texts_are_identical_and_a_beginning_is_not() -> None:
    assert status(9.0, found=(1, 2, 3)) == "identical"
    for found in ((1, 2), (1, 2, 3, 4)):
        assert status(0.0, found=found) == "divergent"


# A real model with a tie: token b's row of the head is token a's, moved by some limits


@dataclass(frozen=True)
class Tied:
    """A model, what it answers, and a text that takes the other of two tokens at AT."""

    path: Path
    answers: tuple[tuple[int, ...], ...]
    parted: tuple[int, ...]  # of the first prompt

    @property
    def native(self) -> NativeModel:
        return load_native(stored_weights(open_checkpoint(self.path)), torch.float32, CPU)


def greedy(model, prompt: tuple[int, ...], num_tokens: int = NUM_TOKENS) -> tuple[int, ...]:
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(num_tokens):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


@pytest.fixture(scope="module")
def tied_by(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Tied]:
    """Models by how many limits two tokens lie apart, each made once."""

    @cache
    def made(limits: float, end: bool = False) -> Tied:
        return make_tied(tmp_path_factory.mktemp("tied") / "model", limits, end)

    return made


def make_tied(path: Path, limits: float, end: bool = False) -> Tied:
    """`limits` apart; end: the token after AT ends a text by itself."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256,
        initializer_range=0.2, tie_word_embeddings=False, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    answers = tuple(greedy(model, prompt) for prompt in PROMPTS)
    one = answers[0][AT]
    # A token that no answer has, after `one` in the list: of exact ties the first is taken.
    other = next(t for t in range(one + 1, VOCAB_SIZE) if all(t not in a for a in answers))
    with torch.inference_mode():
        logits = model(torch.tensor([PROMPTS[0] + answers[0][:AT]])).logits[0, -1]
        share = limits * near_tie_limit("float32", float(logits.abs().max())) / float(logits[one])
        model.lm_head.weight[other] = model.lm_head.weight[one] * (1 - share)
    assert answers == tuple(greedy(model, prompt) for prompt in PROMPTS)
    if end:
        model.config.eos_token_id = model.generation_config.eos_token_id = answers[0][AT + 1]
    model.save_pretrained(path)
    save_tokenizer(path)
    return Tied(path, answers, (*answers[0][:AT], other, *answers[0][AT + 1 :]))


def traffic_of(tied: Tied, first: tuple[int, ...]) -> Traffic:
    """What a float32 target is said to have answered."""
    texts = (first, *tied.answers[1:])
    responses = tuple(
        Response(f"p{i}", prompt, text)
        for i, (prompt, text) in enumerate(zip(PROMPTS, texts, strict=True))
    )
    return Traffic(responses, Sampling(), {"dtype": "float32"})


APART = [(0.0, "near-tie"), (0.5, "near-tie"), (2.0, "divergent"), (60.0, "divergent")]


@pytest.mark.parametrize(("limits", "expected"), APART)
def test_the_live_loop_tells_a_near_tie_from_another_text(tied_by, limits, expected) -> None:
    tied = tied_by(limits)
    given = traffic_of(tied, tied.parted)
    found = run_live(tied.native, tied.native, given, num_speculative_tokens=K, rule="greedy")
    assert [prompt.text for prompt in found] == [expected, *["identical"] * 3]
    assert found[0].response.response_token_ids == tied.answers[0]
    unknown = replace(given, sampling=None)
    found = run_live(tied.native, tied.native, unknown, num_speculative_tokens=K, rule="greedy")
    assert found[0].text == {"divergent": "own"}.get(expected, expected)


def test_text_of_a_16_bit_engine_is_held_to_16_bits(tied_by) -> None:
    tied = tied_by(60.0)
    given = replace(traffic_of(tied, tied.parted), target={"dtype": "bfloat16"})
    found = run_live(tied.native, tied.native, given, num_speculative_tokens=K, rule="greedy")
    assert found[0].text == "near-tie"


def test_a_live_text_that_ends_early_is_not_identical(tied_by) -> None:
    tied = tied_by(0.0, end=True)
    given = traffic_of(tied, tied.answers[0])
    found = run_live(tied.native, tied.native, given, num_speculative_tokens=K, rule="greedy")
    emitted = found[0].response.response_token_ids
    assert emitted == tied.answers[0][: len(emitted)] != tied.answers[0]
    assert found[0].text == "divergent"


def evaluated(tied: Tied, tmp_path: Path, given: Traffic, **settings: object) -> Evaluation:
    write_traffic(tmp_path / "traffic.jsonl", given)
    plain = evaluation_settings(
        candidate=str(tied.path),
        baseline=str(tied.path),
        target=str(tied.path),
        traffic_path=tmp_path / "traffic.jsonl",
        output=tmp_path / "run",
        ks=(K,),
        dtype="float32",
        no_latency=True,
    )
    return evaluate(changed(plain, **settings))


def codes(evaluation: Evaluation) -> set[str]:
    return {alarm.code for alarm in evaluation.verdict.alarms}


def test_a_near_tie_is_replayed_as_the_loop_wrote_it_and_must_agree(tied_by, tmp_path) -> None:
    tied = tied_by(0.0)
    evaluation = evaluated(tied, tmp_path, traffic_of(tied, tied.parted))
    for check in evaluation.live:
        assert (check.num_identical_texts, check.num_near_ties, check.num_divergent) == (3, 1, 0)
        assert check.prompt_ids == ("p0", "p1", "p2", "p3")
        assert check.num_drafts_live == check.num_drafts_replayed
    assert not codes(evaluation) & {"live_divergent", "replay_disagrees"}


def test_another_text_raises_the_alarm(tied_by, tmp_path) -> None:
    tied = tied_by(2.0)
    evaluation = evaluated(tied, tmp_path, traffic_of(tied, tied.parted))
    assert "live_divergent" in codes(evaluation)
    assert evaluation.live[0].prompt_ids == ("p1", "p2", "p3")


@pytest.mark.parametrize(
    ("limits", "num_short", "expected"), [*((n, 0, text) for n, text in APART), (0, 2, "divergent")]
)
def test_the_servers_text_is_held_against_the_traffics_in_the_same_way(
    tied_by, tmp_path, limits, num_short, expected
) -> None:
    """The server writes the target's text; the traffic parts from it, or goes on after its end."""
    tied = tied_by(limits)
    texts = [tied.answers[0][: NUM_TOKENS - num_short], *tied.answers[1:]]
    # The draft is the target: every round keeps all it proposed.
    rounds = [-(-(len(text) - 1) // (K + 1)) for text in texts]
    scripts = {
        prompt: Script(text, n, (n, n, n, n))
        for prompt, text, n in zip(PROMPTS, texts, rounds, strict=True)
    }
    given = traffic_of(tied, tied.answers[0] if num_short else tied.parted)
    with serving(FakeServer(scripts)) as url:
        evaluation = evaluated(tied, tmp_path, given, engine="vllm", urls=(url,))
    requests = evaluation.served.arms["candidate"].requests
    assert {r.text for r in requests if r.prompt_id == "p0"} == {expected}
    assert {r.text for r in requests if r.prompt_id != "p0"} == {"identical"}
    assert ("live_divergent" in codes(evaluation)) == (expected == "divergent")
    assert evaluation.served.arms["candidate"].is_exact
    assert "engine_disagrees" not in codes(evaluation)


# Rounds between what near-ties allow


def test_tokens_within_the_limit_of_another_are_near_ties_whichever_is_proposed(tied_by) -> None:
    tied = tied_by(0.5)
    draft = load_model(tied.path, torch.float32, CPU)
    texts = [Response("own", PROMPTS[0], tied.answers[0]), Response("b", PROMPTS[0], tied.parted)]
    own, other = greedy_acceptance(draft, texts, "float32")
    assert own.probabilities.tolist() == [1.0] * NUM_TOKENS
    assert other.probabilities[AT] == 0
    one = [at for at, token in enumerate(tied.answers[0]) if token == tied.answers[0][AT]]
    assert np.flatnonzero(own.is_near_tie).tolist() == one
    assert other.is_near_tie[AT]
    apart = tied_by(2.0)
    far = greedy_acceptance(load_model(apart.path, torch.float32, CPU), texts[:1], "float32")[0]
    assert not far.is_near_tie.any()


def test_bounds_hold_every_way_in_which_open_tokens_may_fall() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        keep, is_open = (rng.random(14) < 0.6).astype(float), rng.random(14) < 0.4
        ends = rounds_between(["a"], [keep], [is_open], 3)
        places = np.flatnonzero(is_open)
        rounds = []
        for pattern in range(2 ** len(places)):
            fallen = keep.copy()
            fallen[places] = [pattern >> i & 1 for i in range(len(places))]
            rounds.append(float(replay_rounds(["a"], [fallen], [3]).num_drafts[0, 0]))
        assert (ends[0][0], ends[1][0]) == (min(rounds), max(rounds))


@pytest.mark.parametrize(
    ("ks", "k"), [(range(1, 17), 4), ((6,), 6), ((1, 2, 4), 4), ((2, 8), 2), ((5, 6), 5)]
)
def test_where_nothing_chooses_a_k_it_is_the_nearest_to_4(ks, k) -> None:
    assert nearest_to_usual(tuple(ks)) == k
