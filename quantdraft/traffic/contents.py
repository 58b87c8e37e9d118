"""What a file of traffic, prompts or lengths holds: counts and lengths.

Lengths are tokens where the file has token ids or a tokenizer is given, else characters.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantdraft.traffic.ledger import Reading

Kind = Literal["traffic", "prompts", "lengths"]
Unit = Literal["tokens", "characters"]
QUANTILES = {"least": 0.0, "10 %": 0.1, "median": 0.5, "90 %": 0.9, "99 %": 0.99, "largest": 1.0}
TRAITS = ("model", "finish reason", "tools", "decoding")
LOAD_POINTS = (1 / 6, 1 / 2, 5 / 6)  # the middles of three thirds


class Lengths(NamedTuple):
    """Numbers of tokens or of characters: (n,) int64."""

    unit: Unit
    values: NDArray[np.int64]

    @property
    def quantiles(self) -> dict[str, int]:
        """Lengths that occur, by the names of QUANTILES."""
        found = np.quantile(self.values, list(QUANTILES.values()), method="inverted_cdf")
        return dict(zip(QUANTILES, map(int, found), strict=True))

    def histogram(self) -> dict[int, int]:
        """Return counts by the lower end of their bin: 0, 1, 2, 4, 8, …"""
        bins = [0 if value < 1 else 1 << (int(value).bit_length() - 1) for value in self.values]
        return dict(sorted(Counter(bins).items()))


class LoadPoint(NamedTuple):
    """A context that stands for a part of all decoded tokens."""

    context_length: int
    weight: float


@dataclass(slots=True)
class Contents:
    """What a file holds. Counts are of responses; of a file of prompts, of prompts."""

    path: Path
    kind: Kind
    reading: Reading
    sha256: str
    num_items: int = 0
    num_repeats: int = 0  # of those, that equal another in prompt and answer
    header: dict[str, Any] = field(default_factory=dict)  # of `capture`; {}: a log
    conversations: Counter[str] = field(default_factory=Counter)  # with the number of their items
    counts: dict[str, Counter[str]] = field(default_factory=dict)  # by "domain", "model", …
    lengths: dict[str, list[Lengths]] = field(default_factory=dict)  # of "prompt" and "response"
    load: tuple[LoadPoint, ...] = ()

    def as_record(self) -> dict[str, Any]:
        """Return it as JSON values."""
        largest = max(self.conversations.values(), default=0)
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "kind": self.kind,
            "reading": self.reading.as_record(),
            "captured": {k: self.header[k] for k in ("target", "sampling") if k in self.header},
            "num_responses" if self.kind == "traffic" else "num_lines": self.num_items,
            "num_conversations": len(self.conversations),
            "largest_conversation": largest,
            "num_repeats": self.num_repeats,
            "counts": {name: dict(each.most_common()) for name, each in self.counts.items()},
            "lengths": {
                name: {
                    each.unit: {
                        "count": len(each.values),
                        "total": int(each.values.sum()),
                        "quantiles": each.quantiles,
                        "histogram": {str(low): n for low, n in each.histogram().items()},
                    }
                    for each in found
                }
                for name, found in self.lengths.items()
            },
            "load": [point._asdict() for point in self.load],
        }


def load_points(prompt: NDArray[np.int64], response: NDArray[np.int64]) -> tuple[LoadPoint, ...]:
    """Return the contexts that decoded tokens have, as the middles of three equal parts of them.

    A request decodes `response` tokens, at contexts from `prompt` to prompt + response: it counts
    once for each of them, at the middle.
    """
    if not len(response) or not response.sum():
        return ()
    contexts = prompt + response // 2
    order = np.argsort(contexts, kind="stable")
    passed = np.cumsum(response[order]) / response.sum()
    places = [min(int(np.searchsorted(passed, part)), len(order) - 1) for part in LOAD_POINTS]
    counts = Counter(max(1, int(contexts[order[place]])) for place in places)
    return tuple(LoadPoint(context, n / len(LOAD_POINTS)) for context, n in sorted(counts.items()))
