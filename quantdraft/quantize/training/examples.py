"""What is trained on: token ids of conversations, and the order in which updates see them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from quantdraft.errors import TrafficError
from quantdraft.traffic.responses import Response


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and the target's response; the token at place t + 1 is predicted at place t."""

    token_ids: tuple[int, ...]
    num_prompt_tokens: int

    @property
    def num_rows(self) -> int:
        """How many predictions it has."""
        return len(self.token_ids) - 1

    @property
    def first_response_row(self) -> int:
        """The place that predicts the first response token; `num_rows` where all were cut off."""
        return min(self.num_prompt_tokens - 1, self.num_rows)


def make_examples(responses: Sequence[Response], max_length: int) -> tuple[Example, ...]:
    """Return the responses with their prompts, each cut after `max_length` tokens.

    Raises TrafficError where no example is left with a prediction.
    """
    cut = (
        Example(
            (*each.prompt_token_ids, *each.response_token_ids)[:max_length],
            len(each.prompt_token_ids),
        )
        for each in responses
    )
    examples = tuple(each for each in cut if each.num_rows > 0)
    if not examples:
        raise TrafficError("there is no response to train on: each has fewer than 2 tokens.")
    return examples


@dataclass(frozen=True, slots=True)
class ExampleOrder:
    """The order of examples, a function of the seed alone: each epoch has all, shuffled anew."""

    examples: Sequence[Example]
    seed: int

    def step_from(self, first: int, num_tokens: int) -> list[int]:
        """Return the examples of the update that begins with the `first` of all: their indices.

        num_tokens: of an update; the example that reaches them is its last
        """
        chosen: list[int] = []
        total = 0
        while total < num_tokens:
            epoch, place = divmod(first + len(chosen), len(self.examples))
            chosen.append(_shuffled(len(self.examples), self.seed, epoch)[place])
            total += len(self.examples[chosen[-1]].token_ids)
        return chosen


@lru_cache(maxsize=4)
def _shuffled(number: int, seed: int, epoch: int) -> tuple[int, ...]:
    places = list(range(number))
    random.Random(f"{seed} {epoch}").shuffle(places)
    return tuple(places)


def passes(examples: Sequence[Example], chosen: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Yield the examples of an update in passes of similar length, at most `limit` tokens each.

    Padding counts; an example that is longer than the limit has a pass of its own.
    """
    some: list[int] = []
    for index in sorted(chosen, key=lambda index: (len(examples[index].token_ids), index)):
        if some and (len(some) + 1) * len(examples[index].token_ids) > limit:
            yield some
            some = []
        some.append(index)
    if some:
        yield some
