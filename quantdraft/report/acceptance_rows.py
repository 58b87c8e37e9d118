"""Acceptance: by position in the round, by k, and by part of the traffic."""

from __future__ import annotations

from itertools import pairwise

from quantdraft.report.blocks import (
    Bars,
    Block,
    Bullets,
    Dumbbell,
    Lines,
    Paragraph,
    Section,
    Series,
    Table,
)
from quantdraft.report.headline import at_k
from quantdraft.report.wording import (
    UNDEFINED,
    change_points,
    compared,
    count,
    percent,
    valued,
)
from quantdraft.results import AcceptanceCounts, Evaluation, LiveCheck, PromptReplay, Slice

NUM_WORST_PROMPTS = 10


def acceptance_section(evaluation: Evaluation) -> Section:
    """Acceptance per position at the operating point's k, and τ for every k."""
    k = evaluation.operating_point.candidate_num_speculative_tokens
    acceptance = at_k(evaluation, k)
    if acceptance is None:
        text = f"Acceptance at k = {k}: {UNDEFINED}, that k was not replayed."
        return Section("Acceptance", (Paragraph(text), length_chart(evaluation)))
    return Section(
        "Acceptance",
        (
            position_chart(acceptance.baseline, acceptance.candidate, k),
            length_chart(evaluation),
            Table(
                ("At k = " + str(k), "Baseline", "Candidate"),
                (
                    (
                        "Acceptance rate (95 % interval)",
                        valued(acceptance.baseline_rate, "rate"),
                        valued(acceptance.candidate_rate, "rate"),
                    ),
                    (
                        "Rounds",
                        count(acceptance.baseline.num_drafts),
                        count(acceptance.candidate.num_drafts),
                    ),
                    (
                        "Accepted draft tokens",
                        count(acceptance.baseline.num_accepted_tokens),
                        count(acceptance.candidate.num_accepted_tokens),
                    ),
                ),
                numeric=frozenset({1, 2}),
            ),
            Paragraph(
                "Acceptance rate loss, baseline minus candidate: "
                + valued(acceptance.acceptance_rate_loss, "loss")
                + "."
            ),
            position_table(acceptance.baseline, acceptance.candidate),
        ),
    )


def position_chart(baseline: AcceptanceCounts, candidate: AcceptanceCounts, k: int) -> Bars:
    """Share of rounds that kept each position, both arms."""
    return Bars(
        title="Acceptance per position",
        description=f"Share of rounds in which the position was accepted, k = {k}.",
        groups=tuple(str(position) for position in range(1, k + 1)),
        series=(
            ("baseline", "baseline", _per_position(baseline)),
            ("candidate", "candidate", _per_position(candidate)),
        ),
        x_title="position in the round",
    )


def _per_position(counts: AcceptanceCounts) -> tuple[float, ...]:
    return counts.acceptance_rate_per_pos if counts.num_drafts else ()


def position_table(baseline: AcceptanceCounts, candidate: AcceptanceCounts) -> Table:
    """The chart's numbers, and the share kept among the rounds that came that far."""
    before, after = _per_position(baseline), _per_position(candidate)
    reached_before, reached_after = _if_reached(baseline), _if_reached(candidate)
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


def _if_reached(counts: AcceptanceCounts) -> list[float | None]:
    came = (counts.num_drafts, *counts.num_accepted_tokens_per_pos)
    return [kept / reached if reached else None for reached, kept in pairwise(came)]


def length_chart(evaluation: Evaluation) -> Lines:
    """τ by k, both arms, each arm's best k ringed."""
    rows = evaluation.acceptance
    best = evaluation.best_k
    return Lines(
        title="Mean acceptance length τ, by k",
        description="Tokens emitted a round, bonus included. Rings mark each arm's best k.",
        series=(
            Series(
                "baseline",
                tuple((float(r.num_speculative_tokens), r.baseline_length.value) for r in rows),
                "baseline",
                marked_x=best.get("baseline"),
            ),
            Series(
                "candidate",
                tuple((float(r.num_speculative_tokens), r.candidate_length.value) for r in rows),
                "candidate",
                marked_x=best.get("candidate"),
            ),
        ),
        x_title="k, tokens proposed a round",
        unit="",
    )


def parts_section(evaluation: Evaluation) -> Section:
    """Where rejections fall: in the response, by context length, by domain."""
    blocks: list[Block] = [Paragraph(early_or_late(evaluation.by_position))]
    for title, slices in (
        ("Part of the response", evaluation.by_position),
        ("Context length", evaluation.by_context),
        ("Domain", evaluation.by_domain),
    ):
        if slices:
            blocks.append(slice_table(title, slices))
    return Section("Where rejections fall", tuple(blocks))


def early_or_late(slices: tuple[Slice, ...]) -> str:
    """Whether the candidate is rejected more at the start of the responses or at their end."""
    if len(slices) < 2:
        return "Early or late: undefined, the response was not cut into parts."
    first, last = slices[0], slices[-1]
    if (
        first.candidate_conditional_acceptance is None
        or last.candidate_conditional_acceptance is None
    ):
        return "Early or late: undefined, one part of the responses has no proposals."
    rise = last.candidate_conditional_acceptance - first.candidate_conditional_acceptance
    when = compared(rise, 0.0, "early", "late", "evenly")
    return (
        f"The candidate's rejections fall {when}: it keeps "
        f"{percent(first.candidate_conditional_acceptance)} of the tokens it is asked for "
        f"({first.name}) and "
        f"{percent(last.candidate_conditional_acceptance)} ({last.name})."
    )


def slice_table(title: str, slices: tuple[Slice, ...]) -> Table:
    """One row a part; both arms on one scale. Conditional acceptance: kept / asked for."""
    return Table(
        columns=(title, "Prompts", "Tokens", "Baseline", "Candidate", "Difference"),
        rows=tuple(_slice_row(part) for part in slices),
        numeric=frozenset(range(1, 6)),
        marks=tuple(_dumbbell(part) for part in slices),
        mark_title="○ baseline, ● candidate",
    )


def _slice_row(part: Slice) -> tuple[str, ...]:
    before, after = part.baseline_conditional_acceptance, part.candidate_conditional_acceptance
    difference = after - before if before is not None and after is not None else None
    return (
        part.name,
        count(part.num_prompts),
        count(part.num_tokens),
        percent(before),
        percent(after),
        change_points(difference),
    )


def _dumbbell(part: Slice) -> Dumbbell | None:
    if (
        part.baseline_conditional_acceptance is None
        or part.candidate_conditional_acceptance is None
    ):
        return None
    return Dumbbell(part.baseline_conditional_acceptance, part.candidate_conditional_acceptance)


def live_section(evaluation: Evaluation) -> Section:
    """The proof: the real loop's rounds against the replayed ones."""
    if not evaluation.live:
        text = "The live loop was not run: the replayed counts are unproven in this record."
        return Section("Live loop", (Paragraph(text),))
    return Section(
        "Live loop",
        (
            Paragraph(
                "The same prompts through the propose, verify, accept loop. Greedy rounds must be "
                "equal prompt by prompt; sampled ones agree in the mean."
            ),
            Table(
                columns=(
                    "Arm",
                    "k",
                    "Prompts",
                    "Rounds, live",
                    "Rounds, replayed",
                    "Prompts with equal rounds",
                    "Identical texts",
                    "Near-ties",
                    "Divergent",
                ),
                rows=tuple(_live_row(check) for check in evaluation.live),
                numeric=frozenset(range(1, 9)),
            ),
        ),
    )


def _live_row(check: LiveCheck) -> tuple[str, ...]:
    pairs = list(zip(check.num_drafts_live, check.num_drafts_replayed, strict=True))
    equal = sum(abs(live - replayed) < 1e-6 for live, replayed in pairs)
    return (
        check.arm,
        str(check.num_speculative_tokens),
        count(len(check.prompt_ids)),
        count(sum(check.num_drafts_live)),
        count(sum(check.num_drafts_replayed)),
        "in the mean" if check.is_expectation else f"{equal} of {len(pairs)}",
        count(check.num_identical_texts),
        count(check.num_near_ties),
        count(check.num_divergent),
    )


def prompts_section(evaluation: Evaluation) -> Section:
    """The prompts on which the candidate needed most rounds beyond the baseline's."""
    k = evaluation.operating_point.candidate_num_speculative_tokens
    ks = evaluation.num_speculative_tokens
    if k not in ks or not evaluation.prompts:
        return Section("Prompts", (Bullets(("No prompt was replayed at this k.",)),), True)
    at = ks.index(k)
    worst = sorted(evaluation.prompts, key=lambda prompt: -_extra_rounds(prompt, at))
    return Section(
        "Prompts",
        (
            Table(
                columns=("Prompt", "Domain", "Tokens", "Rounds, baseline", "Rounds, candidate"),
                rows=tuple(_prompt_row(prompt, at) for prompt in worst[:NUM_WORST_PROMPTS]),
                numeric=frozenset({2, 3, 4}),
                caption=(
                    f"The {min(NUM_WORST_PROMPTS, len(worst))} of {len(worst)} prompts on which "
                    f"the candidate lost most, k = {k}. The record has all of them."
                ),
            ),
        ),
        is_detail=True,
    )


def _extra_rounds(prompt: PromptReplay, at: int) -> float:
    return prompt.candidate_num_drafts[at] - prompt.baseline_num_drafts[at]


def _prompt_row(prompt: PromptReplay, at: int) -> tuple[str, ...]:
    return (
        prompt.prompt_id,
        prompt.domain,
        count(prompt.num_tokens),
        count(prompt.baseline_num_drafts[at]),
        count(prompt.candidate_num_drafts[at]),
    )
