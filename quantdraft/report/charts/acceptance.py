"""Charts of acceptance: per position, as paired losses with intervals, and prompt by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from random import Random

from quantdraft.record import AcceptanceCounts, Interval, PromptReplay
from quantdraft.record.wording import count, length, percent, valued
from quantdraft.report.blocks import Chart, Table
from quantdraft.report.charts.style import LIGHT, NUM_TICKS, arm_scale, ends, finish, inline, level
from quantdraft.report.safety import shown_text

MAX_POINTS = 2000  # of one chart: more take a browser seconds, and cover each other


def position_chart(
    baseline: AcceptanceCounts, candidate: AcceptanceCounts, k: int, data: Table
) -> Chart:
    """Return the share of rounds that kept each position, both arms. data: the same in numbers."""
    import altair as alt

    rows = [
        {"position": str(at), "arm": arm, "value": kept, "shown": percent(kept)}
        for arm, counts in (("baseline", baseline), ("candidate", candidate))
        for at, kept in enumerate(counts.acceptance_rate_per_pos if counts.num_drafts else (), 1)
    ]
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("position:O", title="position in the round", axis=alt.Axis(labelAngle=0)),
        xOffset=alt.XOffset("arm:N", sort=None),
        y=alt.Y(
            "value:Q",
            title="kept, share of rounds",
            axis=alt.Axis(format=".0%", tickCount=5),
            scale=alt.Scale(domain=[0, 1]),
        ),
        tooltip=[
            alt.Tooltip("arm:N", title="draft"),
            alt.Tooltip("position:O", title="position"),
            alt.Tooltip("shown:N", title="kept"),
        ],
    )
    bars = base.mark_bar(cornerRadiusEnd=2).encode(
        color=alt.Color("arm:N", scale=arm_scale(), legend=alt.Legend(title=None))
    )
    return Chart(
        name="acceptance-per-position",
        title="Kept per position",
        description=f"Share of rounds in which the position was accepted, k = {k}.",
        spec=finish(bars, height=240),
        data=data,
    )


@dataclass(frozen=True, slots=True)
class PartLoss:
    """What the candidate lost in one part of the traffic, as a paired difference."""

    part: str
    loss: Interval
    baseline: float  # kept
    candidate: float


def loss_chart(name: str, title: str, description: str, parts: Sequence[PartLoss]) -> Chart:
    """Return the paired losses in points, one row a part. Right of 0 the candidate is worse."""
    import altair as alt

    rows = [
        {
            "part": each.part,
            **ends(each.loss, 100),
            "shown": valued(each.loss, "loss"),
            "arms": f"{percent(each.baseline)} → {percent(each.candidate)}",
        }
        for each in parts
    ]
    base = alt.Chart(inline(rows)).encode(
        y=alt.Y(
            "part:N",
            sort=None,
            title=name,
            axis=alt.Axis(ticks=False, titleAngle=-90, titlePadding=10),
        ),
        tooltip=[
            alt.Tooltip("part:N", title=name),
            alt.Tooltip("shown:N", title="loss"),
            alt.Tooltip("arms:N", title="baseline → candidate"),
        ],
    )
    x_title = "points lost (right: candidate worse)"
    x = alt.X("low:Q", title=x_title, axis=alt.Axis(tickCount=NUM_TICKS))
    whisker = base.mark_rule(strokeWidth=2.5, color=LIGHT["candidate"]).encode(x=x, x2="high:Q")
    dot = base.mark_point(filled=True, size=80, color=LIGHT["candidate"], opacity=1).encode(
        x=alt.X("value:Q", title=x_title)
    )
    drawn = alt.layer(level(0.0, "no loss", axis="x"), whisker, dot)
    return Chart(
        name=f"loss-by-{name}",
        title=title,
        description=description,
        spec=finish(drawn, height=30 * max(len(rows), 2)),
        data=Table(
            (name, "Baseline → candidate", "Lost"),
            tuple((str(r["part"]), str(r["arms"]), str(r["shown"])) for r in rows),
            frozenset({1, 2}),
        ),
    )


@dataclass(frozen=True, slots=True)
class _PromptMark:
    """One prompt: its tokens a round under both arms, and both as words."""

    prompt: str
    domain: str
    baseline: float
    candidate: float
    shown: str
    rounds: str


def prompts_chart(replayed: Sequence[PromptReplay], at: int, k: int) -> Chart:
    """Return tokens a round of every prompt, both arms; a menu shows one domain.

    at: the place of k in the counts of a prompt. Under the diagonal the candidate is worse.
    """
    import altair as alt

    prompts = [prompt for prompt in replayed if prompt.num_tokens > 0]
    is_all = len(prompts) <= MAX_POINTS
    shown = prompts if is_all else Random(0).sample(prompts, MAX_POINTS)
    marks = [_prompt_mark(prompt, at) for prompt in shown]
    domains = sorted({shown_text(prompt.domain, 120) for prompt in shown})
    menu = alt.binding_select(
        options=[None, *domains], labels=["all domains", *domains], name="Domain: "
    )
    chosen = alt.selection_point(name="domain", fields=["domain"], bind=menu)
    titles = "tokens a round, baseline", "tokens a round, candidate"
    scale = alt.Scale(zero=False, padding=8)
    taus = [tau for mark in marks for tau in (mark.baseline, mark.candidate)]
    low, high = min(taus), max(taus)
    equal = (
        alt.Chart(inline([{"a": low, "b": low}, {"a": high, "b": high}]))
        .mark_line(color=LIGHT["quiet"], strokeDash=[4, 3], strokeWidth=1)
        .encode(x=alt.X("a:Q", title=titles[0]), y=alt.Y("b:Q", title=titles[1]))
    )
    dots = (
        alt.Chart(inline(map(asdict, marks)))
        .mark_point(filled=True, size=70, color=LIGHT["candidate"])
        .encode(
            x=alt.X("baseline:Q", title=titles[0], scale=scale),
            y=alt.Y("candidate:Q", title=titles[1], scale=scale),
            opacity=alt.condition(chosen, alt.value(0.75), alt.value(0.06)),
            tooltip=[
                alt.Tooltip("prompt:N", title="prompt"),
                alt.Tooltip("domain:N", title="domain"),
                alt.Tooltip("shown:N", title="tokens a round"),
                alt.Tooltip("rounds:N", title="rounds"),
            ],
        )
    )
    part = f"{MAX_POINTS:,} of {len(prompts):,} prompts, by chance"
    return Chart(
        name="prompts",
        title="Every prompt" if is_all else part,
        description=f"Tokens a round at k = {k}; below the line the candidate is worse."
        + ("" if is_all else " The prompts were drawn by chance."),
        spec=finish(alt.layer(equal, dots.add_params(chosen)), height=280),
        data=Table(
            ("Prompt", "Domain", "Tokens a round, baseline → candidate"),
            tuple((mark.prompt, mark.domain, mark.shown) for mark in marks),
            frozenset({2}),
        ),
    )


def _prompt_mark(prompt: PromptReplay, at: int) -> _PromptMark:
    before, after = prompt.baseline_num_drafts[at], prompt.candidate_num_drafts[at]
    taus = prompt.num_tokens / before, prompt.num_tokens / after
    return _PromptMark(
        prompt=prompt.prompt_id,
        domain=prompt.domain,
        baseline=taus[0],
        candidate=taus[1],
        shown=f"{length(taus[0])} → {length(taus[1])}",
        rounds=f"{count(before)} → {count(after)}",
    )
