"""The records: what was measured and what follows from it. Plain data, JSON in and out.

Counts are stored and ratios derived, so two runs can be summed without error. Fractions are in
[0, 1]; units are in the names. A field with a default was added to its schema version later: a
record without it still reads.
"""

from quantdraft.record.acceptance import (
    AcceptanceComparison,
    AcceptanceCounts,
    AcceptanceRule,
    Disagreement,
    PromptReplay,
    Slice,
)
from quantdraft.record.analysis import Analysis, Diagnosis, GridPoint, TokenFates
from quantdraft.record.comparison import (
    COMPARISON_SCHEMA_VERSION,
    ComparedRun,
    ComparedRuns,
    Comparison,
    ParetoPoint,
    RecipePair,
)
from quantdraft.record.evaluation import (
    BENCH_SCHEMA_VERSION,
    EVALUATION_SCHEMA_VERSION,
    RECORD_FILE,
    Bench,
    Evaluation,
    write_evaluation,
)
from quantdraft.record.reading import read_bench, read_evaluation
from quantdraft.record.served import Served, ServedArm, ServedRequest
from quantdraft.record.terms import ARMS, MIN_PROMPTS, Arm, Interval
from quantdraft.record.timing import (
    ArmLatency,
    GpuState,
    Latency,
    LiveCheck,
    Projection,
    Roofline,
    SpeedPoint,
    StepFigures,
    StepSamples,
)
from quantdraft.record.verdict import MIN_SPEEDUP, Alarm, Check, CheckResult, Decision, Verdict
