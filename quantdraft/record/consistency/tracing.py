"""What must hold in the figures of a trace."""

from __future__ import annotations

from collections.abc import Iterator

from quantdraft.record.consistency.rules import Problem
from quantdraft.record.trace import TraceFigures

SLACK = 1e-3  # of the sum of tokens, which are parts of spans of time


def check_trace(trace: TraceFigures, ks: tuple[int, ...]) -> Iterator[Problem]:
    """Yield tokens that do not add up, points that stand twice, and k that were not replayed."""
    places = [(cell.batch_size, cell.context_length) for cell in trace.cells]
    if len(set(places)) < len(places):
        yield "trace.cells", "a batch and context stands there twice"
    found = sum(cell.num_tokens for cell in trace.cells) + trace.num_uncovered_tokens
    if found and abs(found - trace.num_tokens) > SLACK * trace.num_tokens:
        yield "trace.cells", f"they hold {found:g} tokens, and the trace {trace.num_tokens}"
    if trace.speed is None:
        if not trace.reason:
            yield "trace.reason", "it is empty, and there is no speed"
        return
    for arm in ("baseline", "candidate"):
        k = getattr(trace.speed, f"{arm}_num_speculative_tokens")
        if k not in ks:
            yield f"trace.speed.{arm}_num_speculative_tokens", f"{k} is none of {list(ks)}"
