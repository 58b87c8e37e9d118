"""The first screen: the verdict, why, the checks that decided, and what would settle doubt."""

from __future__ import annotations

from typing import Any

from quantdraft.record import ARMS, Check, Diagnosis, Evaluation, Verdict
from quantdraft.record.verdict import RATE, RATE_LOSS
from quantdraft.record.wording import (
    RATE_NAME,
    UNDEFINED,
    counted,
    interval,
    length,
    metric,
    milliseconds,
    pace,
    percent,
    rate_change,
    shorter,
    significant,
    title_of,
    undefined,
    valued,
    whole_sentence,
)
from quantdraft.report.blocks import Banner, Block, Figure, Figures, Notice, Section, Table, Tone

OPENINGS = ("speed was ", "the ", "control: ", "speculation with ", "acceptance ")
OLDER_WORDS = "for want of speed ("  # as records of earlier versions say it
NOT_MEASURED = "not measured here"
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
    """Return the decision in capitals, the speedup with its interval, and the reason."""
    verdict, speedup = evaluation.verdict, evaluation.speedup_over_baseline
    number = measure = ""  # where it is undefined the sentence says so, and why
    if speedup is not None:
        number = metric(speedup.value, "speedup")
        ends = interval(speedup, "speedup")
        over = "" if evaluation.trace is None else " over the trace"
        measure = f"of the baseline draft's speed{over}, {at_ks(evaluation)}; 95 % interval {ends}"
    return Banner(
        verdict.decision.upper(), sentence(verdict), TONES[verdict.decision], number, measure
    )


def sentence(verdict: Verdict) -> str:
    """Return the verdict's summary without the decision, which stands beside it.

    A name at its start stays as it is written: `int8 is 9.9 % slower …`.
    """
    text = verdict.summary.removeprefix(f"{verdict.decision}: ")
    text = text.replace(OLDER_WORDS, "speed was not measured (")
    if text.startswith(OPENINGS):
        return whole_sentence(text)
    return text if text.endswith((".", "!", "?")) else f"{text}."


def lead(evaluation: Evaluation) -> tuple[Block, ...]:
    """Return the blocks that must be seen without scrolling."""
    verdict = evaluation.verdict
    blocks: list[Block] = []
    if verdict.alarms:
        alarms = tuple(f"{alarm.code}: {alarm.message}" for alarm in verdict.alarms)
        blocks.append(Notice("Alarm" if len(alarms) == 1 else "Alarms", alarms, "bad"))
    if verdict.to_settle:
        blocks.append(Notice("What would settle it", (whole_sentence(verdict.to_settle),), "doubt"))
    causes = tuple(whole_sentence(f"{line.finding}: {line.seen}") for line in evaluation.causes)
    if causes:
        blocks.append(Notice("Diagnosis", causes, "plain"))
    change = evaluation.known_analysis.turning_points
    if change:
        blocks.append(Notice("What would change the answer", change, "plain"))
    return (*blocks, _strip(evaluation), checks_table(evaluation, verdict.summary))


def diagnosis_sections(evaluation: Evaluation) -> tuple[Section, ...]:
    """Return what the numbers point to, and what to do next; nothing where nothing was found."""
    found = evaluation.known_analysis.diagnoses
    return (
        (Section("Diagnosis", tuple(_diagnosis_notice(each) for each in found)),) if found else ()
    )


def _diagnosis_notice(each: Diagnosis) -> Notice:
    finding = title_of(each.finding)
    next_step = f"{each.action}: `{each.command}`" if each.command else each.action
    return Notice(
        finding if each.state == "found" else f"Cannot tell: {each.finding}",
        (f"Seen: {each.seen}", f"Held to: {each.limit} ({each.source})", f"Next: {next_step}"),
        "doubt" if each.state == "found" else "plain",
    )


def checks_table(evaluation: Evaluation, said: str = "") -> Table:
    """Return every check, those that decide first. said: the words above, which are not repeated"""
    ordered = sorted(evaluation.verdict.checks, key=lambda check: check.kind != "decides")
    rows = tuple(_check_row(evaluation, check, said) for check in ordered)
    tones = tuple(TONES[check.result] for check in ordered)
    columns = ("Check", "Result", "Observed (95 % interval)", "Limit", "Role")
    return Table(columns, rows, tones=tones, tone_column=1)


def _check_row(evaluation: Evaluation, check: Check, said: str) -> tuple[str, ...]:
    limit = "—"
    if check.limit is not None and check.comparison is not None:
        comparison = {">=": "≥", "<=": "≤", ">": ">"}[check.comparison]
        limit = f"{comparison} {metric(check.limit, check.name)}{_at(evaluation, check)}"
    return (
        title_of(RATE_NAME if check.name == RATE else check.name),
        check.result,
        valued(check.observed, check.name) if check.observed else _absent(check, said),
        limit,
        check.kind,
    )


def _at(evaluation: Evaluation, check: Check) -> str:
    """Return the k of a check of acceptance; of an older record, the candidate's."""
    if check.name not in (RATE, RATE_LOSS):
        return ""
    k = check.num_speculative_tokens
    if k is None:
        k = evaluation.operating_point.candidate_num_speculative_tokens
    return f" at k = {k}"


def _absent(check: Check, said: str) -> str:
    """Return that a number is undefined, or what was found where the check has no number."""
    if check.result != "undefined":
        return check.reason
    return undefined("" if check.reason in said else check.reason)


def _strip(evaluation: Evaluation) -> Figures:
    """Return the numbers of the first screen; the banner has the speedup already."""
    _, *others = figures(evaluation).items
    control = evaluation.operating_point.control_speedup
    noise = "it was not timed"
    if control is not None:
        noise = f"baseline against itself, {interval(control, 'speedup')}"
    shown = metric(control.value if control else None, "speedup")
    return Figures((*others, Figure("Control", shown, noise)))


def figures(evaluation: Evaluation) -> Figures:
    """Return the five numbers that sum the evaluation up, baseline first."""
    speedup, over_target = (
        evaluation.speedup_over_baseline,
        evaluation.speedup_over_autoregressive,
    )
    name = "speedup"
    return Figures(
        (
            Figure(
                "Speedup over baseline",
                metric(speedup.value if speedup else None, name),
                pace(speedup.value, "the baseline draft") if speedup else NOT_MEASURED,
            ),
            Figure(
                "Speedup over autoregressive",
                metric(over_target.value if over_target else None, name),
                pace(over_target.value, "the target alone") if over_target else NOT_MEASURED,
            ),
            *_acceptance_figures(evaluation),
            _draft_step_figure(evaluation),
        )
    )


def _acceptance_figures(evaluation: Evaluation) -> tuple[Figure, ...]:
    """Return both drafts' acceptance at one k: rates at two k cannot be compared."""
    k = evaluation.shown_k
    found = evaluation.acceptance_at(k)
    if found is None:
        return (Figure(f"Acceptance rate at k = {k}", UNDEFINED, "not replayed at this k"),)
    before, after = found.baseline_rate.value, found.candidate_rate.value
    return (
        Figure(
            f"Acceptance rate at k = {k}",
            f"{percent(before)} → {percent(after)}",
            f"{rate_change(before - after)}; accepted / proposed",
        ),
        Figure(
            f"Tokens a round τ at k = {k}",
            f"{length(found.baseline_length.value)} → {length(found.candidate_length.value)}",
            _best_ks(evaluation),
        ),
    )


def _best_ks(evaluation: Evaluation) -> str:
    """Return the k at which each draft is fastest, as far as it was timed."""
    known = [
        f"{arm} {evaluation.best_k[arm]}" for arm in ARMS if evaluation.best_k.get(arm) is not None
    ]
    return f"best k: {', '.join(known)}" if known else "no best k: speed was not measured"


def _draft_step_figure(evaluation: Evaluation) -> Figure:
    point = evaluation.operating_point
    before, after = point.baseline_draft_step_ms, point.candidate_draft_step_ms
    if evaluation.served is not None:
        return _served_figure(point.baseline_ms_per_token, point.candidate_ms_per_token)
    if before is None or after is None:
        return Figure("Draft step", UNDEFINED, NOT_MEASURED)
    saving = point.draft_latency_saving
    value = saving.value if saving else 1 - after / before
    note = shorter(value)
    if saving and (value > 0) != (after < before) and value:  # medians of all blocks say otherwise
        note += ", block by block"
    return Figure("Draft step", f"{significant(before)} → {milliseconds(after)}", note)


def _served_figure(before_ms: float | None, after_ms: float | None) -> Figure:
    """Return the engine's tokens per second, in place of draft steps that it does not show."""
    if before_ms is None or after_ms is None:
        return Figure("Tokens per second", UNDEFINED, "not every arm was served")
    speeds = f"{significant(1e3 / before_ms)} → {significant(1e3 / after_ms)}"
    return Figure("Tokens per second", speeds, pace(before_ms / after_ms, "the baseline draft"))


def at_ks(evaluation: Evaluation) -> str:
    """Return the k of both drafts at the operating point, where their speeds are compared."""
    point = evaluation.judged_speed or evaluation.operating_point
    baseline, candidate = (
        point.baseline_num_speculative_tokens,
        point.candidate_num_speculative_tokens,
    )
    if baseline == candidate:
        return f"both at k = {candidate}"
    return f"the candidate at k = {candidate}, the baseline at k = {baseline}"


def missing_speed(evaluation: Evaluation) -> str:
    """Return why a latency, and all that follows from it, is undefined."""
    by_reason: dict[str, list[str]] = {}
    for arm, why in evaluation.latency.undefined.items():
        by_reason.setdefault(why, []).append(arm)
    reasons = [f"{', '.join(arms)}: {why}" for why, arms in by_reason.items()]
    return "; ".join(reasons) if reasons else "its latency was not measured"


def subtitle(evaluation: Evaluation, ks: str = "") -> str:
    """Return what was compared, on which traffic, at which operating point. ks: its k, in words"""
    latency, record = evaluation.latency, evaluation.provenance
    return " · ".join(
        (
            f"draft {model_name(record, 'baseline')}",
            f"target {model_name(record, 'target')}",
            counted(len(evaluation.prompts), "prompt"),
            f"rule {evaluation.acceptance_rule}",
            *([ks] if ks else []),
            f"batch {latency.batch_size}",
            f"context {latency.context_length}",
            f"{latency.engine} on {latency.device}",
        )
    )


def model_name(provenance: dict[str, Any], role: str) -> str:
    """Return the name that the record gives to a model, or 'unknown'."""
    model = provenance.get(role)
    return str(model.get("name", "unknown")) if isinstance(model, dict) else "unknown"
