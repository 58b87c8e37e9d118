"""What a measurement is. Plain data: no torch, no judgement; JSON in and out.

Counts are stored and ratios derived, so two runs can be summed without error. Fractions are in
[0, 1]; units are in the names. A field with a default was added to its schema version later: a
record without it still reads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from quantdraft.errors import UndefinedMetricError
from quantdraft.files import read_json, write_json

EVALUATION_SCHEMA_VERSION = 1
BENCH_SCHEMA_VERSION = 1

AcceptanceRule = Literal["greedy", "greedy_draft", "rejection", "exact_match"]
CheckResult = Literal["pass", "fail", "unsure", "undefined"]
Decision = Literal["go", "no-go", "inconclusive"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A point estimate with the ends of its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class AcceptanceCounts:
    """Speculative decoding counters, named as vLLM's are; replayed ones are expectations.

    Accepted tokens exclude the recovered or bonus token that ends every round. The first response
    token comes from the prefill and belongs to no round; a last round cut by the length limit
    counts as a round with all its proposals, as in vLLM's counters.
    """

    num_speculative_tokens: int
    num_tokens: int  # response tokens emitted in rounds
    num_drafts: float
    num_accepted_tokens_per_pos: tuple[float, ...]  # (num_speculative_tokens,)

    @property
    def num_draft_tokens(self) -> float:
        """Proposed tokens: `num_speculative_tokens` a round."""
        return self.num_drafts * self.num_speculative_tokens

    @property
    def num_accepted_tokens(self) -> float:
        """Accepted draft tokens over all positions."""
        return sum(self.num_accepted_tokens_per_pos)

    @property
    def acceptance_rate(self) -> float:
        """Accepted / proposed draft tokens, in [0, 1]."""
        if self.num_draft_tokens == 0:
            raise UndefinedMetricError(
                "acceptance rate is undefined: no draft token was proposed. "
                "Use responses of at least 2 tokens."
            )
        return self.num_accepted_tokens / self.num_draft_tokens

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens emitted a round, bonus included, in [1, k + 1]."""
        if self.num_drafts == 0:
            raise UndefinedMetricError(
                "mean acceptance length is undefined: there was no round. "
                "Use responses of at least 2 tokens."
            )
        return self.num_tokens / self.num_drafts

    @property
    def acceptance_rate_per_pos(self) -> tuple[float, ...]:
        """Share of rounds in which position j was accepted, (num_speculative_tokens,)."""
        if self.num_drafts == 0:
            raise UndefinedMetricError("acceptance per position is undefined: there was no round.")
        return tuple(n / self.num_drafts for n in self.num_accepted_tokens_per_pos)


@dataclass(frozen=True, slots=True)
class Slice:
    """Acceptance of both arms on one part of the tokens (a domain, a context length, …).

    Conditional acceptance is kept / asked: of the tokens that the draft was asked for, the share
    it kept. Tokens after a rejection were never asked for, so it is not accepted / proposed.
    """

    name: str
    num_prompts: int
    num_tokens: int
    baseline_conditional_acceptance: float | None
    candidate_conditional_acceptance: float | None
    # Baseline minus candidate, prompts resampled; None under MIN_PROMPTS prompts.
    conditional_acceptance_loss: Interval | None = None
    # What both ratios are made of, so that prompts can be resampled: one number for each of
    # `prompts`, which stand in `Evaluation.prompts` at these indices. Empty in older records.
    prompts: tuple[int, ...] = ()
    baseline_asked: tuple[float, ...] = ()
    baseline_kept: tuple[float, ...] = ()
    candidate_asked: tuple[float, ...] = ()
    candidate_kept: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class AcceptanceComparison:
    """Baseline and candidate on the same tokens, at one k. Intervals resample prompts."""

    num_speculative_tokens: int
    baseline: AcceptanceCounts
    candidate: AcceptanceCounts
    baseline_rate: Interval
    candidate_rate: Interval
    acceptance_rate_loss: Interval  # baseline minus candidate, absolute: positive = worse
    baseline_length: Interval
    candidate_length: Interval
    length_ratio: Interval  # candidate / baseline: under 1 = worse
    # Of the share of rounds that kept each position, (num_speculative_tokens,); () unknown.
    acceptance_loss_per_pos: tuple[Interval, ...] = ()


@dataclass(frozen=True, slots=True)
class StepSamples:
    """Every timing of one kind of step of one arm, in the order of the interleaved blocks.

    `samples_ms[i]` of two arms belong to the same block, so ratios are paired by index.
    """

    samples_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ArmLatency:
    """One model's measured steps at one operating point (batch, context)."""

    name: str  # "baseline" | "candidate" | "control" | "target"
    compute_dtype: str
    kernels: tuple[str, ...]  # e.g. ("int4pack_cpu", "linear_float32")
    weight_bytes: int  # resident bytes of the arm's weights
    steps: dict[int, StepSamples]  # number of new tokens m -> samples; a draft has m = 1 only
    # What one step of one token reads at this batch and context, by the ledger: weights as the
    # checkpoint stores them, and the keys and values of every row.
    step_bytes: int | None = None
    head_bytes: int | None = None  # the output head's part of them
    head_step: StepSamples | None = None  # the head's product alone, in the same blocks
    # CUDA: most bytes allocated on the device while the arm's steps ran, all arms' weights
    # included. CPU: the same of the whole process's resident set, which never falls.
    peak_memory_bytes: int | None = None
    mode: str = "eager"  # "eager" | "fused" | "compiled" | "graph"
    # What decided the mode: ms of a step of the baseline's first layer, run each way.
    mode_trial_ms: dict[str, float] = field(default_factory=dict)
    runtime: str = "transformers modules"  # "native decoder" | "transformers modules"


@dataclass(frozen=True, slots=True)
class Roofline:
    """What this machine can do at best, measured beside the steps: the limits they are held to.

    Bandwidths are the best of their samples: a limit is what was reached once. Copy bandwidth
    counts bytes read and bytes written; read bandwidth is for those who only read, as a draft
    step does, and may be higher or lower.
    """

    copy_bytes_per_s: float
    read_bytes_per_s: float
    matrix_flops_per_s: dict[str, float]  # per float type, the best over the sizes tried
    copy_samples_bytes_per_s: tuple[float, ...] = ()
    read_samples_bytes_per_s: tuple[float, ...] = ()
    buffer_bytes: int = 0  # of one buffer: a copy has two
    num_threads: int = 0

    def limit_ms(self, num_bytes: float) -> float:
        """The least time in which `num_bytes` pass at the measured copy bandwidth."""
        return num_bytes / self.copy_bytes_per_s * 1e3

    def bandwidth_fraction(self, num_bytes: float, step_ms: float) -> float:
        """Bytes of a step over its time, as a share of the copy bandwidth.

        Above 1 where a model is small enough for the caches: memory is then no limit.
        """
        return self.limit_ms(num_bytes) / step_ms


@dataclass(frozen=True, slots=True)
class Latency:
    """What was timed, where, and what could not be.

    An arm that is absent from `arms` was not measured; `undefined` says why, by arm name.
    """

    engine: str
    device: str
    num_threads: int
    batch_size: int
    context_length: int
    arms: dict[str, ArmLatency]
    undefined: dict[str, str] = field(default_factory=dict)
    load_average: tuple[float, float] | None = None  # before and after the timing
    roofline: Roofline | None = None


@dataclass(frozen=True, slots=True)
class SpeedPoint:
    """The speed equation at one pair of k, with the measured numbers filled in.

    A field is None where the latency it needs is undefined.
    """

    baseline_num_speculative_tokens: int
    candidate_num_speculative_tokens: int
    baseline_draft_step_ms: float | None
    candidate_draft_step_ms: float | None
    baseline_verify_step_ms: float | None
    candidate_verify_step_ms: float | None
    autoregressive_step_ms: float | None
    baseline_ms_per_token: float | None
    candidate_ms_per_token: float | None
    speedup_over_baseline: Interval | None
    speedup_over_autoregressive: Interval | None
    baseline_speedup_over_autoregressive: Interval | None
    control_speedup: Interval | None  # baseline against itself: the noise floor
    draft_latency_saving: Interval | None  # 1 - candidate / baseline
    break_even_length: float | None  # candidate's mean acceptance length at which speedup is 1
    break_even_rate: float | None


@dataclass(frozen=True, slots=True)
class Projection:
    """What the speed would be if a draft step shrank as its bytes do: no measurement, no check."""

    num_speculative_tokens: int
    ceiling: float  # baseline bytes / candidate bytes of a draft step
    candidate_draft_step_ms: float
    speedup_over_baseline: float


@dataclass(frozen=True, slots=True)
class LiveCheck:
    """The live loop on some prompts: does it emit the target's text, and do its rounds agree?"""

    num_speculative_tokens: int
    arm: str  # "baseline" | "candidate"
    prompt_ids: tuple[str, ...]
    num_drafts_live: tuple[float, ...]
    num_drafts_replayed: tuple[float, ...]
    num_identical_texts: int
    num_near_ties: int  # texts that part at a near-tie of the target's own logits
    num_divergent: int  # texts that part elsewhere: an alarm
    is_expectation: bool = False  # True when rounds agree only in the mean (sampling rules)
    # False in 16 bits, or where the draft rounds its activations to 8: near-ties of the draft then
    # fall either way in two runs of different batch shape, and rounds differ by a few.
    is_exact: bool = True


@dataclass(frozen=True, slots=True)
class ServedRequest:
    """One prompt, answered once by one server; requests are sent one at a time.

    The counters are the differences of the engine's own around this request. Times are seconds
    from sending it.
    """

    prompt_id: str
    num_tokens: int
    num_first_tokens: int  # that came first, from the prefill: their time is no decoding
    seconds: float
    first_token_seconds: float
    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens_per_pos: tuple[int, ...]  # empty without a draft
    num_drafts_replayed: float | None  # on the text the engine emitted; None without a draft
    text: Literal["identical", "near-tie", "divergent", "sampled"]  # against the traffic's

    @property
    def decode_seconds(self) -> float:
        """From the first token to the last."""
        return self.seconds - self.first_token_seconds

    @property
    def num_decoded(self) -> int:
        """Tokens that came after the first."""
        return self.num_tokens - self.num_first_tokens


@dataclass(frozen=True, slots=True)
class ServedArm:
    """One server's requests, in the order they were sent: every prompt comes several times."""

    name: str  # "autoregressive" | "baseline" | "candidate" | "control"
    requests: tuple[ServedRequest, ...]
    # False in 16 bits, or where the draft rounds its activations: the engine's kernels and the
    # replay's then differ at near-ties of the draft.
    is_exact: bool = True


@dataclass(frozen=True, slots=True)
class Served:
    """What a serving engine did with the traffic: times, its own counters, its text.

    An arm that is absent from `arms` was not served; `undefined` says why, by arm name.
    """

    engine: str
    version: str
    device: str
    dtype: str
    num_speculative_tokens: int
    speculative: dict[str, Any]  # the user's own keys of the speculative config
    is_interleaved: bool  # all servers up at once, requests in turns; False: one after another
    arms: dict[str, ServedArm]
    undefined: dict[str, str] = field(default_factory=dict)
    is_expectation: bool = False  # True when rounds agree only in the mean (sampling rules)
    load_average: tuple[float, float] | None = None  # before and after


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that stops a verdict. `code` is stable, `message` says what to do."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the verdict: what was observed against its limit."""

    name: str
    kind: Literal["decides", "advises"]
    result: CheckResult
    observed: Interval | None
    limit: float | None
    comparison: Literal[">=", ">", "<="] | None
    reason: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """go, no-go or inconclusive, with every check that led there and what would settle doubt."""

    decision: Decision
    summary: str
    checks: tuple[Check, ...]
    alarms: tuple[Alarm, ...]
    advice: tuple[str, ...]
    to_settle: str | None  # e.g. "about 130 prompts (now 32)"; None unless inconclusive


@dataclass(frozen=True, slots=True)
class PromptReplay:
    """One prompt's replayed rounds, for every k of `Evaluation.num_speculative_tokens`, per arm."""

    prompt_id: str
    domain: str
    num_prompt_tokens: int
    num_tokens: int
    baseline_num_drafts: tuple[float, ...]
    candidate_num_drafts: tuple[float, ...]
    baseline_num_accepted: tuple[float, ...]
    candidate_num_accepted: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A prompt on which the candidate lost much, token by token: for reading, not for counting.

    A keep is the probability that the token came from the draft, given that it was asked for.
    """

    prompt_id: str
    domain: str
    prompt_end: str  # the last characters of the prompt
    tokens: tuple[str, ...]  # of the response, as text; the first comes from the prefill
    baseline_keep: tuple[float, ...]  # (tokens,)
    candidate_keep: tuple[float, ...]
    num_tokens_left_out: int = 0  # of a long response


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation: what was measured, what follows, and what it takes to repeat it."""

    schema_version: int
    name: str  # the recipe's name, or the candidate's
    created: str  # ISO 8601, UTC
    acceptance_rule: AcceptanceRule
    num_speculative_tokens: tuple[int, ...]  # the k that were replayed
    operating_point: SpeedPoint
    equal_k: tuple[SpeedPoint, ...]  # baseline and candidate at the same k, for every k
    best_k: dict[
        str, int | None
    ]  # "baseline", "candidate": k of least ms per token; None undefined
    acceptance: tuple[AcceptanceComparison, ...]  # one per k
    prompts: tuple[PromptReplay, ...]
    by_position: tuple[Slice, ...]  # thirds of the response
    by_context: tuple[Slice, ...]
    by_domain: tuple[Slice, ...]
    latency: Latency
    live: tuple[LiveCheck, ...]
    verdict: Verdict
    ledger: dict[str, Any]  # see quantdraft.ledger.ledger_summary
    provenance: dict[str, Any]  # versions, device, hashes, seeds, command, models
    served: Served | None = None  # None: no serving engine was asked
    grid: tuple[Latency, ...] = ()  # more points (batch, context) than the one of `latency`
    projection: Projection | None = None  # where the candidate's speed could not be measured
    disagreements: tuple[Disagreement, ...] = ()  # most rounds lost first; () where none, or unread


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


def read_evaluation(path: Path) -> Evaluation:
    """Read a record; an unknown schema version or a foreign file is a clear error."""
    return read_json(path, Evaluation, EVALUATION_SCHEMA_VERSION)


def read_bench(path: Path) -> Bench:
    """Read a bench.json; an unknown schema version or a foreign file is a clear error."""
    return read_json(path, Bench, BENCH_SCHEMA_VERSION)
