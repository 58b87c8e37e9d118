"""Acceptance by k and by domain in a few lines: what a run without times has to say."""

from __future__ import annotations

from quantdraft.record import ARMS, Evaluation
from quantdraft.record.wording import count, length, percent, valued
from quantdraft.report.blocks import Table
from quantdraft.report.sections.acceptance import slice_table

COLUMNS = (1, 2, 3, 4, 6, 8, 12, 16)  # the k that a terminal has room for
DOMAINS = 8


def acceptance_tables(evaluation: Evaluation) -> tuple[Table, ...]:
    """Return the rates and lengths of both arms by k, and what each domain keeps."""
    shown = [row for row in evaluation.acceptance if row.num_speculative_tokens in COLUMNS]
    shown = shown or list(evaluation.acceptance)
    names = {"baseline": "baseline", "candidate": evaluation.name}
    rows = [
        *(
            (f"accepted / proposed, {names[arm]}", *(percent(e.of(arm).rate.value) for e in shown))
            for arm in ARMS
        ),
        *(
            (f"tokens a round, {names[arm]}", *(length(e.of(arm).length.value) for e in shown))
            for arm in ARMS
        ),
        ("lost, points", *(valued(e.acceptance_rate_loss, "loss").split()[0] for e in shown)),
    ]
    titles = ("k", *(str(each.num_speculative_tokens) for each in shown))
    by_k = Table(titles, tuple(rows), frozenset(range(1, len(titles))))
    if len(evaluation.by_domain) < 2:
        return (by_k,)
    parts = sorted(evaluation.by_domain, key=lambda part: -part.num_tokens)
    by_domain = slice_table("Domain", tuple(parts[:DOMAINS]), evaluation.known_slices_k)
    more = len(parts) - DOMAINS
    if more > 0:
        rest = f" {count(more)} smaller domains are on the page."
        by_domain = Table(
            by_domain.columns, by_domain.rows, by_domain.numeric, caption=by_domain.caption + rest
        )
    return (by_k, by_domain)
