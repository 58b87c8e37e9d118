"""What was accepted: counters, slices, comparisons, prompts. Counts are stored, ratios derived."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal, NamedTuple

from quantdraft.errors import UndefinedMetricError
from quantdraft.record.terms import Amount, Arm, Count, Interval, K, Share

AcceptanceRule = Literal["greedy", "greedy_draft", "rejection", "exact_match"]


@dataclass(frozen=True, slots=True)
class AcceptanceCounts:
    """Speculative decoding counters, named as vLLM's are; replayed ones are expectations.

    Accepted tokens exclude the recovered or bonus token that ends every round. The first response
    token comes from the prefill and belongs to no round; a last round cut by the length limit
    counts as a round with all its proposals, as in vLLM's counters.
    """

    num_speculative_tokens: K
    num_tokens: Count  # response tokens emitted in rounds
    num_drafts: Amount
    num_accepted_tokens_per_pos: tuple[Amount, ...]  # (num_speculative_tokens,)

    @property
    def num_draft_tokens(self) -> float:
        """Proposed tokens: `num_speculative_tokens` a round."""
        return self.num_drafts * self.num_speculative_tokens

    @property
    def num_accepted_tokens(self) -> float:
        """Accepted draft tokens over all positions."""
        return sum(self.num_accepted_tokens_per_pos)

    @property
    def acceptance_rate(self) -> float:
        """Accepted / proposed draft tokens, in [0, 1]."""
        if self.num_draft_tokens == 0:
            raise UndefinedMetricError(
                "acceptance rate is undefined: no draft token was proposed. "
                "Use responses of at least 2 tokens."
            )
        return self.num_accepted_tokens / self.num_draft_tokens

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens emitted a round, bonus included, in [1, k + 1]."""
        if self.num_drafts == 0:
            raise UndefinedMetricError(
                "mean acceptance length is undefined: there was no round. "
                "Use responses of at least 2 tokens."
            )
        return self.num_tokens / self.num_drafts

    @property
    def if_reached(self) -> tuple[float | None, ...]:
        """Share accepted at each position of the rounds that reached it; None where none did."""
        reached = (self.num_drafts, *self.num_accepted_tokens_per_pos)
        return tuple(kept / came if came else None for came, kept in itertools.pairwise(reached))

    @property
    def acceptance_rate_per_pos(self) -> tuple[float, ...]:
        """Share of rounds in which position j was accepted, (num_speculative_tokens,)."""
        if self.num_drafts == 0:
            raise UndefinedMetricError("acceptance per position is undefined: there was no round.")
        return tuple(n / self.num_drafts for n in self.num_accepted_tokens_per_pos)


class ArmSlice(NamedTuple):
    """One arm's part of a Slice; the numbers of each prompt are () in older records."""

    conditional_acceptance: float | None
    asked: tuple[float, ...]  # (prompts,)
    kept: tuple[float, ...]


class ArmAcceptance(NamedTuple):
    """One arm's part of an AcceptanceComparison."""

    counts: AcceptanceCounts
    rate: Interval
    length: Interval


class ArmReplay(NamedTuple):
    """One arm's part of a PromptReplay, for every k that was replayed."""

    num_drafts: tuple[float, ...]
    num_accepted: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Slice:
    """Acceptance of both arms on one part of the tokens (a domain, a context length, …).

    Conditional acceptance is kept / asked: of the tokens that the draft was asked for, the share
    it kept. Tokens after a rejection were never asked for, so it is not accepted / proposed.
    """

    name: str
    num_prompts: Count
    num_tokens: Count
    baseline_conditional_acceptance: Share | None
    candidate_conditional_acceptance: Share | None
    # Baseline minus candidate, conversations resampled; None under MIN_PROMPTS of them.
    conditional_acceptance_loss: Interval | None = None
    # What both ratios are made of, so that prompts can be resampled: one number for each of
    # `prompts`, which stand in `Evaluation.prompts` at these indices. Empty in older records.
    prompts: tuple[Count, ...] = ()
    baseline_asked: tuple[Amount, ...] = ()
    baseline_kept: tuple[Amount, ...] = ()
    candidate_asked: tuple[Amount, ...] = ()
    candidate_kept: tuple[Amount, ...] = ()

    def of(self, arm: Arm) -> ArmSlice:
        """Return one arm's numbers."""
        if arm == "baseline":
            return ArmSlice(
                self.baseline_conditional_acceptance, self.baseline_asked, self.baseline_kept
            )
        return ArmSlice(
            self.candidate_conditional_acceptance, self.candidate_asked, self.candidate_kept
        )


@dataclass(frozen=True, slots=True)
class AcceptanceComparison:
    """Baseline and candidate on the same tokens, at one k. Intervals resample conversations.

    A prompt of no conversation is one of its own.
    """

    num_speculative_tokens: K
    baseline: AcceptanceCounts
    candidate: AcceptanceCounts
    baseline_rate: Interval
    candidate_rate: Interval
    acceptance_rate_loss: Interval  # baseline minus candidate, absolute: positive = worse
    baseline_length: Interval
    candidate_length: Interval
    length_ratio: Interval  # candidate / baseline: under 1 = worse
    # Of the share of rounds that kept each position, (num_speculative_tokens,); () unknown.
    acceptance_loss_per_pos: tuple[Interval, ...] = ()

    def of(self, arm: Arm) -> ArmAcceptance:
        """Return one arm's numbers."""
        if arm == "baseline":
            return ArmAcceptance(self.baseline, self.baseline_rate, self.baseline_length)
        return ArmAcceptance(self.candidate, self.candidate_rate, self.candidate_length)


@dataclass(frozen=True, slots=True)
class PromptReplay:
    """One prompt's replayed rounds, for every k of `Evaluation.num_speculative_tokens`, per arm."""

    prompt_id: str
    domain: str
    num_prompt_tokens: Count
    num_tokens: Count
    baseline_num_drafts: tuple[Amount, ...]
    candidate_num_drafts: tuple[Amount, ...]
    baseline_num_accepted: tuple[Amount, ...]
    candidate_num_accepted: tuple[Amount, ...]
    conversation: str | None = None  # resampled as a whole; None: the prompt stands alone

    def of(self, arm: Arm) -> ArmReplay:
        """Return one arm's numbers."""
        if arm == "baseline":
            return ArmReplay(self.baseline_num_drafts, self.baseline_num_accepted)
        return ArmReplay(self.candidate_num_drafts, self.candidate_num_accepted)

    def extra_rounds(self, at: int) -> float:
        """Return the candidate's rounds minus the baseline's at the k of that index."""
        return self.candidate_num_drafts[at] - self.baseline_num_drafts[at]


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A prompt on which the candidate lost much, token by token: for reading, not for counting.

    A keep is the probability that the token came from the draft, given that it was asked for.
    """

    prompt_id: str
    domain: str
    prompt_end: str  # the last characters of the prompt
    tokens: tuple[str, ...]  # of the response, as text; the first comes from the prefill
    baseline_keep: tuple[Share, ...]  # (tokens,)
    candidate_keep: tuple[Share, ...]
    num_tokens_left_out: Count = 0  # of a long response

    def keep(self, arm: Arm) -> tuple[float, ...]:
        """Return one arm's probabilities, (tokens,)."""
        return self.baseline_keep if arm == "baseline" else self.candidate_keep
