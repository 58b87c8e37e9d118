"""An evaluation as one list of sections. Every view shows these and computes nothing."""

from __future__ import annotations

from quantdraft.report import headline
from quantdraft.report.acceptance_rows import (
    acceptance_section,
    live_section,
    parts_section,
    prompts_section,
)
from quantdraft.report.blocks import Bullets, Document, Section
from quantdraft.report.latency_rows import latency_section
from quantdraft.report.record_rows import ledger_section, provenance_section
from quantdraft.report.served_rows import served_sections
from quantdraft.report.speed_rows import noise_section, speed_section
from quantdraft.report.wording import title_of
from quantdraft.results import Evaluation


def document(evaluation: Evaluation) -> Document:
    """The whole report of one evaluation, first screen first."""
    return Document(
        title=evaluation.name,
        subtitle=headline.subtitle(evaluation),
        banner=headline.banner(evaluation.verdict),
        lead=headline.lead(evaluation),
        sections=(
            *advice_section(evaluation),
            speed_section(evaluation),
            *served_sections(evaluation),
            noise_section(evaluation),
            acceptance_section(evaluation),
            parts_section(evaluation),
            latency_section(evaluation),
            live_section(evaluation),
            ledger_section(evaluation),
            prompts_section(evaluation),
            provenance_section(evaluation),
        ),
        footer=_footer(evaluation),
    )


def advice_section(evaluation: Evaluation) -> tuple[Section, ...]:
    """The verdict's advice, and why a check without a number did not pass."""
    verdict = evaluation.verdict
    reasons = tuple(
        f"{title_of(check.name)}: {check.result}, {check.reason}"
        for check in verdict.checks
        if check.observed is None and check.result != "pass"
    )
    sections = (
        Section("Checks without a number", (Bullets(reasons),)) if reasons else None,
        Section("Advice", (Bullets(verdict.advice),)) if verdict.advice else None,
    )
    return tuple(section for section in sections if section)


def _footer(evaluation: Evaluation) -> str:
    versions = evaluation.provenance.get("versions")
    version = versions.get("quantdraft", "") if isinstance(versions, dict) else ""
    made_by = f"quantdraft {version}".strip()
    return f"{made_by} · {evaluation.created} · record: evaluation.json"
