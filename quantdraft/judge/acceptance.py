"""Rounds of speculative decoding from acceptance probabilities, for every k at once.

Speculative decoding emits the target's own text, so that text and the probability that each of
its tokens came from the draft are enough to know how many rounds any k would have needed. No model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from quantdraft.errors import OptionError, PairingError, UndefinedMetricError
from quantdraft.judge.conversations import Units, sum_units
from quantdraft.record import AcceptanceCounts

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
PROMPTS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Replayed:
    """Expected rounds of every prompt at every k. Prompts are kept apart so they can be resampled.

    Accepted tokens are only those of the text; an engine that stops at a length limit may count a
    few more in each prompt's last round.
    """

    prompt_ids: tuple[str, ...]
    ks: tuple[int, ...]  # num_speculative_tokens, the values that were replayed
    num_tokens: Ints  # (prompts,), response tokens emitted in rounds
    num_drafts: Floats  # (ks, prompts), expected rounds
    num_accepted_per_pos: tuple[Floats, ...]  # one for each of ks, (prompts, k)

    def row(self, k: int) -> int:
        """Return where k lies in `ks`; raises for a k that was not replayed."""
        if k not in self.ks:
            replayed = ", ".join(map(str, self.ks))
            raise OptionError(f"k = {k} was not replayed (only {replayed}). Add it to -k.")
        return self.ks.index(k)

    @property
    def has_rounds(self) -> NDArray[np.bool_]:
        """(prompts,): False where the response is too short for one; a resample needs some."""
        return self.num_tokens > 0

    def num_accepted(self, k: int) -> Floats:
        """Return the accepted draft tokens of every prompt at one k, (prompts,)."""
        return np.asarray(self.num_accepted_per_pos[self.row(k)].sum(axis=1))

    def counts(self, k: int) -> AcceptanceCounts:
        """Return the counters at one k, summed over all prompts."""
        row = self.row(k)
        return AcceptanceCounts(
            num_speculative_tokens=k,
            num_tokens=int(self.num_tokens.sum()),
            num_drafts=float(self.num_drafts[row].sum()),
            num_accepted_tokens_per_pos=tuple(self.num_accepted_per_pos[row].sum(axis=0).tolist()),
        )

    def without_positions(self) -> Replayed:
        """Return the same with all accepted tokens at the first position, in less memory."""
        sums = tuple(each.sum(axis=1, keepdims=True) for each in self.num_accepted_per_pos)
        return replace(self, num_accepted_per_pos=sums)

    def of_conversations(self, units: Units | None) -> Replayed:
        """Return one row for each conversation: what is resampled, with its turns' sums.

        units: the conversation of each prompt; None where every prompt stands alone
        """
        if units is None:
            return self
        _, first = np.unique(units, return_index=True)
        return Replayed(
            prompt_ids=tuple(self.prompt_ids[at] for at in first),
            ks=self.ks,
            num_tokens=sum_units(self.num_tokens, units).astype(np.int64),
            num_drafts=sum_units(self.num_drafts.T, units).T,
            num_accepted_per_pos=tuple(
                sum_units(each, units) for each in self.num_accepted_per_pos
            ),
        )

    def of_prompts(self, chosen: Sequence[int] | Ints) -> Replayed:
        """Return the prompts at these indices, which may repeat."""
        rows = np.asarray(chosen, np.int64)
        return Replayed(
            prompt_ids=tuple(self.prompt_ids[at] for at in rows),
            ks=self.ks,
            num_tokens=self.num_tokens[rows],
            num_drafts=self.num_drafts[:, rows],
            num_accepted_per_pos=tuple(each[rows] for each in self.num_accepted_per_pos),
        )


@dataclass(frozen=True, slots=True)
class TokenAcceptance:
    """What was asked and kept of every token of a response at one k, (num_response_tokens,) each.

    `kept` sums to the accepted tokens. kept / asked is the *conditional* acceptance of the tokens
    summed over, not the acceptance rate: proposals after a rejection are in neither.
    """

    asked: Floats  # probability that the draft's proposal for this token was looked at
    kept: Floats  # probability that this token came from the draft


def replay_rounds(
    prompt_ids: Sequence[str],
    probabilities: Sequence[NDArray[np.floating]],
    ks: Sequence[int],
    first_token_from_prefill: bool = True,
) -> Replayed:
    """Return the expected rounds and accepted tokens of every prompt at every k.

    probabilities: one array (num_response_tokens,) per prompt, the probability that a response
        token came from the draft, given that it was emitted and that the draft was asked for it
    ks: values of num_speculative_tokens, each at least 1
    first_token_from_prefill: True as serving engines count (the first response token belongs to
        no round); False as transformers' assisted generation does (its first round drafts it)

    Offset j of a round moves to j + 1 with that probability, else to 0; the bonus token at offset
    k always ends the round. Expected rounds are the expected visits to offset 0.
    """
    _check(prompt_ids, probabilities, ks)
    num_drafts = np.zeros((len(ks), len(probabilities)))
    accepted = tuple(np.zeros((len(probabilities), k)) for k in ks)
    start = int(first_token_from_prefill)
    for some, keep, num_active in _group_by_length(prompt_ids, probabilities, start):
        kept_sum = np.zeros((len(ks), max(ks), len(some)))
        drafts = np.zeros((len(ks), len(some)))
        for offsets, kept in _step_offsets(keep, num_active, ks):
            num_prompts = kept.shape[2]
            drafts[:, :num_prompts] += offsets[:, 0]
            kept_sum[:, :, :num_prompts] += kept
        num_drafts[:, some] = drafts
        for row, k in enumerate(ks):
            accepted[row][some] = kept_sum[row, :k].T
    lengths = np.array([len(each) for each in probabilities], dtype=np.int64)
    return Replayed(
        prompt_ids=tuple(prompt_ids),
        ks=tuple(ks),
        num_tokens=np.maximum(lengths - start, 0),
        num_drafts=num_drafts,
        num_accepted_per_pos=accepted,
    )


def rounds_between(
    prompt_ids: Sequence[str],
    probabilities: Sequence[NDArray[np.floating]],
    is_open: Sequence[NDArray[np.bool_]],
    k: int,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the fewest and the most rounds of every prompt, where some tokens may be kept or not.

    is_open: one array (num_response_tokens,) per prompt, the tokens that are not settled

    A token more that is kept never costs a round: a round that starts later never ends earlier. So
    all of them kept are the fewest rounds, and none of them the most.
    """
    low, high = (
        replay_rounds(
            prompt_ids,
            [np.where(at, value, own) for own, at in zip(probabilities, is_open, strict=True)],
            [k],
        ).num_drafts[0]
        for value in (1.0, 0.0)
    )
    return tuple(low.tolist()), tuple(high.tolist())


def token_acceptance(
    probabilities: Sequence[NDArray[np.floating]], k: int
) -> Iterator[tuple[int, TokenAcceptance]]:
    """Yield each response's index and what was asked and kept at its tokens, longest first.

    Arguments as above; equal lengths come in an equal order. The first token comes from the prefill
    and was never asked for: zero in both.
    """
    names = [str(index) for index in range(len(probabilities))]
    _check(names, probabilities, [k])
    for some, keep, num_active in _group_by_length(names, probabilities, 1):
        asked, kept_sum = np.zeros(keep.shape), np.zeros(keep.shape)
        for token, (offsets, kept) in enumerate(_step_offsets(keep, num_active, [k])):
            num_prompts = kept.shape[2]
            asked[token, :num_prompts] = offsets[0, :k].sum(axis=0)
            kept_sum[token, :num_prompts] = kept[0].sum(axis=0)
        for column, index in enumerate(some):
            length = len(probabilities[index])
            yield (
                int(index),
                TokenAcceptance(
                    _unpack(asked[:, column], length),
                    _unpack(kept_sum[:, column], length),
                ),
            )


def closed_form_length(alpha: float, k: int) -> float:
    """Return the mean acceptance length where every proposal is kept with probability alpha.

    (1 - alpha^(k+1)) / (1 - alpha), arXiv 2211.17192, equation 1; written as a sum, which also
    holds at alpha = 1.
    """
    return float(sum(alpha**j for j in range(k + 1)))


def alpha_from_length(length: float, k: int) -> float:
    """Return the independent acceptance per token that gives a mean acceptance length.

    It is not accepted / proposed: that rate is (length - 1) / k, see `rate_from_length`.
    """
    _check_length(length, k)
    low, high = 0.0, 1.0
    for _ in range(60):  # halves [0, 1] to the last bit of a double
        middle = (low + high) / 2
        low, high = (middle, high) if closed_form_length(middle, k) < length else (low, middle)
    return (low + high) / 2


def alpha_from_rate(rate: float, k: int) -> float:
    """Return the independent acceptance per token that gives an acceptance rate.

    A round of k proposals of which `rate` are accepted emits 1 + k * rate tokens.
    """
    return alpha_from_length(1 + k * rate, k)


def rate_from_length(length: float, k: int) -> float:
    """Return the acceptance rate at a mean acceptance length: (length - 1) / k.

    Every round emits its accepted tokens and one more, so this holds up to cut last rounds.
    """
    _check_length(length, k)
    return (length - 1) / k


def _check_length(length: float, k: int) -> None:
    if not 1.0 <= length <= k + 1:
        raise UndefinedMetricError(
            f"no acceptance rate gives a mean acceptance length of {length:.3f} at k = {k}: "
            f"it lies in [1, {k + 1}]."
        )


def _step_offsets(
    keep: Floats, num_active: Ints, ks: Sequence[int]
) -> Iterator[tuple[Floats, Floats]]:
    """Yield, token by token, the offset it has in its round and whether the draft's token is kept.

    keep: (tokens, prompts), prompts by falling length; num_active: (tokens,) prompts that long
    yields offsets (ks, max k + 1, active) and kept (ks, max k, active), probabilities; both are
    overwritten by the next step
    """
    num_prompts = keep.shape[1]
    offsets = np.zeros((len(ks), max(ks) + 1, num_prompts))
    offsets[:, 0] = 1.0
    kept = np.empty((len(ks), max(ks), num_prompts))
    # Offset k is the bonus token, which the draft is never asked for.
    bonus = [(row, k) for row, k in enumerate(ks) if k < max(ks)]
    for token, active in enumerate(num_active):
        now, new = offsets[:, :, :active], kept[:, :, :active]
        np.multiply(now[:, :-1], keep[token, :active], out=new)
        for row, k in bonus:
            new[row, k] = 0.0
        yield now, new
        now[:, 1:] = new
        np.subtract(1.0, new.sum(axis=1), out=now[:, 0])


def _group_by_length(
    names: Sequence[str], probabilities: Sequence[NDArray[np.floating]], start: int
) -> Iterator[tuple[Ints, Floats, Ints]]:
    """Yield groups of prompts of similar length: memory holds one, whatever the number of prompts.

    start: the first token that is in rounds
    yields the prompts' indices by falling length (group,), the probabilities of the tokens in
    rounds (tokens, group), and how many of the prompts have each token (tokens,)
    """
    order = np.argsort([-len(each) for each in probabilities], kind="stable")
    for first in range(0, len(order), PROMPTS_AT_ONCE):
        some = order[first : first + PROMPTS_AT_ONCE]
        lengths = np.array([max(len(probabilities[i]) - start, 0) for i in some], dtype=np.int64)
        keep = np.zeros((int(lengths.max()), len(some)))
        for column, (index, length) in enumerate(zip(some, lengths, strict=True)):
            inside = np.asarray(probabilities[index], np.float64)[start:]
            if not bool(np.all((inside >= 0.0) & (inside <= 1.0))):  # also catches NaN
                raise UndefinedMetricError(
                    f"prompt {names[index]!r}: an acceptance probability is not in [0, 1]. "
                    "The draft's logits may have overflowed; try --dtype float32."
                )
            keep[:length, column] = inside
        yield some, keep, (lengths[None, :] > np.arange(len(keep))[:, None]).sum(axis=1)


def _unpack(column: Floats, length: int) -> Floats:
    """Return one prompt's column with the indices of its response."""
    values = np.zeros(length)
    values[1:] = column[: max(length - 1, 0)]
    return values


def _check(
    prompt_ids: Sequence[str], probabilities: Sequence[NDArray[np.floating]], ks: Sequence[int]
) -> None:
    if len(prompt_ids) != len(probabilities):
        raise PairingError(
            f"{len(prompt_ids)} prompt ids but {len(probabilities)} arrays of tokens."
        )
    if not probabilities:
        raise UndefinedMetricError("acceptance is undefined: there is no response to replay.")
    if not ks or min(ks) < 1:
        raise OptionError(f"num_speculative_tokens must be at least 1, not {list(ks)}.")
