"""One round's verification, against overlaps computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from quantdraft.speculation import verify
from quantdraft.traffic import Sampling

DRAFT = torch.tensor([0.6, 0.3, 0.1])
TARGET = torch.tensor([0.3, 0.3, 0.4])
NUM_TRIALS = 4000
DRAWN = Sampling(temperature=1.0)


def rounds(rule: str) -> list[tuple[int, int, int]]:
    """(proposed, num_accepted, next token) of many one-token rounds."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(NUM_TRIALS):
        token = int(torch.multinomial(DRAFT, 1, generator=generator))
        target_logits = TARGET.log().expand(2, 3)
        result = verify([token], DRAFT.log()[None], target_logits, rule, DRAWN, generator)
        found.append((token, result.num_accepted, result.next_token))
    return found


@pytest.mark.parametrize(
    ("rule", "probability"),
    [
        ("rejection", 0.3 + 0.3 + 0.1),  # the overlap: sum of the smaller of the two
        ("exact_match", 0.6 * 0.3 + 0.3 * 0.3 + 0.1 * 0.4),  # both draw the same token
    ],
)
def test_verify_accepts_with_the_probability_of_its_rule(rule, probability):
    accepted = sum(kept for _, kept, _ in rounds(rule)) / NUM_TRIALS
    error = math.sqrt(probability * (1 - probability) / NUM_TRIALS)
    assert abs(accepted - probability) < 4 * error


def test_rejection_emits_the_targets_own_distribution():
    emitted = [token if kept else after for token, kept, after in rounds("rejection")]
    for token, probability in enumerate(TARGET.tolist()):
        error = math.sqrt(probability * (1 - probability) / NUM_TRIALS)
        assert abs(emitted.count(token) / NUM_TRIALS - probability) < 4 * error


def test_greedy_keeps_the_prefix_that_equals_the_targets_argmaxes():
    target_logits = torch.eye(3)[[2, 0, 1, 2]]  # the target's choices: 2, 0, 1, then 2
    generator = torch.Generator()
    unused = torch.zeros(3, 3)
    all_kept = verify([2, 0, 1], unused, target_logits, "greedy", Sampling(), generator)
    assert all_kept == (3, 2)
    one_kept = verify([2, 1, 1], unused, target_logits, "greedy", Sampling(), generator)
    assert one_kept == (1, 0)
    none_kept = verify([0, 0, 1], unused, target_logits, "greedy", Sampling(), generator)
    assert none_kept == (0, 2)
