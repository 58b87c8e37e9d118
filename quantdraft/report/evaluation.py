"""The page of one evaluation, as one list of sections that every view shows."""

from __future__ import annotations

from quantdraft.record import Evaluation
from quantdraft.report.blocks import Document
from quantdraft.report.charts.style import unchecked
from quantdraft.report.glossary import words_section
from quantdraft.report.sections import headline
from quantdraft.report.sections.acceptance import acceptance_section
from quantdraft.report.sections.evidence import evidence_section
from quantdraft.report.sections.gpu import gpu_sections
from quantdraft.report.sections.grid import grid_section
from quantdraft.report.sections.latency import latency_section
from quantdraft.report.sections.plane import plane_section
from quantdraft.report.sections.reading import reading_section
from quantdraft.report.sections.record import ledger_section, provenance_section
from quantdraft.report.sections.rounds import time_section
from quantdraft.report.sections.served import live_section, served_sections
from quantdraft.report.sections.speed import noise_section, speed_section
from quantdraft.report.sections.trace import trace_sections


@unchecked
def document(evaluation: Evaluation) -> Document:
    """Return the whole report of one evaluation: the answer, why, and then the evidence."""
    return Document(
        title=evaluation.name,
        subtitle=headline.subtitle(evaluation, headline.at_ks(evaluation)),
        banner=headline.banner(evaluation),
        lead=headline.lead(evaluation),
        sections=(
            *headline.diagnosis_sections(evaluation),
            speed_section(evaluation),
            time_section(evaluation),
            acceptance_section(evaluation),
            plane_section(evaluation),
            *trace_sections(evaluation),
            grid_section(evaluation),
            ledger_section(evaluation),
            reading_section(evaluation),
            evidence_section(evaluation),
            noise_section(evaluation),
            *served_sections(evaluation),
            live_section(evaluation),
            latency_section(evaluation),
            *gpu_sections((evaluation.latency, *evaluation.grid), evaluation.provenance),
            provenance_section(evaluation),
            words_section(),
        ),
        footer=_footer(evaluation),
    )


def _footer(evaluation: Evaluation) -> str:
    versions = evaluation.provenance.get("versions")
    version = versions.get("quantdraft", "") if isinstance(versions, dict) else ""
    made_by = f"quantdraft {version}".strip()
    return f"{made_by} · {evaluation.created} · record: evaluation.json"
