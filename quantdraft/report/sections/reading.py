"""Disagreements: the prompts and tokens on which the candidate loses most."""

from __future__ import annotations

from quantdraft.record import ARMS, Disagreement, Evaluation, PromptReplay, TokenFates
from quantdraft.record.wording import count, counted
from quantdraft.report.blocks import (
    Block,
    Paragraph,
    Passage,
    Passages,
    Section,
    Table,
)
from quantdraft.report.charts.acceptance import prompts_chart

NUM_WORST_PROMPTS = 10
LEGEND = (
    "On a coloured ground: proposed by the draft and accepted. Struck through: the draft proposed "
    "something else, and the round ended there. Bare: not proposed (the bonus token of a round, or "
    "the first token). Both arms saw the same text."
)


def reading_section(evaluation: Evaluation) -> Section:
    """Return prompts as points, the worst ones as rows, and their text."""
    k = evaluation.known_slices_k
    if k not in evaluation.num_speculative_tokens or not evaluation.prompts:
        return Section("Disagreements", (Paragraph("No prompt was replayed at this k."),))
    at = evaluation.num_speculative_tokens.index(k)
    blocks: list[Block] = [
        prompts_chart(evaluation.prompts, at, k),
        _worst_table(evaluation, k),
    ]
    if evaluation.disagreements:
        pairs = zip(evaluation.disagreements, evaluation.known_analysis.fates, strict=True)
        items = tuple(_passage(found, fates) for found, fates in pairs)
        blocks.append(Passages(items, LEGEND))
    else:
        blocks.append(Paragraph(_no_text(evaluation, k)))
    return Section("Disagreements worth reading", tuple(blocks))


def _no_text(evaluation: Evaluation, k: int) -> str:
    at = evaluation.num_speculative_tokens.index(k)
    if all(prompt.extra_rounds(at) <= 0 for prompt in evaluation.prompts):
        return "On no prompt did the candidate need more rounds than the baseline."
    return "The record holds no text of the prompts: an older quantdraft made it. Evaluate again."


def _worst_table(evaluation: Evaluation, k: int) -> Table:
    at = evaluation.num_speculative_tokens.index(k)
    worst = sorted(evaluation.prompts, key=lambda prompt: -prompt.extra_rounds(at))
    shown = [p for p in worst[:NUM_WORST_PROMPTS] if p.extra_rounds(at) > 0]
    return Table(
        columns=("Prompt", "Domain", "Tokens", "Rounds, baseline", "Rounds, candidate"),
        rows=tuple(_prompt_row(prompt, at) for prompt in shown),
        numeric=frozenset({2, 3, 4}),
        caption=(
            f"The {len(shown)} of {len(worst)} prompts on which the candidate lost most, k = {k}. "
            "The record has all of them."
        ),
    )


def _prompt_row(prompt: PromptReplay, at: int) -> tuple[str, ...]:
    return (
        prompt.prompt_id,
        prompt.domain,
        count(prompt.num_tokens),
        count(prompt.baseline_num_drafts[at]),
        count(prompt.candidate_num_drafts[at]),
    )


def _passage(found: Disagreement, fates_of: TokenFates) -> Passage:
    fates = {arm: fates_of.of(arm) for arm in ARMS}
    rejected = [sum(fate == "rejected" for fate in marks) for marks in fates.values()]
    left_out = found.num_tokens_left_out
    rest = f"; {counted(left_out, 'more token')} not shown" if left_out else ""
    return Passage(
        title=found.prompt_id,
        domain=found.domain,
        note=f"rejections: baseline {rejected[0]}, candidate {rejected[1]}{rest}",
        before=found.prompt_end,
        tokens=found.tokens,
        arms=tuple(fates.items()),
    )
