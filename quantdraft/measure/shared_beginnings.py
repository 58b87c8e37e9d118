"""Texts of a replay that begin alike: which lie inside another one, and what is read once for many.

A conversation's answer and all before it begin the text of its next answer: one pass over the last
text has the logits of every answer. Texts that part after a common beginning (a system prompt, a
history that the template writes anew) form a tree, whose branches are read once each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

from quantdraft.traffic.responses import Response
from quantdraft.traffic.traffic import token_counts

# Tokens: beginnings are shared in whole blocks, and none is looked for in a shorter text.
BLOCK = 32
# Branches inside branches: each may hold a copy of its beginning's keys and values.
MAX_NESTED = 16
Hashes = NDArray[np.uint64]


@dataclass(slots=True)
class Branch:
    """Texts that begin with the same tokens."""

    num_shared: int = 0  # tokens
    texts: list[int] = field(default_factory=list)  # responses whose texts go on in their own ways
    branches: list[Branch] = field(default_factory=list)  # those that share more of their beginning

    def all_texts(self) -> Iterator[int]:
        """Yield the texts of this branch and of those that leave it."""
        yield from self.texts
        for branch in self.branches:
            yield from branch.all_texts()


class SharedBeginnings:
    """How the texts of some responses are read: each token once, as far as that pays.

    A text is what a pass reads of a prompt and its response: see `tokens_read`.
    """

    def __init__(self, responses: Sequence[Response]) -> None:
        self._responses = responses
        counts = token_counts(responses)
        self.lengths: list[int] = (counts.prompt + counts.response - 1).tolist()
        self._first: list[int] = (counts.prompt - 1).tolist()  # place that predicts an answer
        self._inside: dict[int, list[int]] = {}
        # Of each text the hashes of its prompt's first blocks, and that of the whole.
        self._blocks, self._whole = self._read_hashes()
        self._hold_shorter()

    def inside(self, text: int) -> Sequence[int]:
        """Return the responses whose tokens a pass over a text predicts, its own among them."""
        return self._inside.get(text, (text,))

    def first(self, text: int) -> int:
        """Return the first place of a text whose logits are asked for."""
        return min(self._first[response] for response in self.inside(text))

    def tree(self, least_saved: int | None) -> Branch:
        """Return the texts that are read, none of which lies inside another, and what they share.

        least_saved: tokens that a branch must save; None: nothing is read over a common beginning
        """
        held = {each for some in self._inside.values() for each in some} - self._inside.keys()
        texts = [text for text in range(len(self.lengths)) if text not in held]
        if least_saved is None:
            return Branch(texts=texts)
        for text in texts:
            self._blocks[text] = self._blocks[text][: self.first(text) // BLOCK]
        root = Branch()
        _join(root, self._branch(texts, 0, least_saved, MAX_NESTED), least_saved)
        return root

    def _branch(self, texts: list[int], depth: int, least_saved: int, num_levels: int) -> Branch:
        """Return the branch of texts that share `depth` blocks or more."""
        groups = self._by_next_block(texts, depth)
        while len(texts) > 1 and len(groups) == 1 and None not in groups:
            depth += 1
            groups = self._by_next_block(texts, depth)
        branch = Branch(depth * BLOCK)
        for block, some in groups.items():
            if block is None or len(some) == 1 or num_levels == 1:
                branch.texts += some
            else:
                found = self._branch(some, depth + 1, least_saved, num_levels - 1)
                _join(branch, found, least_saved)
        return branch

    def _by_next_block(self, texts: list[int], depth: int) -> dict[int | None, list[int]]:
        """Group texts by the hash of one block more than `depth`; None: their prompt ends."""
        groups: dict[int | None, list[int]] = {}
        for text in texts:
            blocks = self._blocks[text]
            groups.setdefault(int(blocks[depth]) if depth < len(blocks) else None, []).append(text)
        return groups

    def _read_hashes(self) -> tuple[list[Hashes], list[int]]:
        blocks, whole = [], []
        for place, response in enumerate(self._responses):
            hashes = prefix_hashes(tokens_read(response))
            whole.append(int(hashes[-1]))
            # A copy: a view would hold the hash of every token.
            blocks.append(hashes[BLOCK - 1 : self._first[place] : BLOCK].copy())
        return blocks, whole

    def _hold_shorter(self) -> None:
        """Find the texts that lie inside a longer one, or equal another: the longest holds them."""
        openings = [self._opening(place) for place in range(len(self.lengths))]
        common = Counter(openings)
        alike = [text for text, opening in enumerate(openings) if opening and common[opening] > 1]
        by_hash: dict[tuple[int, int], list[int]] = {}
        for text in alike:
            by_hash.setdefault((self.lengths[text], self._whole[text]), []).append(text)
        ends = np.unique([self.lengths[text] for text in alike]).astype(np.int64)
        held: set[int] = set()
        for text in sorted(alike, key=lambda text: -self.lengths[text]):
            if text in held:
                continue
            tokens = tokens_read(self._responses[text])
            hashes, known = prefix_hashes(tokens), ends[ends <= len(tokens)]
            keys = zip(known.tolist(), hashes[known - 1].tolist(), strict=True)
            found = [each for key in keys for each in by_hash.get(key, ()) if each != text]
            inside = [each for each in found if each not in held and self._begins(each, tokens)]
            if inside:
                self._inside[text] = [*inside, text]
                held.update(inside)

    def _opening(self, text: int) -> int | None:
        """Return the hash of a text's first block, by which alike ones are found; None: shorter."""
        if self.lengths[text] < BLOCK:
            return None
        if len(self._blocks[text]):
            return int(self._blocks[text][0])
        return int(prefix_hashes(tokens_read(self._responses[text])[:BLOCK])[-1])

    def _begins(self, text: int, tokens: tuple[int, ...]) -> bool:
        return tokens[: self.lengths[text]] == tokens_read(self._responses[text])


def _join(branch: Branch, found: Branch, least_saved: int) -> None:
    """Let a branch leave another one where that pays; else its texts are read with the other's."""
    num_texts = sum(1 for _ in found.all_texts())
    if (found.num_shared - branch.num_shared) * (num_texts - 1) >= least_saved:
        branch.branches.append(found)
    else:
        branch.texts += found.texts
        branch.branches += found.branches


def prefix_hashes(tokens: Sequence[int]) -> Hashes:
    """Return a hash of each beginning, of one token and more: (tokens,) uint64.

    A sum over tokens, each scrambled and times an odd number of its place, modulo 2^64.
    """
    scrambled = _scrambled(np.asarray(tokens, np.uint64) + np.uint64(1))
    size = 1 << max(12, len(tokens).bit_length())
    hashes: Hashes = np.cumsum(scrambled * _weights(size)[: len(tokens)], dtype=np.uint64)
    return hashes


@cache
def _weights(size: int) -> Hashes:
    return _scrambled(np.arange(size, dtype=np.uint64) + np.uint64(2**33)) | np.uint64(1)


def _scrambled(numbers: Hashes) -> Hashes:
    """Return numbers with all their bits mixed: the finalizer of SplitMix64."""
    mixed = numbers * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: Hashes = mixed ^ (mixed >> np.uint64(31))
    return result


def tokens_read(response: Response) -> tuple[int, ...]:
    """Return the tokens that a pass reads: the last one predicts nothing that was emitted."""
    return response.prompt_token_ids + response.response_token_ids[:-1]
