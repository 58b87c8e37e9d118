"""An evaluation as one list of sections. Every view shows these and computes nothing."""

from __future__ import annotations

from quantdraft.report import headline
from quantdraft.report.acceptance_rows import acceptance_section
from quantdraft.report.blocks import Document
from quantdraft.report.diagnosis_rows import diagnosis_sections
from quantdraft.report.evidence_rows import evidence_section
from quantdraft.report.glossary import words_section
from quantdraft.report.grid_rows import grid_section
from quantdraft.report.latency_rows import latency_section
from quantdraft.report.live_rows import live_section
from quantdraft.report.plane_rows import plane_section
from quantdraft.report.reading_rows import reading_section
from quantdraft.report.record_rows import ledger_section, provenance_section
from quantdraft.report.round_rows import time_section
from quantdraft.report.served_rows import served_sections
from quantdraft.report.speed_rows import noise_section, speed_section
from quantdraft.results import Evaluation


def document(evaluation: Evaluation) -> Document:
    """The whole report of one evaluation: the answer, why, and then the evidence."""
    return Document(
        title=evaluation.name,
        subtitle=headline.subtitle(evaluation),
        banner=headline.banner(evaluation),
        lead=headline.lead(evaluation),
        sections=(
            *diagnosis_sections(evaluation),
            speed_section(evaluation),
            time_section(evaluation),
            acceptance_section(evaluation),
            plane_section(evaluation),
            grid_section(evaluation),
            ledger_section(evaluation),
            reading_section(evaluation),
            evidence_section(evaluation),
            noise_section(evaluation),
            *served_sections(evaluation),
            live_section(evaluation),
            latency_section(evaluation),
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
