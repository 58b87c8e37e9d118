"""Times: steps, arms, the machine's limits, the live loop, and the speeds that follow."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

from quantdraft.record.terms import (
    Amount,
    Arm,
    Count,
    Finite,
    Interval,
    K,
    Milliseconds,
    Positive,
    Rate,
    Ratio,
    Seconds,
)


@dataclass(frozen=True, slots=True)
class StepSamples:
    """Every timing of one kind of step of one arm, in the order of the interleaved blocks.

    Samples of two steps are paired where their blocks are the same. Steps that the verdict does not
    turn on are left out of later blocks, so one step may have more samples than another.
    """

    samples_ms: tuple[Milliseconds, ...]
    blocks: tuple[Count, ...] = ()  # of each sample; empty: sample i is of block i

    @property
    def median_ms(self) -> float | None:
        """The middle sample; None where there is none."""
        return median(self.samples_ms) if self.samples_ms else None


@dataclass(frozen=True, slots=True)
class ArmLatency:
    """One model's measured steps at one operating point (batch, context)."""

    name: str  # "baseline" | "candidate" | "control" | "target" | "target-control"
    compute_dtype: str
    kernels: tuple[str, ...]  # e.g. ("int4pack_cpu", "linear_float32")
    weight_bytes: Count  # resident bytes of the arm's weights
    steps: dict[Positive, StepSamples]  # number of new tokens m -> samples; a draft has m = 1 only
    # What one step of one token reads at this batch and context, by the ledger: weights as the
    # checkpoint stores them, and the keys and values of every row.
    step_bytes: Count | None = None
    head_bytes: Count | None = None  # the output head's part of them
    head_step: StepSamples | None = None  # the head's product alone, in the same blocks
    # CUDA: the arm's weights, and the most bytes that its steps allocated beside them (older
    # records: everything on the device). CPU: the process's resident set, which never falls.
    peak_memory_bytes: Count | None = None
    mode: str = "eager"  # "eager" | "fused" | "compiled" | "graph"
    # What decided the mode: ms of a step of the baseline's first layer, run each way.
    mode_trial_ms: dict[str, Milliseconds] = field(default_factory=dict)
    runtime: str = "transformers modules"  # "native decoder" | "transformers modules"
    # Of the quantized layers alone: bytes of the largest packing of each, and what their scheme
    # makes of them. None: a record from before they were told apart; 0: there are none.
    quantized_bytes: Count | None = None
    promised_bytes: Count | None = None
    # By the judge: the baseline's step over this one's, one token, paired by block (above 1 =
    # faster), and the head's product over the step. None: not timed.
    step_speedup: Interval | None = None
    head_time_share: Ratio | None = None

    @property
    def median_ms(self) -> float | None:
        """The middle of the steps of one token; None where none was timed."""
        return self.steps[1].median_ms if 1 in self.steps else None


@dataclass(frozen=True, slots=True)
class StepFigures:
    """What one arm's step of one token comes to. A field is None where it was not measured."""

    median_ms: float | None
    ratio: Interval | None  # baseline / arm, paired by block: above 1 = faster
    byte_ratio: float | None  # the same of bytes: what `ratio` comes to where memory is the limit
    bytes_per_s: float | None  # the step's bytes, by the ledger, over its median time
    bandwidth_fraction: float | None  # of the copy bandwidth measured in the same run
    limit_ms: float | None  # the step's bytes at that bandwidth
    head_bytes_share: float | None  # the output head's part of the step's bytes
    head_time_share: float | None  # its product alone over the step, paired by block


@dataclass(frozen=True, slots=True)
class Roofline:
    """The machine's limits, measured beside the steps that are held to them.

    Bandwidths are the best of their samples: a limit is what was reached once. Copy bandwidth
    counts bytes read and bytes written; read bandwidth is for those who only read, as a draft
    step does, and may be higher or lower.
    """

    copy_bytes_per_s: Rate
    read_bytes_per_s: Rate
    matrix_flops_per_s: dict[str, Rate]  # per float type, the best over the sizes tried
    copy_samples_bytes_per_s: tuple[Rate, ...] = ()
    read_samples_bytes_per_s: tuple[Rate, ...] = ()
    buffer_bytes: Count = 0  # of one buffer: a copy has two
    num_threads: Count = 0

    def limit_ms(self, num_bytes: float) -> float:
        """Return the least time in which `num_bytes` pass at the measured copy bandwidth."""
        return num_bytes / self.copy_bytes_per_s * 1e3

    def bandwidth_fraction(self, num_bytes: float, step_ms: float) -> float:
        """Return the bytes of a step over its time, as a share of the copy bandwidth.

        Above 1 where a model is small enough for the caches: memory is then no limit.
        """
        return self.limit_ms(num_bytes) / step_ms


@dataclass(frozen=True, slots=True)
class GpuState:
    """The state of a card at one moment.

    Utilisation is that of the last second or less, this program's own work included: before a point
    is timed, its arms were just loaded.
    """

    utilization_percent: Amount | None = None  # of that time, the part with a kernel on the card
    sm_clock_mhz: Amount | None = None
    memory_clock_mhz: Amount | None = None
    power_w: Amount | None = None
    power_limit_w: Amount | None = None
    temperature_c: Amount | None = None
    memory_used_mib: Amount | None = None  # by all programs
    # Programs that compute on the card, this one included; in a container the driver may hide them.
    num_programs: Count | None = None


@dataclass(frozen=True, slots=True)
class Latency:
    """The timed arms at one batch and context, and what could not be timed.

    An arm that is absent from `arms` was not measured; `undefined` says why, by arm name.
    """

    engine: str
    device: str
    num_threads: Count
    batch_size: Positive
    context_length: Count
    arms: dict[str, ArmLatency]
    undefined: dict[str, str] = field(default_factory=dict)
    load_average: tuple[Amount, Amount] | None = None  # before and after the timing
    gpu_states: tuple[GpuState, ...] = ()  # the card before and after the timing of each load
    roofline: Roofline | None = None
    # The load of each block: all arms were loaded anew, in fresh memory, for every load. Two loads
    # of one model differ in speed, which blocks of one load cannot show. Empty: one load.
    loads: tuple[Count, ...] = ()
    load_seconds: Seconds | None = None  # to load all arms once
    timing_seconds: Seconds | None = None  # that were given to the blocks
    # Contradictions in the first steps, after which kernels were chosen and all was timed again.
    retried: tuple[str, ...] = ()

    @property
    def num_loads(self) -> int:
        """Times that every arm was loaded."""
        return len(set(self.loads)) or 1

    def byte_ratio(self, arm: str) -> float | None:
        """Return the bytes of the baseline's step over the arm's; None where one is not known."""
        before = self.arms["baseline"].step_bytes if "baseline" in self.arms else None
        after = self.arms[arm].step_bytes
        return before / after if before and after else None

    def bandwidth_fraction(self, arm: str) -> float | None:
        """Return the share of the copy bandwidth that a step reaches; None where not measured."""
        size, middle = self.arms[arm].step_bytes, self.arms[arm].median_ms
        if self.roofline is None or not size or not middle:
            return None
        return self.roofline.bandwidth_fraction(size, middle)

    def figures(self, arm: str) -> StepFigures:
        """Return what the step of a timed arm comes to; KeyError for an arm that was not timed."""
        found, roof = self.arms[arm], self.roofline
        size, middle, head = found.step_bytes, found.median_ms, found.head_bytes
        return StepFigures(
            median_ms=middle,
            ratio=found.step_speedup,
            byte_ratio=self.byte_ratio(arm),
            bytes_per_s=size / middle * 1e3 if size and middle else None,
            bandwidth_fraction=self.bandwidth_fraction(arm),
            limit_ms=roof.limit_ms(size) if roof and size else None,
            head_bytes_share=head / size if head is not None and size else None,
            head_time_share=found.head_time_share,
        )


class ArmSpeed(NamedTuple):
    """One arm's part of a SpeedPoint."""

    num_speculative_tokens: int
    draft_step_ms: float | None
    verify_step_ms: float | None
    ms_per_token: float | None
    speedup_over_autoregressive: Interval | None

    @property
    def drafting_ms(self) -> float | None:
        """All draft steps of one round."""
        return (
            None if self.draft_step_ms is None else self.num_speculative_tokens * self.draft_step_ms
        )


@dataclass(frozen=True, slots=True)
class SpeedPoint:
    """The speed equation at one pair of k, with the measured numbers filled in.

    A field is None where the latency it needs is undefined.
    """

    baseline_num_speculative_tokens: K
    candidate_num_speculative_tokens: K
    baseline_draft_step_ms: Milliseconds | None
    candidate_draft_step_ms: Milliseconds | None
    baseline_verify_step_ms: Milliseconds | None
    candidate_verify_step_ms: Milliseconds | None
    autoregressive_step_ms: Milliseconds | None
    baseline_ms_per_token: Milliseconds | None
    candidate_ms_per_token: Milliseconds | None
    speedup_over_baseline: Interval | None
    speedup_over_autoregressive: Interval | None
    baseline_speedup_over_autoregressive: Interval | None
    control_speedup: Interval | None  # baseline against itself: the noise floor
    draft_latency_saving: Interval | None  # 1 - candidate / baseline
    break_even_length: Ratio | None  # candidate's mean acceptance length at which speedup is 1
    break_even_rate: Finite | None
    target_control_speedup: Interval | None = None  # the target's single step against itself

    def of(self, arm: Arm) -> ArmSpeed:
        """Return one arm's numbers."""
        if arm == "baseline":
            return ArmSpeed(
                self.baseline_num_speculative_tokens,
                self.baseline_draft_step_ms,
                self.baseline_verify_step_ms,
                self.baseline_ms_per_token,
                self.baseline_speedup_over_autoregressive,
            )
        return ArmSpeed(
            self.candidate_num_speculative_tokens,
            self.candidate_draft_step_ms,
            self.candidate_verify_step_ms,
            self.candidate_ms_per_token,
            self.speedup_over_autoregressive,
        )

    @property
    def draft_speedup(self) -> Interval | None:
        """Baseline over candidate draft step, from the paired saving; None where not measured."""
        saving = self.draft_latency_saving
        if saving is None or saving.high >= 1:
            return None
        return Interval(1 / (1 - saving.value), 1 / (1 - saving.low), 1 / (1 - saving.high))


@dataclass(frozen=True, slots=True)
class Projection:
    """What the speed would be if a draft step shrank as its bytes do: no measurement, no check."""

    num_speculative_tokens: K
    ceiling: Ratio  # baseline bytes / candidate bytes of a draft step
    candidate_draft_step_ms: Milliseconds
    speedup_over_baseline: Ratio


@dataclass(frozen=True, slots=True)
class LiveCheck:
    """The live loop on some prompts: its text beside the target's, its rounds beside replay's."""

    num_speculative_tokens: K
    arm: str  # "baseline" | "candidate"
    prompt_ids: tuple[str, ...]
    num_drafts_live: tuple[Amount, ...]
    num_drafts_replayed: tuple[Amount, ...]
    num_identical_texts: Count
    num_near_ties: Count  # texts that part at a near-tie of the target's own logits
    num_divergent: Count  # texts that part elsewhere: an alarm
    is_expectation: bool = False  # True when rounds agree only in the mean (sampling rules)
    # False in 16 bits, or where the draft rounds its activations to 8: near-ties of the draft then
    # fall either way in two runs of different batch shape, and rounds differ by a few.
    is_exact: bool = True
    # Texts of the loop's own, held against none: the traffic does not say how it was sampled.
    num_own_texts: Count = 0
    # Rounds if every near-tie of the draft were kept, and if none were; () in exact arithmetic.
    num_drafts_low: tuple[Amount, ...] = ()
    num_drafts_high: tuple[Amount, ...] = ()

    @property
    def num_texts(self) -> int:
        """Prompts that the loop answered; `prompt_ids` are those whose rounds were counted."""
        compared = self.num_identical_texts + self.num_near_ties + self.num_divergent
        return compared + self.num_own_texts or len(self.prompt_ids)

    @property
    def num_equal(self) -> int:
        """Prompts whose rounds live and replayed are the same number."""
        pairs = zip(self.num_drafts_live, self.num_drafts_replayed, strict=True)
        return sum(abs(live - replayed) < 1e-6 for live, replayed in pairs)
