"""What texts have in common is read once, and every number stays what it is alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantdraft.checkpoints.tensors.loading import load_model
from quantdraft.measure import replay, shared_beginnings
from quantdraft.measure.probabilities import MemoryStore
from quantdraft.measure.replay import acceptance_probabilities, response_logits
from quantdraft.measure.shared_beginnings import Branch, SharedBeginnings, tokens_read
from quantdraft.traffic.responses import Response
from quantdraft.traffic.traffic import Sampling, Traffic
from tests.conftest import Pair
from tests.matrix import alike_responses

VOCAB = 500


def tokens(rng: np.random.Generator, number: int) -> tuple[int, ...]:
    return tuple(rng.integers(1, VOCAB, number).tolist())


def conversation(rng: np.random.Generator, opening: tuple[int, ...], num_turns: int):
    """A conversation as a log with all turns has it: each prompt holds the turns before."""
    text, found = opening, []
    for turn in range(num_turns):
        text += tokens(rng, 7 + turn)
        # The end token of an answer need not be what the template writes behind it.
        answer = tokens(rng, 9)
        found.append(Response(f"{opening[-1]}/{turn}", text, (*answer, 2)))
        text += (*answer, 3)
    return found


@pytest.fixture(scope="module")
def draft(tiny_pair: Pair) -> torch.nn.Module:
    return load_model(tiny_pair.draft, torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def log() -> tuple[Response, ...]:
    """Conversations behind two system prompts, a repeated answer, and a stranger; mixed."""
    rng = np.random.default_rng(4)
    systems = tokens(rng, 40), tokens(rng, 75)
    found = [each for system in systems for _ in range(3) for each in conversation(rng, system, 3)]
    found += [found[4], Response("alone", tokens(rng, 50), tokens(rng, 12))]
    # As where a template leaves the thinking of earlier turns away: the history parts midway.
    found.append(Response("parts", found[1].prompt_token_ids + tokens(rng, 30), tokens(rng, 6)))
    return tuple(found[place] for place in rng.permutation(len(found)))


def test_the_last_answer_of_a_conversation_holds_the_others():
    turns = conversation(np.random.default_rng(1), tokens(np.random.default_rng(2), 33), 4)
    shared = SharedBeginnings(turns)
    assert shared.tree(64) == Branch(texts=[3])
    assert sorted(shared.inside(3)) == [0, 1, 2, 3]
    assert shared.first(3) == len(turns[0].prompt_token_ids) - 1


def test_a_text_that_differs_in_its_last_token_read_is_not_held():
    one = Response("one", (1,) * 40, (5, 6, 7))
    other = Response("other", (1,) * 40, (5, 9, 7, 8))
    assert sorted(SharedBeginnings([one, other]).tree(None).texts) == [0, 1]


def test_a_branch_is_read_apart_only_where_it_saves_enough():
    rng = np.random.default_rng(3)
    system = tokens(rng, 100)  # three whole blocks of 32
    some = [Response(str(i), system + tokens(rng, 5), tokens(rng, 4)) for i in range(3)]
    shared = SharedBeginnings(some)
    assert shared.tree(192) == Branch(branches=[Branch(96, [0, 1, 2])])
    assert shared.tree(193) == shared.tree(None) == Branch(texts=[0, 1, 2])


def test_branches_that_pay_stay_where_the_one_around_them_does_not():
    rng = np.random.default_rng(3)
    start = tokens(rng, 32)
    longer = start + tokens(rng, 320)
    some = [Response(str(i), longer + tokens(rng, 5), tokens(rng, 4)) for i in range(2)]
    some.append(Response("2", start + tokens(rng, 40), tokens(rng, 4)))
    assert SharedBeginnings(some).tree(300) == Branch(texts=[2], branches=[Branch(352, [0, 1])])


def branches_of(branch: Branch) -> list[Branch]:
    return [branch, *(each for some in branch.branches for each in branches_of(some))]


@pytest.mark.parametrize("seed", range(20))
def test_every_response_is_read_once_by_what_its_text_says(seed, monkeypatch):
    """Against brute force, on short texts of two tokens, which begin alike more often than not."""
    monkeypatch.setattr(shared_beginnings, "BLOCK", 2)
    rng = np.random.default_rng(seed)

    def drawn(least: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, 2, rng.integers(least, 8)).tolist())

    responses = [Response(str(i), drawn(1), drawn(2)) for i in range(40)]
    texts = [tokens_read(response) for response in responses]
    shared = SharedBeginnings(responses)
    root = shared.tree(1)

    read = list(root.all_texts())
    assert sorted(each for text in read for each in shared.inside(text)) == list(range(40))
    for text in read:
        for each in shared.inside(text):
            assert texts[text][: len(texts[each])] == texts[each]
            assert shared.first(text) < len(responses[each].prompt_token_ids)
    longer = {t for t in texts if any(o != t and o[: len(t)] == t for o in texts)}
    assert {texts[text] for text in read if len(texts[text]) > 1} == {
        text for text in texts if text not in longer and len(text) > 1
    }
    for branch in branches_of(root):
        beginnings = {texts[text][: branch.num_shared] for text in branch.all_texts()}
        assert len(beginnings) == 1
        assert all(branch.num_shared <= shared.first(text) for text in branch.all_texts())


def num_tokens_read(draft: torch.nn.Module, responses) -> int:
    sizes: list[int] = []
    hook = draft.model.embed_tokens.register_forward_hook(
        lambda module, inputs, out: sizes.append(inputs[0].numel())
    )
    list(response_logits(draft, responses))
    hook.remove()
    return sum(sizes)


def by_itself(draft: torch.nn.Module, responses) -> list[np.ndarray]:
    rows = []
    for each in responses:
        ids = torch.tensor([tokens_read(each)])
        with torch.inference_mode():
            logits = draft(input_ids=ids).logits[0, len(each.prompt_token_ids) - 1 :]
        chosen = torch.tensor(each.response_token_ids)[:, None]
        rows.append(logits.softmax(-1).gather(-1, chosen)[:, 0].double().numpy())
    return rows


@pytest.mark.parametrize("least", [64, None], ids=["over caches", "in longer texts alone"])
@pytest.mark.parametrize("max_logits", [2**28, 9 * 512], ids=["at once", "in pieces"])
def test_shared_texts_give_the_numbers_of_separate_ones(draft, log, least, max_logits, monkeypatch):
    monkeypatch.setattr(replay, "_least_saved", lambda model: least)
    monkeypatch.setattr(replay, "MAX_LOGITS", max_logits)
    traffic = Traffic(log, Sampling(temperature=1.0))
    found = acceptance_probabilities(draft, traffic, "exact_match")
    for one, other in zip(found, by_itself(draft, log), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


def test_tokens_in_common_are_read_once(draft, log, monkeypatch):
    shared = num_tokens_read(draft, log)
    monkeypatch.setattr(replay, "_least_saved", lambda model: None)
    held = num_tokens_read(draft, log)
    alone = sum(num_tokens_read(draft, [each]) for each in log)
    assert shared < 0.75 * held < 0.75 * 0.6 * alone


def test_a_replay_that_goes_on_reads_no_finished_branch(draft, log):
    traffic = Traffic(log, Sampling())
    lengths = [len(each.response_token_ids) for each in log]
    wanted = acceptance_probabilities(draft, traffic, "greedy")
    store = MemoryStore(lengths)
    missing = next(place for place, each in enumerate(log) if each.prompt_id == "alone")
    for place, values in enumerate(wanted):
        if place != missing:
            store.put(place, 0, values)
    passes: list[int] = []
    hook = draft.register_forward_hook(lambda *rest: passes.append(1))
    found = acceptance_probabilities(draft, traffic, "greedy", store=store)
    hook.remove()
    assert len(passes) == 1
    assert [each.tolist() for each in found] == [each.tolist() for each in wanted]


def test_a_model_whose_code_is_its_own_reads_over_no_cache(draft):
    class Own(type(draft)):
        """As code beside a checkpoint: nobody has tried it over a cache."""

    assert replay._least_saved(draft) == 64
    draft_class, draft.__class__ = draft.__class__, Own
    try:
        assert replay._least_saved(draft) is None
    finally:
        draft.__class__ = draft_class


def test_the_texts_of_every_architecture_have_something_in_common():
    """What `tests.matrix` holds each architecture to is read in a branch, and one in another."""
    root = SharedBeginnings(alike_responses()).tree(64)
    assert [branch.num_shared for branch in root.branches] == [64]
    assert sorted(root.branches[0].texts) == [0, 2, 3]
