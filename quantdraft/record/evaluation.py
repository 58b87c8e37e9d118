"""The records on the disk: an evaluation, a bench."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantdraft.common.files import write_json
from quantdraft.record.acceptance import (
    AcceptanceComparison,
    AcceptanceRule,
    Disagreement,
    PromptReplay,
    Slice,
)
from quantdraft.record.analysis import Analysis, Diagnosis
from quantdraft.record.plane import Plane
from quantdraft.record.served import Served
from quantdraft.record.terms import Interval, K, nearest_to_usual
from quantdraft.record.timing import Latency, LiveCheck, Projection, SpeedPoint
from quantdraft.record.trace import TraceFigures, TraceSpeed
from quantdraft.record.verdict import Verdict

RECORD_FILE = "evaluation.json"  # of a run, in its directory
EVALUATION_SCHEMA_VERSION = 1
BENCH_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation: what was measured, what follows, and what it takes to repeat it."""

    schema_version: int
    name: str  # the recipe's name, or the candidate's
    created: str  # ISO 8601, UTC
    acceptance_rule: AcceptanceRule
    num_speculative_tokens: tuple[K, ...]  # the k that were replayed
    operating_point: SpeedPoint
    equal_k: tuple[SpeedPoint, ...]  # baseline and candidate at the same k, for every k
    best_k: dict[str, K | None]  # "baseline", "candidate": k of least ms per token; None undefined
    acceptance: tuple[AcceptanceComparison, ...]  # one per k
    prompts: tuple[PromptReplay, ...]
    by_position: tuple[Slice, ...]  # thirds of the response
    by_context: tuple[Slice, ...]
    by_domain: tuple[Slice, ...]
    latency: Latency
    live: tuple[LiveCheck, ...]
    verdict: Verdict
    ledger: dict[str, Any]  # see quantdraft.record.step_bytes.ledger_summary
    provenance: dict[str, Any]  # versions, device, hashes, seeds, command, models
    served: Served | None = None  # None: no serving engine was asked
    grid: tuple[Latency, ...] = ()  # more points (batch, context) than the one of `latency`
    projection: Projection | None = None  # where the candidate's speed could not be measured
    disagreements: tuple[Disagreement, ...] = ()  # most rounds lost first; () where none, or unread
    # The k of the slices and disagreements; None: the candidate's k of the operating point.
    slices_k: K | None = None
    # By what else a log says of its requests: "model", "finish reason", "tools", "decoding"; only
    # what has more than one value.
    by_trait: dict[str, tuple[Slice, ...]] = field(default_factory=dict)
    trace: TraceFigures | None = None  # None: none was given, and the operating point is judged
    analysis: Analysis | None = None  # by the judge; None: an older record that it has not read

    @property
    def known_analysis(self) -> Analysis:
        """The analysis; ValueError for a record that the judge has not filled in."""
        if self.analysis is None:
            raise ValueError("this record has no analysis: fill it in by quantdraft.judge.analysis")
        return self.analysis

    @property
    def judged_speed(self) -> SpeedPoint | TraceSpeed | None:
        """The speeds that the verdict was given on: over the trace where there is one.

        None where the trace's are undefined; fields of an operating point may be so by themselves.
        """
        return self.operating_point if self.trace is None else self.trace.speed

    @property
    def speedup_over_baseline(self) -> Interval | None:
        """The candidate's speedup over the baseline draft that the verdict was given on."""
        found = self.judged_speed
        return None if found is None else found.speedup_over_baseline

    @property
    def speedup_over_autoregressive(self) -> Interval | None:
        """The candidate's speedup over the target alone that the verdict was given on."""
        found = self.judged_speed
        return None if found is None else found.speedup_over_autoregressive

    @property
    def causes(self) -> tuple[Diagnosis, ...]:
        """The diagnoses that a verdict other than a go rests on."""
        codes = self.verdict.rests_on
        return tuple(line for line in self.known_analysis.diagnoses if line.code in codes)

    @property
    def shown_k(self) -> int:
        """The k at which acceptance is shown, for both arms and in every comparison of runs.

        It follows from what was replayed, and not from a best k, which the timing's noise may move.
        """
        return nearest_to_usual(self.num_speculative_tokens)

    @property
    def known_slices_k(self) -> int:
        """The k of the slices and disagreements, in older records too."""
        operating_k = self.operating_point.candidate_num_speculative_tokens
        return operating_k if self.slices_k is None else self.slices_k

    def acceptance_at(self, k: int) -> AcceptanceComparison | None:
        """Return both arms' acceptance at one k, or None where it was not replayed."""
        found = (row for row in self.acceptance if row.num_speculative_tokens == k)
        return next(found, None)

    @property
    def acceptance_at_its_k(self) -> AcceptanceComparison | None:
        """Both arms' acceptance at the candidate's k of the operating point."""
        return self.acceptance_at(self.operating_point.candidate_num_speculative_tokens)

    def point_at(self, k: int) -> SpeedPoint | None:
        """Return both arms' speed at one k, or None where it was not replayed."""
        points = (p for p in self.equal_k if p.candidate_num_speculative_tokens == k)
        return next(points, None)

    @property
    def plane(self) -> Plane | None:
        """The break-even plane at the candidate's k; None where a step was not timed."""
        k = self.operating_point.candidate_num_speculative_tokens
        point, acceptance = self.point_at(k), self.acceptance_at_its_k
        if point is None or acceptance is None:
            return None
        if point.baseline_draft_step_ms is None or point.baseline_verify_step_ms is None:
            return None
        return Plane(
            k,
            point.baseline_draft_step_ms,
            point.baseline_verify_step_ms,
            acceptance.baseline_length.value,
        )


@dataclass(frozen=True, slots=True)
class Bench:
    """Step times of a target and of several drafts over batch, context and new tokens.

    A point is a Latency whose arms are "target", "baseline", "control" and the candidates by
    name, all timed in the same blocks. An arm or a point that was left out has its reason in
    `undefined`.
    """

    schema_version: int
    created: str  # ISO 8601, UTC
    name: str  # the shape, or the baseline's name
    has_random_weights: bool  # a published shape without its weights: latency only
    candidates: tuple[str, ...]
    points: tuple[Latency, ...]
    provenance: dict[str, Any]


def write_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Write the record, whole or not at all."""
    write_json(path, evaluation)
