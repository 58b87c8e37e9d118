"""Acceptance rates of one contender at one k: over all prompts, by domain, against another's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantdraft.judge.acceptance import Replayed
from quantdraft.judge.comparison import Bootstrap
from quantdraft.judge.comparison.lengths import draw_lengths, num_prompts_with_rounds
from quantdraft.judge.statistics.bootstrap import interval_of
from quantdraft.judge.statistics.studentized import draw_alone
from quantdraft.record import Interval


@dataclass(frozen=True, slots=True)
class DomainRate:
    """Accepted / proposed on the prompts of one domain."""

    domain: str
    num_prompts: int  # those with a round
    acceptance_rate: Interval


def rate_of(replayed: Replayed, k: int, bootstrap: Bootstrap) -> Interval:
    """Accepted / proposed; [0, 1] where there are too few prompts for an interval."""
    value = replayed.counts(k).acceptance_rate
    return interval_of(value, draw_alone(replayed, k, bootstrap).rate, None, bootstrap)


def rate_gap(first: Replayed, own: Replayed, k: int, bootstrap: Bootstrap) -> Interval:
    """The second's acceptance rate minus the first's, prompt by prompt, both at one k."""
    drawn_first, drawn = draw_lengths(first, own, k, k, bootstrap)
    value = own.counts(k).acceptance_rate - first.counts(k).acceptance_rate
    size = num_prompts_with_rounds(own)
    return interval_of(value, drawn.rate - drawn_first.rate, size, bootstrap)


def rates_by_domain(
    replayed: Replayed, domains: Sequence[str], k: int, bootstrap: Bootstrap
) -> tuple[DomainRate, ...]:
    """One a domain that has a round, by name. domains: of every prompt, in the replay's order."""
    found = []
    for name in sorted(set(domains)):
        has_rounds = (np.array(domains) == name) & replayed.has_rounds
        if has_rounds.any():
            part = replayed.of_prompts(np.flatnonzero(has_rounds))
            found.append(DomainRate(name, len(part.prompt_ids), rate_of(part, k, bootstrap)))
    return tuple(found)
