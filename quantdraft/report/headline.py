"""The first screen: the verdict, why, the checks that decided, and what would settle doubt."""

from __future__ import annotations

from typing import Any

from quantdraft.comparison.plane import acceptance_at
from quantdraft.report.blocks import Banner, Block, Figure, Figures, Notice, Table, Tone
from quantdraft.report.turning import turning_points
from quantdraft.report.wording import (
    UNDEFINED,
    interval,
    length,
    metric,
    milliseconds,
    pace,
    percent,
    rate_change,
    significant,
    title_of,
)
from quantdraft.results import Check, Evaluation, Verdict

TONES: dict[str, Tone] = {
    "go": "good",
    "no-go": "bad",
    "inconclusive": "doubt",
    "pass": "good",
    "fail": "bad",
    "unsure": "doubt",
    "undefined": "doubt",
}


def banner(evaluation: Evaluation) -> Banner:
    """The decision in capitals, the speedup with its interval, and the sentence that explains."""
    verdict, speedup = evaluation.verdict, evaluation.operating_point.speedup_over_baseline
    measure = "times the baseline draft's speed"
    number = UNDEFINED
    if speedup is not None:
        number = metric(speedup.value, "speedup")
        measure += f", 95 % interval {interval(speedup, 'speedup')}"
    return Banner(
        verdict.decision.upper(), sentence(verdict), TONES[verdict.decision], number, measure
    )


def sentence(verdict: Verdict) -> str:
    """The verdict's summary to stand beside the decision: without it, and with a full stop."""
    text = verdict.summary.removeprefix(f"{verdict.decision}: ")
    return text if text.endswith((".", "!", "?")) else f"{text}."


def lead(evaluation: Evaluation) -> tuple[Block, ...]:
    """What must be seen without scrolling."""
    verdict = evaluation.verdict
    blocks: list[Block] = []
    if verdict.alarms:
        alarms = tuple(f"{alarm.code}: {alarm.message}" for alarm in verdict.alarms)
        blocks.append(Notice("Alarm" if len(alarms) == 1 else "Alarms", alarms, "bad"))
    if verdict.to_settle:
        blocks.append(Notice("What would settle it", (verdict.to_settle,), "doubt"))
    change = turning_points(evaluation)
    if change:
        blocks.append(Notice("What would change the answer", change, "plain"))
    return (*blocks, figures(evaluation), checks_table(verdict.checks))


def checks_table(checks: tuple[Check, ...]) -> Table:
    """Every check, those that decide first."""
    ordered = sorted(checks, key=lambda check: check.kind != "decides")
    return Table(
        columns=("Check", "Role", "Observed", "95 % interval", "Limit", "Result"),
        rows=tuple(_check_row(check) for check in ordered),
        numeric=frozenset({2, 3, 4}),
        tones=tuple(TONES[check.result] for check in ordered),
        tone_column=5,
    )


def _check_row(check: Check) -> tuple[str, ...]:
    comparison = {">=": "≥", "<=": "≤", ">": ">", None: ""}[check.comparison]
    has_limit = check.limit is not None and check.comparison is not None
    return (
        title_of(check.name),
        check.kind,
        metric(check.observed.value, check.name) if check.observed else _absent(check),
        interval(check.observed, check.name) if check.observed else "—",
        f"{comparison} {metric(check.limit, check.name)}" if has_limit else "—",
        check.result,
    )


def _absent(check: Check) -> str:
    """Undefined where a number was wanted; a dash where the check has none."""
    return UNDEFINED if check.result == "undefined" else "—"


def figures(evaluation: Evaluation) -> Figures:
    """The five numbers that sum the evaluation up, baseline first."""
    point = evaluation.operating_point
    speedup, over_target = point.speedup_over_baseline, point.speedup_over_autoregressive
    why = missing_speed(evaluation)
    name = "speedup"
    return Figures(
        (
            Figure(
                "Speedup over baseline",
                metric(speedup.value if speedup else None, name),
                pace(speedup.value, "the baseline draft") if speedup else why,
            ),
            Figure(
                "Speedup over autoregressive",
                metric(over_target.value if over_target else None, name),
                pace(over_target.value, "the target alone") if over_target else why,
            ),
            *_acceptance_figures(evaluation),
            _draft_step_figure(evaluation),
        )
    )


def _acceptance_figures(evaluation: Evaluation) -> tuple[Figure, ...]:
    point = evaluation.operating_point
    before = acceptance_at(evaluation, point.baseline_num_speculative_tokens)
    after = acceptance_at(evaluation, point.candidate_num_speculative_tokens)
    if before is None or after is None:
        return (Figure("Acceptance rate", UNDEFINED, "not replayed at this k"),)
    rates = before.baseline_rate.value, after.candidate_rate.value
    lengths = before.baseline_length.value, after.candidate_length.value
    return (
        Figure(
            "Acceptance rate",
            f"{percent(rates[0])} → {percent(rates[1])}",
            rate_change(rates[0] - rates[1]),
        ),
        Figure(
            "Tokens a round, τ",
            f"{length(lengths[0])} → {length(lengths[1])}",
            _ks(evaluation),
        ),
    )


def _draft_step_figure(evaluation: Evaluation) -> Figure:
    point = evaluation.operating_point
    before, after = point.baseline_draft_step_ms, point.candidate_draft_step_ms
    if evaluation.served is not None:
        return _served_figure(point.baseline_ms_per_token, point.candidate_ms_per_token)
    if before is None or after is None:
        return Figure("Draft step", UNDEFINED, missing_speed(evaluation))
    saving = point.draft_latency_saving
    value = saving.value if saving else 1 - after / before
    word = "shorter" if value > 0 else "longer"
    note = f"{percent(abs(value))} {word}" if value != 0 else "as long"
    return Figure("Draft step", f"{significant(before)} → {milliseconds(after)}", note)


def _served_figure(before_ms: float | None, after_ms: float | None) -> Figure:
    """What the engine delivered: it shows no draft steps."""
    if before_ms is None or after_ms is None:
        return Figure("Tokens per second", UNDEFINED, "not every arm was served")
    speeds = f"{significant(1e3 / before_ms)} → {significant(1e3 / after_ms)}"
    return Figure("Tokens per second", speeds, pace(before_ms / after_ms, "the baseline draft"))


def _ks(evaluation: Evaluation) -> str:
    point = evaluation.operating_point
    baseline, candidate = (
        point.baseline_num_speculative_tokens,
        point.candidate_num_speculative_tokens,
    )
    return f"k = {candidate}" if baseline == candidate else f"k = {baseline} → {candidate}"


def missing_speed(evaluation: Evaluation) -> str:
    """Why a latency, and all that follows from it, is undefined."""
    by_reason: dict[str, list[str]] = {}
    for arm, why in evaluation.latency.undefined.items():
        by_reason.setdefault(why, []).append(arm)
    reasons = [f"{', '.join(arms)}: {why}" for why, arms in by_reason.items()]
    return "; ".join(reasons) if reasons else "its latency was not measured"


def subtitle(evaluation: Evaluation) -> str:
    """What was compared, on which traffic, at which operating point."""
    latency, record = evaluation.latency, evaluation.provenance
    return " · ".join(
        (
            f"draft {model_name(record, 'baseline')}",
            f"target {model_name(record, 'target')}",
            f"{len(evaluation.prompts)} prompts",
            f"rule {evaluation.acceptance_rule}",
            _ks(evaluation),
            f"batch {latency.batch_size}",
            f"context {latency.context_length}",
            f"{latency.engine} on {latency.device}",
        )
    )


def model_name(provenance: dict[str, Any], role: str) -> str:
    """The name that the record gives to a model, or 'unknown'."""
    model = provenance.get(role)
    return str(model.get("name", "unknown")) if isinstance(model, dict) else "unknown"
