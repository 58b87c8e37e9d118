"""Step times as pictures, for the pages of a bench."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantdraft.record import Latency
from quantdraft.record.wording import bare_ms, times, valued
from quantdraft.report.blocks import Block, Chart, Table
from quantdraft.report.charts.steps import draft_steps, target_steps

TARGET = "target"


def draft_chart(points: Sequence[Latency]) -> tuple[Block, ...]:
    """Every draft's step against the baseline's; empty where there is no ratio."""
    rows = [row for point in points for row in _draft_rows(point, len(points) > 1)]
    if not rows:
        return ()
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    return (
        Chart(
            name="draft-steps",
            title="Draft steps against the baseline's",
            description="Baseline over arm with 95 % interval, right of 1: faster. Diamond: the "
            "ratio of the bytes, which is the limit where memory alone decides.",
            spec=draft_steps(rows, arms),
            data=Table(
                ("Arm", "Measured", "Ratio of the bytes"),
                tuple((row["name"], row["shown"], row["shown_limit"]) for row in rows),
                frozenset({1, 2}),
            ),
        ),
    )


def _draft_rows(point: Latency, is_one_of_many: bool) -> list[dict[str, Any]]:
    rows = []
    for arm in point.arms:
        figures = None if arm in (TARGET, "baseline") else point.figures(arm)
        if figures is not None and figures.ratio is not None:
            rows.append(
                {
                    "name": f"{arm} at {place(point)}" if is_one_of_many else arm,
                    "arm": arm,
                    "value": figures.ratio.value,
                    "low": figures.ratio.low,
                    "high": figures.ratio.high,
                    "limit": figures.byte_ratio,
                    "shown": valued(figures.ratio, "ratio"),
                    "shown_limit": times(figures.byte_ratio),
                }
            )
    return rows


def target_chart(points: Sequence[Latency]) -> tuple[Block, ...]:
    """The target's pass by its new tokens; empty where fewer than two widths were timed."""
    rows = [row for point in points for row in _target_rows(point)]
    if not rows:
        return ()
    return (
        Chart(
            name="target-steps",
            title="What more tokens cost the target",
            description="One target pass over m new tokens, over one of a single token. Flat is "
            "what speculation lives on.",
            spec=target_steps(rows, list(dict.fromkeys(row["place"] for row in rows))),
            data=Table(
                ("Batch × context", "m", "Target pass"),
                tuple((row["place"], str(row["m"]), row["shown"]) for row in rows),
                frozenset({1, 2}),
            ),
        ),
    )


def _target_rows(point: Latency) -> list[dict[str, Any]]:
    steps = point.arms[TARGET].steps if TARGET in point.arms else {}
    medians = {width: step.median_ms for width, step in steps.items()}
    known = {width: ms for width, ms in medians.items() if ms is not None}
    if 1 not in known or len(known) < 2:
        return []
    return [
        {
            "place": place(point),
            "m": width,
            "value": ms / known[1],
            "shown": f"{bare_ms(ms)} ms ({times(ms / known[1])})",
        }
        for width, ms in sorted(known.items())
    ]


def place(point: Latency) -> str:
    """Batch and context in short: "4 × 512"."""
    return f"{point.batch_size} × {point.context_length}"
