"""One round's verification, against overlaps computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from quantdraft.measure.sampling import draw
from quantdraft.measure.verification import RoundPlan, verify
from quantdraft.traffic.traffic import Sampling

DRAFT = torch.tensor([0.6, 0.3, 0.1])
TARGET = torch.tensor([0.3, 0.3, 0.4])
NUM_TRIALS = 20_000
DRAWN = Sampling(temperature=1.0)


def rounds(rule: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Proposed, num_accepted and next token of many one-token rounds, one a row: (trials,) each."""
    generator = torch.Generator().manual_seed(0)
    uniforms = torch.rand(NUM_TRIALS, 3, generator=generator, dtype=torch.float64)
    draft_logprobs = DRAFT.log().expand(NUM_TRIALS, 1, 3)
    proposed = draw(draft_logprobs[:, 0], uniforms[:, 0])[:, None]
    target_logits = TARGET.log().expand(NUM_TRIALS, 2, 3)
    result = verify(
        proposed, draft_logprobs, target_logits, RoundPlan(1, rule, DRAWN), uniforms[:, 1:]
    )
    following = result.emitted.gather(1, result.num_accepted[:, None])[:, 0]
    return proposed[:, 0], result.num_accepted, following


def is_near(observed: torch.Tensor, probability: float) -> bool:
    error = math.sqrt(probability * (1 - probability) / NUM_TRIALS)
    return abs(float(observed.double().mean()) - probability) < 4 * error


@pytest.mark.parametrize(
    ("rule", "probability"),
    [
        ("rejection", 0.3 + 0.3 + 0.1),  # the overlap: sum of the smaller of the two
        ("exact_match", 0.6 * 0.3 + 0.3 * 0.3 + 0.1 * 0.4),  # both draw the same token
    ],
)
def test_verify_accepts_with_the_probability_of_its_rule(rule, probability):
    _, accepted, _ = rounds(rule)
    assert is_near(accepted, probability)


@pytest.mark.parametrize("rule", ["rejection", "exact_match", "greedy_draft"])
def test_every_rule_emits_the_targets_own_distribution(rule):
    proposed, accepted, following = rounds(rule)
    first = torch.where(accepted == 1, proposed, following)
    for token, probability in enumerate(TARGET.tolist()):
        assert is_near(first == token, probability)


def test_the_token_after_a_rejection_comes_from_what_the_draft_lacks():
    proposed, accepted, following = rounds("rejection")
    # The target exceeds the draft at the last token only.
    assert (following[accepted == 0] == 2).all()
    assert (proposed[accepted == 0] == 0).all()


def test_greedy_keeps_each_rows_prefix_that_equals_the_targets_argmaxes():
    target_logits = torch.eye(3)[[2, 0, 1, 2]].expand(3, -1, -1)  # its choices: 2, 0, 1, then 2
    proposed = torch.tensor([[2, 0, 1], [2, 1, 1], [0, 0, 1]])
    plan, unused = RoundPlan(3, "greedy", Sampling()), torch.zeros(3, 4, dtype=torch.float64)
    emitted, num_accepted = verify(proposed, None, target_logits, plan, unused)
    assert num_accepted.tolist() == [3, 1, 0]
    kept = [row[: n + 1] for row, n in zip(emitted.tolist(), num_accepted.tolist(), strict=True)]
    assert kept == [[2, 0, 1, 2], [2, 0], [2]]


def test_nothing_proposed_is_the_target_alone():
    target_logits = torch.eye(3)[[1]][None]
    unused = torch.zeros(1, 1, dtype=torch.float64)
    proposed = torch.empty(1, 0, dtype=torch.long)
    result = verify(proposed, None, target_logits, RoundPlan(0, "greedy", Sampling()), unused)
    assert result.emitted.tolist() == [[1]]
    assert result.num_accepted.tolist() == [0]
