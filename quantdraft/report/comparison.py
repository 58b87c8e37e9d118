"""Several evaluations side by side: which recipe, on the same traffic, against the same target."""

from __future__ import annotations

from collections.abc import Sequence

from quantdraft.record import ComparedRuns, Comparison, Evaluation
from quantdraft.record.wording import counted, interval, times
from quantdraft.report.blocks import Banner, Block, Bullets, Document, Notice, Paragraph, Section
from quantdraft.report.charts.recipes import forest_chart, lengths_chart, pareto_chart
from quantdraft.report.charts.style import unchecked
from quantdraft.report.glossary import words_section
from quantdraft.report.sections.headline import sentence, subtitle
from quantdraft.report.sections.plane import plane_chart
from quantdraft.report.sections.recipes import (
    acceptance_table,
    length_table,
    pairs_table,
    speed_table,
)


@unchecked
def comparison_document(compared: ComparedRuns) -> Document:
    """Return the page of several recipes: one row each, fastest first."""
    ordered, together = compared
    k = together.num_speculative_tokens
    return Document(
        title=_title(ordered),
        subtitle=subtitle(ordered[0]),
        banner=_banner(together),
        lead=(
            *_obstacles(ordered),
            *_conditions_differ(ordered),
            forest_chart(ordered),
            speed_table(ordered),
        ),
        sections=(
            _pareto_section(ordered, together),
            Section("Recipes", (acceptance_table(ordered, k),)),
            *_pairs_section(together),
            *_plane_section(ordered),
            Section("Tokens a round by k", (lengths_chart(ordered), length_table(ordered))),
            Section("Verdicts", (Bullets(tuple(_verdict(e) for e in ordered)),)),
            words_section(),
        ),
        footer="Every number comes from the runs' evaluation.json.",
    )


def _title(ordered: Sequence[Evaluation]) -> str:
    """Return the title; the control is no recipe and is named beside them."""
    num_recipes = sum(not evaluation.verdict.is_control for evaluation in ordered)
    beside = " and the control" if num_recipes < len(ordered) else ""
    return f"{counted(num_recipes, 'recipe')}{beside} side by side"


def _banner(compared: Comparison) -> Banner:
    """Return the recommended recipe: the fastest with a go. The control is not counted."""
    recipes = compared.recipes
    if not recipes:
        return Banner("NONE", "Only the control was evaluated: there is no recipe.", "doubt")
    counts = ", ".join(
        f"{sum(run.decision == decision for run in recipes)} {decision}"
        for decision in ("go", "no-go", "inconclusive")
    )
    best = next((run for run in recipes if run.name == compared.recommended), None)
    if best is None:
        is_settled = all(run.decision == "no-go" for run in recipes)
        until = "" if is_settled else " until a doubt is settled"
        why = f"No recipe earns a go ({counts}). Serve the full-precision draft{until}."
        return Banner("NONE", why, "bad" if is_settled else "doubt", "0", f"of {len(recipes)} go")
    speed = best.speedup_over_baseline
    return Banner(
        best.name,
        f"Recommended: the fastest of the recipes with a go ({counts}). {_rivals(compared)}",
        "good",
        times(speed.value if speed else None),
        f"of the baseline draft's speed; 95 % interval {interval(speed, 'speedup')}",
    )


def _rivals(compared: Comparison) -> str:
    """Return whether other recipes with a go can be told apart from the recommended one."""
    if compared.rivals:
        return f"These cannot be told apart from it: {', '.join(compared.rivals)}."
    has_others = sum(run.decision == "go" for run in compared.recipes) > 1
    return "No other go is as fast." if has_others else "It is the only one."


def _obstacles(ordered: Sequence[Evaluation]) -> tuple[Block, ...]:
    """Return what keeps each recipe from a go; nothing where one has a go."""
    if any(evaluation.verdict.decision == "go" for evaluation in ordered):
        return ()
    lines = tuple(
        f"{evaluation.name}: {evaluation.known_analysis.obstacle}"
        for evaluation in ordered
        if not evaluation.verdict.is_control and evaluation.known_analysis.obstacle
    )
    return (Notice("What keeps each recipe from a go here", lines, "doubt"),) if lines else ()


def _pareto_section(ordered: Sequence[Evaluation], compared: Comparison) -> Section:
    chart = pareto_chart(compared)
    missing = [e.name for e in ordered if e.operating_point.candidate_draft_step_ms is None]
    blocks: list[Block] = [] if chart is None else [chart]
    if missing:
        blocks.append(
            Paragraph(
                f"Not in the picture, because their draft step is undefined: {', '.join(missing)}."
            )
        )
    return Section("Acceptance against draft latency", tuple(blocks))


def _pairs_section(compared: Comparison) -> tuple[Section, ...]:
    if not compared.pairs:
        return ()
    return (Section("Which recipes really differ", (pairs_table(compared),)),)


def _plane_section(ordered: Sequence[Evaluation]) -> tuple[Section, ...]:
    chart = plane_chart(ordered)
    return () if chart is None else (Section("Break-even", (chart,)),)


def _conditions_differ(evaluations: Sequence[Evaluation]) -> tuple[Block, ...]:
    """Return a notice where the runs were timed on different machines or batches."""
    found = [
        f"{each.engine} on {each.device}, batch {each.batch_size}, context {each.context_length}"
        for each in (evaluation.latency for evaluation in evaluations)
    ]
    if len(set(found)) == 1:
        return ()
    rows = tuple(f"{e.name}: {words}" for e, words in zip(evaluations, found, strict=True))
    return (Notice("Timed under different conditions: read across rows with care", rows, "doubt"),)


def _verdict(evaluation: Evaluation) -> str:
    verdict = evaluation.verdict
    alarms = "".join(f" Alarm {alarm.code}: {alarm.message}" for alarm in verdict.alarms)
    settle = f" To settle it: {verdict.to_settle}." if verdict.to_settle else ""
    return f"{evaluation.name}: {verdict.decision}. {sentence(verdict)}{alarms}{settle}"
