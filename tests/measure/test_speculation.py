"""The loop over rounds, on a tiny real pair: the target's text, each row on its own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.checkpoints.tensors.loading import load_model
from quantdraft.engines.native.model import borrow, load_native
from quantdraft.engines.native.session import Session
from quantdraft.engines.native.weight_sources import stored_weights
from quantdraft.measure import speculation
from quantdraft.measure.generation import generate
from quantdraft.measure.speculation import next_logits, speculate
from quantdraft.measure.verification import RoundPlan
from quantdraft.traffic.traffic import Sampling

CPU = torch.device("cpu")
PROMPTS = [list(range(40, 52)), list(range(90, 97)), list(range(200, 230))]
LENGTHS = [24, 9, 30]


@pytest.fixture(scope="module")
def pair(tiny_pair):
    return tuple(
        load_native(stored_weights(open_checkpoint(path)), torch.float32, CPU, (1, 5))
        for path in (tiny_pair.target, tiny_pair.draft)
    )


def decoded(pair, plan: RoundPlan, rows: list[int], seeds=None):
    slots = max(len(PROMPTS[row]) + LENGTHS[row] for row in rows) + plan.num_speculative_tokens + 1
    target, draft = (Session(native, len(rows), slots) for native in pair)
    return speculate(
        target,
        draft if plan.num_speculative_tokens else None,
        [PROMPTS[row] for row in rows],
        plan,
        max_new_tokens=[LENGTHS[row] for row in rows],
        eos_token_ids=frozenset(),
        seeds=seeds or rows,
    ).runs


@pytest.fixture(scope="module")
def alone(tiny_pair):
    """The target's own greedy text, from the transformers library's modules."""
    model = load_model(tiny_pair.target, torch.float32, CPU)
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    answers = generate(model, PROMPTS, Sampling(), max(LENGTHS), [0, 0, 0])
    return [answer.token_ids[:n] for answer, n in zip(answers, LENGTHS, strict=True)]


@pytest.mark.parametrize("k", [0, 1, 4, 7])
def test_greedy_text_is_the_targets_own_in_every_row_of_a_batch(pair, alone, k):
    runs = decoded(pair, RoundPlan(k, "greedy", Sampling()), [0, 1, 2])
    assert [run.token_ids for run in runs] == alone
    for run in runs:
        # Without a draft every round emits one token; the first comes from the prefill.
        emitted = len(run.token_ids) - 1
        assert run.num_drafts == emitted if k == 0 else run.num_drafts <= emitted
        assert sum(run.num_accepted_tokens_per_pos) >= emitted - run.num_drafts


@pytest.mark.parametrize("rule", ["rejection", "greedy_draft", "exact_match"])
def test_a_rows_text_does_not_depend_on_its_neighbours(pair, rule):
    plan = RoundPlan(3, rule, Sampling(temperature=0.9, top_p=0.95))
    together = decoded(pair, plan, [0, 1, 2])
    apart = [decoded(pair, plan, [row])[0] for row in (0, 1, 2)]
    assert together == apart
    assert decoded(pair, plan, [0], seeds=[99])[0].token_ids != apart[0].token_ids


def test_borrowed_modules_emit_and_count_the_same(pair, tiny_pair):
    borrowed = tuple(
        borrow(load_model(path, torch.float32, CPU)) for path in (tiny_pair.target, tiny_pair.draft)
    )
    plan = RoundPlan(4, "greedy", Sampling())
    assert decoded(borrowed, plan, [0, 1, 2]) == decoded(pair, plan, [0, 1, 2])


def test_nothing_follows_an_end_token(pair, alone):
    end = alone[0][5]
    at = alone[0].index(end)
    sessions = [Session(native, 1, 64) for native in pair]
    (run,) = speculate(
        *sessions,
        [PROMPTS[0]],
        RoundPlan(4, "greedy", Sampling()),
        max_new_tokens=[24],
        eos_token_ids=frozenset({end}),
        seeds=[0],
    ).runs
    assert run.token_ids == alone[0][: at + 1]


def test_the_logits_after_a_prefix_are_the_models(pair, tiny_pair):
    model = load_model(tiny_pair.target, torch.float32, CPU)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1]
    found = next_logits(Session(pair[0], 1, 16), PROMPTS[0])
    assert torch.allclose(found, logits, atol=1e-4)


class Copies(TorchDispatchMode):
    """Counts what the host copies to a device, whose stand-in is "meta"."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        is_moved = isinstance(out, torch.Tensor) and out.device.type == "meta"
        self.number += is_moved and any(
            isinstance(arg, torch.Tensor) and arg.device.type == "cpu" for arg in args
        )
        return out


@pytest.mark.parametrize("rule", ["greedy", "rejection"])
def test_a_round_copies_once_to_the_device_and_once_back(rule):
    plan = RoundPlan(2, rule, Sampling() if rule == "greedy" else Sampling(temperature=0.8))
    returned = []

    class Answers(list):
        def tolist(self):
            returned.append(self)
            return [[7, 8, 9, 1]]

    def call(key, function, *inputs):
        assert all(tensor.device.type == "meta" for tensor in inputs)
        fed = inputs[0]
        return (fed.new_empty((1, 2)), None) if key[0] == "propose" else Answers()

    session = SimpleNamespace(
        device=torch.device("meta"), num_live=lambda n: n, batch_size=1, slot_step=1, call=call
    )
    row = speculation._Row([3, 4, 5], 2, 9, [0, 0], torch.Generator().manual_seed(0))
    with Copies() as copies:
        speculation._round(session, session, [row], plan, frozenset())
    assert copies.number == 1
    assert len(returned) == 1
    assert row.tokens == [3, 4, 5, 7, 8]
