"""What a log says of its requests beside the domain, as ways to part the tokens."""

from __future__ import annotations

from collections.abc import Sequence

from quantdraft.judge.comparison.slices import Cut, by_domain
from quantdraft.traffic.responses import Response

# A trait of `Response.traits`, and the name of the part whose responses do not have it.
WITHOUT = {
    "model": "not stated",
    "finish reason": "not stated",
    "tools": "without tools",
    "decoding": "plain",
}
UNSTATED = "not stated"


def trait_cuts(responses: Sequence[Response]) -> dict[str, Cut]:
    """Return a cut for every trait in which the responses differ, by its name.

    Where a log states one value alone, responses that state none are no part of their own.
    """
    traits = [dict(response.traits) for response in responses]
    found = {name: [each.get(name, other) for each in traits] for name, other in WITHOUT.items()}
    return {
        name: by_domain(values)
        for name, values in found.items()
        if len(set(values) - {UNSTATED}) > 1
    }
