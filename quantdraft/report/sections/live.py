"""The live loop's proof: its rounds and texts beside the replayed ones."""

from __future__ import annotations

from quantdraft.record import Evaluation, LiveCheck
from quantdraft.record.wording import count
from quantdraft.report.blocks import Paragraph, Section, Table

OWN_TEXTS = (
    "The log does not say how it was sampled, and it is not the target's greedy text: texts of its "
    "own were written, and nothing here shows that this target wrote the log. --temperature says "
    "how a log was sampled."
)


def live_section(evaluation: Evaluation) -> Section:
    """Return the live loop's rounds and texts against the replayed ones."""
    if not evaluation.live:
        text = "The live loop was not run: the replayed counts are unproven in this record."
        return Section("Live loop", (Paragraph(text),))
    return Section(
        "Live loop",
        (
            Paragraph(
                "The same prompts through the propose, verify, accept loop. Greedy rounds must be "
                "equal prompt by prompt; where the draft draws too they agree in the mean, and in "
                "16 bits they lie in what near-ties of the draft allow."
                + (f" {OWN_TEXTS}" if any(c.num_own_texts for c in evaluation.live) else "")
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
    return (
        check.arm,
        str(check.num_speculative_tokens),
        count(len(check.prompt_ids)),
        count(sum(check.num_drafts_live)),
        count(sum(check.num_drafts_replayed)),
        "in the mean" if check.is_expectation else f"{check.num_equal} of {len(check.prompt_ids)}",
        count(check.num_identical_texts),
        count(check.num_near_ties),
        count(check.num_divergent),
    )
