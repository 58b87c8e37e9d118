"""Acceptance by position in the round and by part of the traffic, and what was lost in each."""

from __future__ import annotations

from quantdraft.record import (
    ARMS,
    MIN_PROMPTS,
    AcceptanceComparison,
    AcceptanceCounts,
    Evaluation,
    Slice,
)
from quantdraft.record.wording import (
    ALPHA_NAME,
    RATE_NAME,
    UNDEFINED,
    change_points,
    compared,
    count,
    metric,
    percent,
    title_of,
    undefined,
    valued,
)
from quantdraft.report.blocks import Block, Chart, Paragraph, Section, Table
from quantdraft.report.charts.acceptance import PartLoss, loss_chart, position_chart

BOTH_RATES = (
    "The acceptance rate counts every proposal, also those after a rejection, so it falls with k. "
    "α counts those that were looked at: limits by rule of thumb, and `plan`, mean this one."
)


def acceptance_section(evaluation: Evaluation) -> Section:
    """Return acceptance at each position, and its loss by part of the traffic."""
    k = evaluation.shown_k
    acceptance = evaluation.acceptance_at(k)
    if acceptance is None:
        text = f"Acceptance at k = {k}: {UNDEFINED}, that k was not replayed."
        return Section("Acceptance", (Paragraph(text),))
    parts = [
        ("response", "Part of the response", evaluation.by_position),
        ("context", "Context length", evaluation.by_context),
        ("domain", "Domain", evaluation.by_domain),
        *((name, name.capitalize(), parts) for name, parts in evaluation.by_trait.items()),
    ]
    at = evaluation.known_slices_k
    charts = [slice_chart(*part, at) for part in parts]
    blocks: list[Block] = [_sums_table(evaluation, acceptance), *_position_blocks(acceptance)]
    blocks += [chart for chart in charts if chart is not None]
    blocks.append(Paragraph(early_or_late(evaluation.by_position)))
    blocks += [slice_table(title, slices, at) for _, title, slices in parts if slices]
    return Section("Acceptance", tuple(blocks))


def _sums_table(evaluation: Evaluation, acceptance: AcceptanceComparison) -> Table:
    k, analysis = acceptance.num_speculative_tokens, evaluation.known_analysis
    lost = valued(acceptance.acceptance_rate_loss, "loss")
    alphas = analysis.baseline_alpha, analysis.candidate_alpha
    arms = [acceptance.of(arm) for arm in ARMS]
    return Table(
        (f"At k = {k}", "Baseline (95 % interval)", "Candidate (95 % interval)"),
        (
            (title_of(RATE_NAME), *(valued(arm.rate, "rate") for arm in arms)),
            (ALPHA_NAME, *(valued(alpha, "rate") for alpha in alphas)),
            ("Tokens a round, τ", *(valued(arm.length, "length") for arm in arms)),
            ("Rounds", *(count(arm.counts.num_drafts) for arm in arms)),
            ("Accepted draft tokens", *(count(arm.counts.num_accepted_tokens) for arm in arms)),
            ("Acceptance rate lost, baseline minus candidate", "", lost),
        ),
        numeric=frozenset({1, 2}),
        caption=BOTH_RATES,
    )


def _position_blocks(acceptance: AcceptanceComparison) -> list[Block]:
    before, after = acceptance.baseline, acceptance.candidate
    table = position_table(before, after)
    chart = position_chart(before, after, acceptance.num_speculative_tokens, table)
    if not acceptance.acceptance_loss_per_pos:
        return [chart]
    positions = zip(
        acceptance.acceptance_loss_per_pos, _per_position(before), _per_position(after), strict=True
    )
    parts = [
        PartLoss(f"position {at}", ends, kept_before, kept_after)
        for at, (ends, kept_before, kept_after) in enumerate(positions, 1)
    ]
    described = (
        f"Share of rounds that kept the position at k = {acceptance.num_speculative_tokens}, "
        "baseline minus candidate, 95 % intervals."
    )
    return [chart, loss_chart("position", "Lost per position", described, parts)]


def _per_position(counts: AcceptanceCounts) -> tuple[float, ...]:
    return counts.acceptance_rate_per_pos if counts.num_drafts else ()


def position_table(baseline: AcceptanceCounts, candidate: AcceptanceCounts) -> Table:
    """Return the chart's numbers, and the share kept among the rounds that reached a position."""
    before, after = _per_position(baseline), _per_position(candidate)
    reached_before, reached_after = baseline.if_reached, candidate.if_reached
    rows = tuple(
        (
            str(position + 1),
            percent(before[position]),
            percent(after[position]),
            change_points(after[position] - before[position]),
            percent(reached_before[position]),
            percent(reached_after[position]),
        )
        for position in range(min(len(before), len(after)))
    )
    return Table(
        columns=(
            "Position",
            "Baseline",
            "Candidate",
            "Difference",
            "Baseline, if reached",
            "Candidate, if reached",
        ),
        rows=rows,
        numeric=frozenset(range(1, 6)),
        caption="If reached: among the rounds that accepted every position before.",
    )


def early_or_late(slices: tuple[Slice, ...]) -> str:
    """Return whether the candidate is rejected more at the start of responses or at their end."""
    if len(slices) < 2:
        return "Early or late: undefined, the response was not cut into parts."
    first, last = slices[0], slices[-1]
    at_first = first.candidate_conditional_acceptance
    at_last = last.candidate_conditional_acceptance
    if at_first is None or at_last is None:
        return "Early or late: undefined, one part of the responses has no proposals."
    when = compared(at_last - at_first, 0.0, "early", "late", "evenly")
    return (
        f"The candidate's rejections fall {when}: it keeps {percent(at_first)} of the tokens it is "
        f"asked for ({first.name}) and {percent(at_last)} ({last.name}). "
        f"{_of_the_baseline(first, last, when)}"
    ).strip()


def _of_the_baseline(first: Slice, last: Slice, when: str) -> str:
    """Return what the full-precision draft shows in the same places, which is not the recipe's."""
    before, after = first.baseline_conditional_acceptance, last.baseline_conditional_acceptance
    if before is None or after is None:
        return ""
    same = compared(after - before, 0.0, "early", "late", "evenly")
    word = f"The baseline's fall {same}" + (" too" if same == when else "")
    return f"{word}: {percent(before)} and {percent(after)}."


def slice_chart(name: str, title: str, slices: tuple[Slice, ...], k: int) -> Chart | None:
    """Return the paired loss of every part, kept / asked for; None where none has an interval."""
    parts = [
        PartLoss(
            part.name,
            part.conditional_acceptance_loss,
            part.baseline_conditional_acceptance,
            part.candidate_conditional_acceptance,
        )
        for part in slices
        if part.conditional_acceptance_loss is not None
    ]
    described = (
        f"Kept of the tokens asked for at k = {k}, baseline minus candidate, 95 % intervals."
    )
    return loss_chart(name, f"Lost by {title.lower()}", described, parts) if parts else None


def slice_table(title: str, slices: tuple[Slice, ...], k: int) -> Table:
    """Return one row for every part. Conditional acceptance: kept / asked for."""
    rows = [
        {
            title: part.name,
            "Prompts": count(part.num_prompts),
            "Tokens": count(part.num_tokens),
            "Baseline kept": percent(part.baseline_conditional_acceptance),
            "Candidate kept": percent(part.candidate_conditional_acceptance),
            "Lost (95 % interval)": _lost(part),
        }
        for part in slices
    ]
    caption = f"Both drafts at k = {k}. Kept: of the tokens asked for."
    return Table.of(rows, range(1, 6), caption=caption)


def _lost(part: Slice) -> str:
    before, after = part.baseline_conditional_acceptance, part.candidate_conditional_acceptance
    if before is None or after is None:
        return undefined("no token was asked for")
    if part.conditional_acceptance_loss is None:
        units = "prompts" if part.num_prompts < MIN_PROMPTS else "conversations"
        return f"{metric(before - after, 'loss')} (no interval under {MIN_PROMPTS} {units})"
    return valued(part.conditional_acceptance_loss, "loss")
