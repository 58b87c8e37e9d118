"""Several evaluations side by side: which recipe, on the same traffic, against the same target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from quantdraft.errors import OptionError, PairingError
from quantdraft.judge.comparison import Pair, all_pairs
from quantdraft.judge.verdict.checks import is_control
from quantdraft.record import Evaluation
from quantdraft.record.wording import counted, interval, times
from quantdraft.report.blocks import Banner, Block, Bullets, Document, Notice, Paragraph, Section
from quantdraft.report.charts.recipes import forest_chart, lengths_chart, pareto_chart
from quantdraft.report.glossary import words_section
from quantdraft.report.sections.headline import model_name, sentence
from quantdraft.report.sections.obstacles import obstacles_notice
from quantdraft.report.sections.plane import plane_chart
from quantdraft.report.sections.recipes import (
    acceptance_table,
    common_k,
    length_table,
    pairs_table,
    speed_table,
)


def comparison(evaluations: Sequence[Evaluation]) -> Document:
    """One row a recipe, fastest first; recipes without a speed come last.

    Raises PairingError when two runs differ in traffic, acceptance rule, target or baseline, and
    OptionError when there is no run.
    """
    if not evaluations:
        raise OptionError("there is no run to compare. Give at least one run directory.")
    require_same_question(evaluations)
    ordered = sorted(_with_own_names(evaluations), key=_speed_order)
    k = common_k(ordered)
    pairs = all_pairs(ordered, k)
    return Document(
        title=_title(ordered),
        subtitle=_subtitle(ordered[0]),
        banner=_banner(ordered, pairs),
        lead=(
            *obstacles_notice(ordered),
            *_conditions_differ(ordered),
            forest_chart(ordered),
            speed_table(ordered),
        ),
        sections=(
            _pareto_section(ordered, k),
            Section("Recipes", (acceptance_table(ordered, k),)),
            *_pairs_section(pairs, k),
            *_plane_section(ordered),
            Section("Tokens a round by k", (lengths_chart(ordered), length_table(ordered))),
            Section("Verdicts", (Bullets(tuple(_verdict(e) for e in ordered)),)),
            words_section(),
        ),
        footer="Every number comes from the runs' evaluation.json.",
    )


def _title(ordered: Sequence[Evaluation]) -> str:
    """The control is no recipe: it is named beside them."""
    num_recipes = sum(not is_control(evaluation) for evaluation in ordered)
    beside = " and the control" if num_recipes < len(ordered) else ""
    return f"{counted(num_recipes, 'recipe')}{beside} side by side"


def _with_own_names(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """The second run of a name is `name (2)`: one recipe of several drafts, say."""
    seen: dict[str, int] = {}
    named = []
    for evaluation in evaluations:
        seen[evaluation.name] = number = seen.get(evaluation.name, 0) + 1
        own = evaluation.name if number == 1 else f"{evaluation.name} ({number})"
        named.append(replace(evaluation, name=own))
    return named


def _banner(ordered: Sequence[Evaluation], pairs: Sequence[Pair]) -> Banner:
    """The recommended recipe: of those with a go, the fastest. The control is not counted."""
    recipes = [evaluation for evaluation in ordered if not is_control(evaluation)]
    if not recipes:
        return Banner("NONE", "Only the control was evaluated: there is no recipe.", "doubt")
    counts = ", ".join(
        f"{sum(e.verdict.decision == decision for e in recipes)} {decision}"
        for decision in ("go", "no-go", "inconclusive")
    )
    go = [evaluation for evaluation in recipes if evaluation.verdict.decision == "go"]
    if not go:
        is_settled = all(e.verdict.decision == "no-go" for e in recipes)
        until = "" if is_settled else " until a doubt is settled"
        why = f"No recipe earns a go ({counts}). Serve the full-precision draft{until}."
        return Banner("NONE", why, "bad" if is_settled else "doubt", "0", f"of {len(recipes)} go")
    best = go[0]
    speed = best.operating_point.speedup_over_baseline
    return Banner(
        best.name,
        f"Recommended: the fastest of the recipes with a go ({counts}). {_rivals(best, go, pairs)}",
        "good",
        times(speed.value if speed else None),
        f"of the baseline draft's speed; 95 % interval {interval(speed, 'speedup')}",
    )


def _rivals(best: Evaluation, go: Sequence[Evaluation], pairs: Sequence[Pair]) -> str:
    """Recipes with a go from which the recommended one is not told apart."""
    others = {evaluation.name for evaluation in go[1:]}
    close = [
        ({pair.one, pair.other} - {best.name}).pop()
        for pair in pairs
        if best.name in (pair.one, pair.other) and not pair.is_different
    ]
    rivals = [name for name in close if name in others]
    if not rivals:
        return "No other go is as fast." if others else "It is the only one."
    return f"These cannot be told apart from it: {', '.join(rivals)}."


def _pareto_section(ordered: Sequence[Evaluation], k: int | None) -> Section:
    chart = pareto_chart(ordered, k)
    missing = [e.name for e in ordered if e.operating_point.candidate_draft_step_ms is None]
    blocks: list[Block] = [] if chart is None else [chart]
    if missing:
        blocks.append(
            Paragraph(
                f"Not in the picture, because their draft step is undefined: {', '.join(missing)}."
            )
        )
    return Section("Acceptance against draft latency", tuple(blocks))


def _pairs_section(pairs: Sequence[Pair], k: int | None) -> tuple[Section, ...]:
    return (Section("Which recipes really differ", (pairs_table(pairs, k),)),) if pairs else ()


def _plane_section(ordered: Sequence[Evaluation]) -> tuple[Section, ...]:
    chart = plane_chart(ordered)
    return () if chart is None else (Section("Break-even", (chart,)),)


def require_same_question(evaluations: Sequence[Evaluation]) -> None:
    """Raise PairingError, naming two runs, where they did not measure the same thing."""
    first = evaluations[0]
    for other in evaluations[1:]:
        for what, here, there in _question(first, other):
            if here != there:
                raise PairingError(
                    f"runs {first.name!r} and {other.name!r} differ in {what}: "
                    f"{_short(here)} and {_short(there)}. "
                    "Compare runs of one question, or evaluate again on the same inputs."
                )


def _question(first: Evaluation, other: Evaluation) -> Iterator[tuple[str, Any, Any]]:
    """What two runs must share, with each run's value."""
    traffic = [evaluation.provenance.get("traffic") or {} for evaluation in (first, other)]
    yield "traffic", traffic[0].get("sha256"), traffic[1].get("sha256")
    yield "acceptance rule", first.acceptance_rule, other.acceptance_rule
    yield "target", *_models(first, other, "target")
    yield "baseline draft", *_models(first, other, "baseline")


def _models(first: Evaluation, other: Evaluation, role: str) -> tuple[Any, Any]:
    """The most certain thing that both records know of a model: its hashes, or else its name."""
    here, there = (evaluation.provenance.get(role) or {} for evaluation in (first, other))
    for key in ("sha256", "weights_sha256", "name"):
        if here.get(key) and there.get(key):
            return here[key], there[key]
    return None, None


def _short(value: Any) -> str:
    text = str(value)
    return repr(text if len(text) <= 24 else text[:12] + "…")


def _conditions(evaluation: Evaluation) -> tuple[Any, ...]:
    latency = evaluation.latency
    return (latency.engine, latency.device, latency.batch_size, latency.context_length)


def _conditions_differ(evaluations: Sequence[Evaluation]) -> tuple[Block, ...]:
    """Speeds of different machines or batches may stand side by side, but not unsaid."""
    found = {_conditions(evaluation) for evaluation in evaluations}
    if len(found) == 1:
        return ()
    rows = tuple(
        f"{e.name}: {e.latency.engine} on {e.latency.device}, batch {e.latency.batch_size}, "
        f"context {e.latency.context_length}"
        for e in evaluations
    )
    return (Notice("Timed under different conditions: read across rows with care", rows, "doubt"),)


def _subtitle(evaluation: Evaluation) -> str:
    latency = evaluation.latency
    return " · ".join(
        (
            f"draft {model_name(evaluation.provenance, 'baseline')}",
            f"target {model_name(evaluation.provenance, 'target')}",
            counted(len(evaluation.prompts), "prompt"),
            f"rule {evaluation.acceptance_rule}",
            f"batch {latency.batch_size}",
            f"context {latency.context_length}",
            f"{latency.engine} on {latency.device}",
        )
    )


def _speed_order(evaluation: Evaluation) -> tuple[bool, float, str]:
    speedup = evaluation.operating_point.speedup_over_baseline
    return speedup is None, -speedup.value if speedup else 0.0, evaluation.name


def _verdict(evaluation: Evaluation) -> str:
    verdict = evaluation.verdict
    alarms = "".join(f" Alarm {alarm.code}: {alarm.message}" for alarm in verdict.alarms)
    settle = f" To settle it: {verdict.to_settle}." if verdict.to_settle else ""
    return f"{evaluation.name}: {verdict.decision}. {sentence(verdict)}{alarms}{settle}"
