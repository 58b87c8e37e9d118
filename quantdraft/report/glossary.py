"""The words of a report and what they mean. The README has the same; a test compares them."""

from __future__ import annotations

from quantdraft.report.blocks import Section, Table

WORDS = (
    ("target, draft", "the model that verifies; the small model that proposes"),
    ("baseline, candidate", "the full-precision draft; the quantized draft"),
    (
        "control",
        "the baseline, or the target, timed against its own copy: what noise alone looks like",
    ),
    (
        "load",
        "all arms loaded anew, in fresh memory; loads are what intervals of speed resample",
    ),
    ("autoregressive, AR", "the target alone, without speculation"),
    ("k", "tokens that the draft proposes a round"),
    ("round", "one proposal of k tokens and one verification by the target"),
    ("acceptance rate", "accepted / proposed tokens; it falls with k whatever the draft"),
    (
        "α",
        "acceptance per token asked for: the one that would give τ, were it the same for every "
        "token, τ = (1 − α^(k+1)) / (1 − α). Hardly depends on k; rules of thumb are held to it",
    ),
    ("kept", "of the tokens asked for in one part of the traffic: those after a rejection are not"),
    ("τ", "tokens emitted a round, the target's own included, from 1 to k + 1"),
    ("t_d, t_v(m)", "time of a draft step; of one target pass over m new tokens"),
    ("c", "t_d / t_v(1): a draft step over a step of the target"),
    ("loss", "acceptance rate of the baseline minus the candidate's, in points"),
    ("traffic", "prompts with the target's own responses"),
    (
        "trace",
        "when requests arrive and how long they are, without text: which batches and contexts "
        "count in the verdict",
    ),
    ("replay", "rounds computed from traffic by one pass of the draft, for every k at once"),
    ("near-tie", "two tokens that the target likes equally, which other kernels may swap"),
)


def words_section() -> Section:
    """Return the glossary, which is folded at the end of a page."""
    return Section("Words", (Table(("Word", "Meaning"), WORDS),), is_detail=True)
