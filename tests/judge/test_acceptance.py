"""Replayed rounds against loops that count, and against speculative decoding that is simulated."""

import numpy as np
import pytest

from quantdraft.errors import OptionError, PairingError, UndefinedMetricError
from quantdraft.judge.acceptance import (
    alpha_from_length,
    closed_form_length,
    rate_from_length,
    replay_rounds,
    token_acceptance,
)

KS = range(1, 17)


def count_rounds(keep: list[int], k: int, first_token_from_prefill: bool) -> tuple[int, list[int]]:
    """Rounds and accepted tokens per position, by walking the text round by round."""
    token, rounds, accepted = int(first_token_from_prefill), 0, [0] * k
    while token < len(keep):
        rounds += 1
        for position in range(k):
            if token == len(keep) or not keep[token]:
                break
            accepted[position] += 1
            token += 1
        token += 1  # the recovered or bonus token
    return rounds, accepted


@pytest.mark.parametrize("from_prefill", [True, False])
def test_greedy_rounds_equal_a_counting_loop_for_every_k(from_prefill: bool) -> None:
    rng = np.random.default_rng(0)
    keeps = [
        (rng.random(n) < rng.random()).astype(float) for n in [0, 1, 2, 3, 17, 64, 128, 128, 5]
    ]
    names = [f"prompt-{i}" for i in range(len(keeps))]
    replayed = replay_rounds(names, keeps, KS, from_prefill)
    for k in KS:
        for prompt, keep in enumerate(keeps):
            rounds, accepted = count_rounds(keep.astype(int).tolist(), k, from_prefill)
            counts = replayed.of_prompts([prompt]).counts(k)
            assert counts.num_drafts == rounds
            assert counts.num_accepted_tokens_per_pos == tuple(accepted)
            assert counts.num_tokens == max(len(keep) - from_prefill, 0)


def test_counts_over_all_prompts_are_the_sum_of_counts_over_each() -> None:
    rng = np.random.default_rng(1)
    keeps = [rng.random(n) for n in (9, 30, 4)]
    replayed = replay_rounds(["a", "b", "c"], keeps, (3, 5))
    each = [replayed.of_prompts([prompt]).counts(5) for prompt in range(3)]
    assert replayed.counts(5).num_drafts == pytest.approx(sum(c.num_drafts for c in each))
    assert replayed.num_accepted(5) == pytest.approx([c.num_accepted_tokens for c in each])


def test_a_prompt_has_the_same_numbers_alone_and_among_others() -> None:
    rng = np.random.default_rng(2)
    keeps = [rng.random(n) for n in (9, 30, 4, 30)]
    together = replay_rounds(["a", "b", "c", "d"], keeps, (2, 7))
    for prompt, keep in enumerate(keeps):
        alone = replay_rounds(["alone"], [keep], (2, 7))
        assert alone.counts(7) == together.of_prompts([prompt]).counts(7)


@pytest.mark.parametrize("k", [1, 4, 16])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.8, 1.0])
def test_iid_acceptance_gives_the_closed_form_length(alpha: float, k: int) -> None:
    length = 10_000  # the cut last round changes tau by less than (k + 1) / 10,000, relative
    replayed = replay_rounds(["iid"], [np.full(length, alpha)], (k,), False)
    counts = replayed.counts(k)
    assert counts.mean_acceptance_length == pytest.approx(
        closed_form_length(alpha, k), rel=2 * (k + 1) / length
    )
    powers = tuple(alpha ** (position + 1) for position in range(k))
    assert counts.acceptance_rate_per_pos == pytest.approx(powers, abs=2 * (k + 1) / length)


def test_closed_form_by_hand_and_its_inverses() -> None:
    assert closed_form_length(0.5, 2) == 1.75
    assert closed_form_length(1.0, 4) == 5.0
    assert alpha_from_length(1.75, 2) == pytest.approx(0.5)
    assert alpha_from_length(5.0, 4) == pytest.approx(1.0)
    assert rate_from_length(3.0, 4) == 0.5
    for outside in (0.99, 5.01):
        with pytest.raises(UndefinedMetricError, match="no acceptance rate"):
            alpha_from_length(outside, 4)
        with pytest.raises(UndefinedMetricError, match="no acceptance rate"):
            rate_from_length(outside, 4)


def test_asked_and_kept_by_hand() -> None:
    # k = 2, rounds: [y2 kept, y3 kept, y4 bonus], [y5 rejected], [y6 kept]
    keep = np.array([0.0, 1.0, 1.0, 0.0, 0.0, 1.0])
    ((_, tokens),) = token_acceptance([keep], 2)
    assert tokens.asked.tolist() == [0, 1, 1, 0, 1, 1]
    assert tokens.kept.tolist() == [0, 1, 1, 0, 0, 1]


def test_without_positions_the_sums_stay() -> None:
    rng = np.random.default_rng(6)
    whole = replay_rounds(["a", "b"], [rng.random(30), rng.random(11)], (2, 5))
    summed = whole.without_positions()
    for k in (2, 5):
        assert summed.num_accepted(k) == pytest.approx(whole.num_accepted(k))
        before, after = whole.counts(k), summed.counts(k)
        assert len(after.num_accepted_tokens_per_pos) == 1
        assert after.acceptance_rate == pytest.approx(before.acceptance_rate)
        assert after.mean_acceptance_length == before.mean_acceptance_length


def test_kept_sums_to_the_accepted_tokens_and_is_asked_times_keep() -> None:
    rng = np.random.default_rng(3)
    keeps = [rng.random(n) for n in (12, 40, 1)]
    accepted = replay_rounds(["a", "b", "c"], keeps, (3, 4)).num_accepted(4)
    found = list(token_acceptance(keeps, 4))
    assert [at for at, _ in found] == [1, 0, 2]
    for at, tokens in found:
        assert tokens.asked.shape == keeps[at].shape
        assert tokens.kept.sum() == pytest.approx(accepted[at])
        assert tokens.kept == pytest.approx(tokens.asked * keeps[at])


def test_wrong_inputs_are_named() -> None:
    with pytest.raises(UndefinedMetricError, match="'q7'"):
        replay_rounds(["q7"], [np.array([0.0, np.nan])], (4,))
    with pytest.raises(UndefinedMetricError, match="no response"):
        replay_rounds([], [], (4,))
    with pytest.raises(PairingError):
        replay_rounds(["a", "b"], [np.zeros(3)], (4,))
    with pytest.raises(OptionError, match="at least 1"):
        replay_rounds(["a"], [np.zeros(3)], (0,))
    with pytest.raises(OptionError, match="k = 5 was not replayed"):
        replay_rounds(["a"], [np.zeros(3)], (4,)).counts(5)


# A simulated pair: first-order Markov models over a small vocabulary. The simulation drafts,
# verifies, resamples the residual and emits; it shares nothing with the recursion under test.
VOCAB = 6


def markov_pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Transition probabilities of a target and of a draft that resembles it, (vocab, vocab)."""
    rng = np.random.default_rng(seed)
    target = rng.dirichlet(np.full(VOCAB, 0.6), size=VOCAB)
    draft = 0.6 * target + 0.4 * rng.dirichlet(np.full(VOCAB, 0.6), size=VOCAB)
    return draft, target


def sample(weights: np.ndarray, rng: np.random.Generator) -> int:
    return int(np.searchsorted(np.cumsum(weights), rng.random() * weights.sum(), side="right"))


def propose(rule: str, draft_probs: np.ndarray, rng: np.random.Generator) -> int:
    is_argmax = rule in ("greedy", "greedy_draft")
    return int(draft_probs.argmax()) if is_argmax else sample(draft_probs, rng)


def verify(rule: str, proposal: int, draft_probs, target_probs, rng) -> tuple[bool, int]:
    """Whether the proposal is kept, and the token that is emitted in its place."""
    if rule == "rejection":
        if rng.random() < target_probs[proposal] / draft_probs[proposal]:
            return True, proposal
        return False, sample(np.maximum(target_probs - draft_probs, 0), rng)
    emitted = int(target_probs.argmax()) if rule == "greedy" else sample(target_probs, rng)
    return emitted == proposal, emitted


def speculate(rule: str, draft, target, k: int, num_tokens: int, rng) -> tuple[list[int], list]:
    """Text of `num_tokens` tokens after token 0, and the accepted tokens of each round."""
    text, rounds = [sample(np.ones(VOCAB), rng)], []
    while len(text) < num_tokens + 1:
        context, proposals = text[-1], []
        for _ in range(k):
            proposals.append(propose(rule, draft[context], rng))
            context = proposals[-1]
        accepted = 0
        for proposal in proposals:
            before = text[-1]
            is_kept, emitted = verify(rule, proposal, draft[before], target[before], rng)
            text.append(emitted)
            if not is_kept:
                break
            accepted += 1
        else:
            last = target[text[-1]]
            text.append(int(last.argmax()) if rule == "greedy" else sample(last, rng))
        rounds.append(accepted)
    beyond = len(text) - (num_tokens + 1)
    if beyond:  # the round may end in an accepted token, or in the one that follows it
        rounds[-1] -= max(beyond - 1, 0)
    return text[: num_tokens + 1], rounds


def keep_of(rule: str, draft: np.ndarray, target: np.ndarray, text: list[int]) -> np.ndarray:
    before, emitted = np.array(text[:-1]), np.array(text[1:])
    if rule in ("greedy", "greedy_draft"):
        return (draft.argmax(1)[before] == emitted).astype(float)
    if rule == "exact_match":
        return draft[before, emitted]
    return np.minimum(1, draft[before, emitted] / target[before, emitted])


def simulate(rule: str, k: int, num_texts: int, num_tokens: int, seed: int):
    """Simulated and replayed rounds (texts,) and accepted per position (texts, k)."""
    draft, target = markov_pair(seed)
    rng = np.random.default_rng(seed + 1)
    runs = [speculate(rule, draft, target, k, num_tokens, rng) for _ in range(num_texts)]
    keeps = [keep_of(rule, draft, target, text) for text, _ in runs]
    replayed = replay_rounds([str(i) for i in range(num_texts)], keeps, (k,), False)
    rounds = np.array([len(accepted) for _, accepted in runs])
    per_pos = np.array([[sum(a > j for a in acc) for j in range(k)] for _, acc in runs])
    return rounds, per_pos, replayed


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("rule", ["rejection", "exact_match"])
def test_expected_rounds_match_simulated_decoding_within_4_standard_errors(
    rule: str, k: int
) -> None:
    num_texts = 1200
    rounds, per_pos, replayed = simulate(rule, k, num_texts, num_tokens=24, seed=5)
    assert rounds.sum() > 8_000
    differences = np.column_stack(
        [rounds - replayed.num_drafts[0], per_pos - replayed.num_accepted_per_pos[0]]
    )
    error = differences.std(axis=0, ddof=1) / np.sqrt(num_texts)
    assert np.all(error > 0)
    assert np.all(np.abs(differences.mean(axis=0)) < 4 * error)
    # tau is a ratio of sums, so its relative error is that of the rounds
    simulated_length = 24 * num_texts / rounds.sum()
    tolerance = 4 * error[0] / rounds.mean() * simulated_length
    assert replayed.counts(k).mean_acceptance_length == pytest.approx(
        simulated_length, abs=tolerance
    )


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("rule", ["greedy", "greedy_draft"])
def test_rounds_of_an_argmax_draft_equal_simulated_decoding_on_every_text(
    rule: str, k: int
) -> None:
    rounds, per_pos, replayed = simulate(rule, k, num_texts=300, num_tokens=40, seed=8)
    assert rounds.min() < rounds.max()
    assert np.array_equal(rounds, replayed.num_drafts[0])
    assert np.array_equal(per_pos, replayed.num_accepted_per_pos[0])


def test_rejection_replay_varies_less_between_texts_than_live_rounds_do() -> None:
    rounds, _, replayed = simulate("rejection", 5, num_texts=800, num_tokens=24, seed=5)
    assert replayed.num_drafts[0].var() < rounds.var()


def test_the_simulated_rejection_rule_emits_the_target_distribution() -> None:
    """Guards the simulation: were it wrong, agreement with it would prove nothing."""
    draft, target = markov_pair(5)
    rng = np.random.default_rng(9)
    texts = [speculate("rejection", draft, target, 3, 24, rng)[0] for _ in range(800)]
    seen = np.zeros((VOCAB, VOCAB))
    for text in texts:
        np.add.at(seen, (text[:-1], text[1:]), 1)
    visits = seen.sum(axis=1, keepdims=True)
    error = np.sqrt(target * (1 - target) / visits)
    assert np.all(np.abs(seen / visits - target) <= 4.5 * error + 1e-9)
