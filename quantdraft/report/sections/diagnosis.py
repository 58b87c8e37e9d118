"""Diagnoses: what the numbers point to, what each rests on, and what to do next."""

from __future__ import annotations

from quantdraft.record import Diagnosis, Evaluation
from quantdraft.record.wording import title_of
from quantdraft.report.blocks import Notice, Section


def diagnosis_sections(evaluation: Evaluation) -> tuple[Section, ...]:
    """Return one section, or none where nothing was found."""
    found = evaluation.known_analysis.diagnoses
    return (Section("Diagnosis", tuple(_notice(each) for each in found)),) if found else ()


def _notice(each: Diagnosis) -> Notice:
    finding = title_of(each.finding)
    next_step = f"{each.action}: `{each.command}`" if each.command else each.action
    return Notice(
        finding if each.state == "found" else f"Cannot tell: {each.finding}",
        (f"Seen: {each.seen}", f"Held to: {each.limit} ({each.source})", f"Next: {next_step}"),
        "doubt" if each.state == "found" else "plain",
    )
