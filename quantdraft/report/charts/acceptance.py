"""Charts of acceptance: per position, as paired losses with intervals, and prompt by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from quantdraft.record import ARMS, AcceptanceCounts, Interval, PromptReplay
from quantdraft.record.wording import count, length, percent, valued
from quantdraft.report.blocks import Chart, Table
from quantdraft.report.charts import style
from quantdraft.report.safety import shown_text

MAX_POINTS = 2000  # of one chart: more take a browser seconds, and cover each other


def position_chart(
    baseline: AcceptanceCounts, candidate: AcceptanceCounts, k: int, data: Table
) -> Chart:
    """Return the share of rounds that kept each position, both arms. data: the same in numbers."""
    alt = style.altair()

    rows = [
        {"position": str(at), "arm": arm, "value": kept, "shown": percent(kept)}
        for arm, counts in (("baseline", baseline), ("candidate", candidate))
        for at, kept in enumerate(counts.acceptance_rate_per_pos if counts.num_drafts else (), 1)
    ]
    base = alt.Chart(style.inline(rows)).encode(
        x=alt.X("position:O", title="position in the round", axis=alt.Axis(labelAngle=0)),
        xOffset=alt.XOffset("arm:N", sort=None),
        y=alt.Y(
            "value:Q",
            title="kept, share of rounds",
            axis=alt.Axis(format=".0%", tickCount=5),
            scale=alt.Scale(domain=[0, 1]),
        ),
        tooltip=style.tooltip({"arm:N": "draft", "position:O": "position", "shown:N": "kept"}),
    )
    bars = base.mark_bar(cornerRadiusEnd=2).encode(color=style.coloured("arm", style.arm_scale()))
    return Chart(
        name="acceptance-per-position",
        title="Kept per position",
        description=f"Share of rounds in which the position was accepted, k = {k}.",
        spec=style.finish(bars, height=240),
        data=data,
    )


@dataclass(frozen=True, slots=True)
class PartLoss:
    """What the candidate lost in one part of the traffic, as a paired difference."""

    part: str
    loss: Interval
    baseline: float | None  # kept
    candidate: float | None


def loss_chart(name: str, title: str, description: str, parts: Sequence[PartLoss]) -> Chart:
    """Return the paired losses in points, one row a part. Right of 0 the candidate is worse."""
    alt = style.altair()

    rows = [
        {
            "part": each.part,
            **style.ends(each.loss, 100),
            "shown": valued(each.loss, "loss"),
            "arms": f"{percent(each.baseline)} → {percent(each.candidate)}",
        }
        for each in parts
    ]
    base = alt.Chart(style.inline(rows)).encode(
        y=alt.Y(
            "part:N",
            sort=None,
            title=name,
            axis=alt.Axis(ticks=False, titleAngle=-90, titlePadding=10),
        ),
        tooltip=style.tooltip(
            {"part:N": name, "shown:N": "loss", "arms:N": "baseline → candidate"}
        ),
    )
    x_title = "points lost (right: candidate worse)"
    x = alt.X("low:Q", title=x_title, axis=alt.Axis(tickCount=style.NUM_TICKS))
    whisker = base.mark_rule(strokeWidth=2.5, color=style.LIGHT["candidate"]).encode(
        x=x, x2="high:Q"
    )
    dot = base.mark_point(filled=True, size=80, color=style.LIGHT["candidate"], opacity=1).encode(
        x=alt.X("value:Q", title=x_title)
    )
    drawn = alt.layer(style.level(0.0, "no loss", axis="x"), whisker, dot)
    return Chart(
        name=f"loss-by-{name}",
        title=title,
        description=description,
        spec=style.finish(drawn, height=30 * max(len(rows), 2)),
        data=style.rows_table(
            rows, {"part": name, "arms": "Baseline → candidate", "shown": "Lost"}, {1, 2}
        ),
    )


def prompts_chart(replayed: Sequence[PromptReplay], at: int, k: int) -> Chart:
    """Return tokens a round of every prompt, both arms; a menu shows one domain.

    at: the place of k in the counts of a prompt. Under the diagonal the candidate is worse.
    """
    alt = style.altair()

    prompts = [prompt for prompt in replayed if prompt.num_tokens > 0]
    is_all = len(prompts) <= MAX_POINTS
    shown = prompts if is_all else Random(0).sample(prompts, MAX_POINTS)
    rows = [_prompt_row(prompt, at) for prompt in shown]
    domains = sorted({shown_text(prompt.domain, 120) for prompt in shown})
    menu = alt.binding_select(
        options=[None, *domains], labels=["all domains", *domains], name="Domain: "
    )
    chosen = alt.selection_point(name="domain", fields=["domain"], bind=menu)
    titles = "tokens a round, baseline", "tokens a round, candidate"
    scale = alt.Scale(zero=False, padding=8)
    taus = [row[arm] for row in rows for arm in ARMS]
    low, high = min(taus), max(taus)
    equal = (
        alt.Chart(style.inline([{"a": low, "b": low}, {"a": high, "b": high}]))
        .mark_line(color=style.LIGHT["quiet"], strokeDash=[4, 3], strokeWidth=1)
        .encode(x=alt.X("a:Q", title=titles[0]), y=alt.Y("b:Q", title=titles[1]))
    )
    dots = (
        alt.Chart(style.inline(rows))
        .mark_point(filled=True, size=70, color=style.LIGHT["candidate"])
        .encode(
            x=alt.X("baseline:Q", title=titles[0], scale=scale),
            y=alt.Y("candidate:Q", title=titles[1], scale=scale),
            opacity=alt.condition(chosen, alt.value(0.75), alt.value(0.06)),
            tooltip=style.tooltip(
                {
                    "prompt:N": "prompt",
                    "domain:N": "domain",
                    "shown:N": "tokens a round",
                    "rounds:N": "rounds",
                }
            ),
        )
    )
    part = f"{MAX_POINTS:,} of {len(prompts):,} prompts, by chance"
    return Chart(
        name="prompts",
        title="Every prompt" if is_all else part,
        description=f"Tokens a round at k = {k}; below the line the candidate is worse."
        + ("" if is_all else " The prompts were drawn by chance."),
        spec=style.finish(alt.layer(equal, dots.add_params(chosen)), height=280),
        data=style.rows_table(
            rows,
            {
                "prompt": "Prompt",
                "domain": "Domain",
                "shown": "Tokens a round, baseline → candidate",
            },
            {2},
        ),
    )


def _prompt_row(prompt: PromptReplay, at: int) -> dict[str, Any]:
    """Return a prompt's tokens a round under both arms, and both as words."""
    before, after = prompt.baseline_num_drafts[at], prompt.candidate_num_drafts[at]
    taus = prompt.num_tokens / before, prompt.num_tokens / after
    return {
        "prompt": prompt.prompt_id,
        "domain": prompt.domain,
        "baseline": taus[0],
        "candidate": taus[1],
        "shown": f"{length(taus[0])} → {length(taus[1])}",
        "rounds": f"{count(before)} → {count(after)}",
    }
