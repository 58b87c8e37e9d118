"""What the user asks of `evaluate`, by what is set (models, traffic, timing), and of `capture`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from quantdraft.checkpoints.checkpoint import name_of
from quantdraft.common.files import coerce_paths
from quantdraft.engines.registry import measured_engine
from quantdraft.engines.serving_settings import ServingSettings
from quantdraft.errors import OptionError
from quantdraft.record import AcceptanceRule
from quantdraft.record.choices import DtypeChoice, ModeChoice
from quantdraft.record.terms import ALL_KS
from quantdraft.traffic.responses import ReadSettings
from quantdraft.traffic.traffic import Sampling


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """The models, by directory or Hub id, and where and in which float type they are run."""

    candidate: str
    target: str | None = None
    baseline: str | None = None  # None: the draft that the candidate was made from
    device: str | None = None
    dtype: DtypeChoice = "auto"  # of replay and the live loop; of an engine's servers
    threads: int | None = None

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings, one sentence each."""
        yield from below_1("--threads", self.threads)


@dataclass(frozen=True, slots=True)
class TrafficSettings:
    """The traffic: a file of it, or prompts that the target answers first."""

    traffic_path: Path | None = None
    prompts: Path | None = None
    max_new_tokens: int = 128
    # With prompts: how they are answered, None: greedily. With traffic: how a log was sampled.
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    acceptance_rule: AcceptanceRule | None = None  # None: by the traffic's sampling
    read: ReadSettings = field(default_factory=ReadSettings)  # of a log, or of the prompts
    # Without the half that recipes are calibrated on, also for a candidate that was not.
    is_held_out: bool = False

    def __post_init__(self) -> None:
        coerce_paths(self)

    def sampling(self, seed: int) -> Sampling:
        """Return the sampling that is given; greedy, without limits, where nothing is."""
        return Sampling(
            self.temperature or 0.0,
            1.0 if self.top_p is None else self.top_p,
            self.top_k or 0,
            seed,
        )

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings, one sentence each."""
        if (self.traffic_path is None) == (self.prompts is None):
            yield "give either --traffic (from `quantdraft capture`, or a log) or --prompts."
        yield from below_1("--max-new-tokens", self.max_new_tokens)


@dataclass(frozen=True, slots=True)
class TimingSettings:
    """The points at which steps are timed, for how long, and how the steps run."""

    batch_size: int = 1
    context_length: int | None = None  # None: the median of the traffic's own
    batch_sizes: tuple[int, ...] | None = None  # timed too, with every one of context_lengths
    context_lengths: tuple[int, ...] | None = None
    latency_seconds: float = 20.0  # for each point
    mode: ModeChoice = "auto"
    no_latency: bool = False
    trace: Path | None = None  # on whose batches and contexts the verdict is given
    trace_servers: int = 1  # that share its requests
    trace_ms_per_token: float | None = None  # of each request; None: as the baseline was timed

    def __post_init__(self) -> None:
        coerce_paths(self)

    @property
    def longest_context(self) -> int:
        """The longest context that is asked for, 0 where none is."""
        return max((self.context_length or 0, *(self.context_lengths or ())))

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings, one sentence each."""
        yield from below_1("--batch-size", self.batch_size)
        yield from below_1("--context-length", self.context_length)
        if self.latency_seconds <= 0:
            yield f"--latency-seconds {self.latency_seconds} must be above 0."
        yield from below_1("--trace-servers", self.trace_servers)
        if self.trace_ms_per_token is not None and not self.trace_ms_per_token > 0:
            yield f"--trace-ms-per-token {self.trace_ms_per_token} must be above 0."
        if self.trace is not None and self.no_latency:
            yield "--trace weighs timed points, and --no-latency times none. Give one of them."
        if self.trace is None and (self.trace_servers, self.trace_ms_per_token) != (1, None):
            yield "--trace-servers and --trace-ms-per-token need --trace."


@dataclass(frozen=True, slots=True)
class EvaluateSettings:
    """What `evaluate` is asked for; defaults are the command line's."""

    models: ModelSettings
    traffic: TrafficSettings = field(default_factory=TrafficSettings)
    ks: tuple[int, ...] = ALL_KS
    timing: TimingSettings = field(default_factory=TimingSettings)
    serving: ServingSettings = field(default_factory=ServingSettings)
    live_prompts: int = 4
    policy: Path | None = None
    seed: int = 0
    output: Path | None = None  # None: runs/<candidate>
    force: bool = False
    keeps_replays: bool = True  # the baseline's, in the user's cache for the next run
    sweep_replays: Path | None = None  # where runs of one sweep share it when that keeps none

    def __post_init__(self) -> None:
        coerce_paths(self)

    @property
    def run_dir(self) -> Path:
        """The directory of the run: the output, or runs/ and the candidate's name."""
        return self.output or Path("runs") / name_of(Path(self.models.candidate))

    def check(self) -> None:
        """Raise OptionError with every problem of the settings, and of those that do not fit."""
        problems = [
            *self.traffic.problems(),
            *self._misfits(),
            *self.serving.problems(),
            *self.models.problems(),
            *self.timing.problems(),
        ]
        if problems:
            raise OptionError(" ".join(problems))
        if not self.serving.is_native:
            measured_engine(self.serving.engine).passed_on.require(self.serving.args)

    def _misfits(self) -> Iterator[str]:
        serving = self.serving
        if self.timing.trace is not None and self.models.target is None:
            yield "--trace needs --target: without its steps there is no speed to weigh."
        if self.traffic.prompts is not None and self.models.target is None:
            yield "--prompts needs --target: it is the target that answers them."
        if serving.is_native:
            return
        if self.models.target is None:
            yield f"--engine {serving.engine} needs --target: it is what the engine serves."
        if self.timing.batch_size != 1:
            yield (
                f"--batch-size {self.timing.batch_size}: requests are sent to the engine "
                "one at a time, so that its counters are each prompt's own. Leave it out."
            )
        if self.timing.trace is not None:
            yield (
                "--trace weighs batches, and requests are sent to the engine one at a time. Leave "
                "it out, or time with the native engine."
            )
        if serving.k is not None and serving.k not in self.ks:
            yield f"--engine-k {serving.k} is not replayed. Add it to -k."


@dataclass(frozen=True, slots=True)
class SharedSettings:
    """What the evaluations of a sweep or a choice have in common; fields as in the parts above."""

    device: str | None = None
    dtype: DtypeChoice = "auto"
    threads: int | None = None
    acceptance_rule: AcceptanceRule | None = None
    ks: tuple[int, ...] = ALL_KS
    timing: TimingSettings = field(default_factory=TimingSettings)
    live_prompts: int = 4
    policy: Path | None = None
    seed: int = 0
    read: ReadSettings = field(default_factory=ReadSettings)  # of a log; calibration reads so too

    def __post_init__(self) -> None:
        coerce_paths(self)

    def evaluation(
        self,
        candidate: str,
        target: str | None,
        baseline: str,
        traffic_path: Path,
        output: Path,
        sweep_replays: Path | None = None,
        is_held_out: bool = False,
    ) -> EvaluateSettings:
        """Return the settings of one candidate's evaluation."""
        return EvaluateSettings(
            ModelSettings(candidate, target, baseline, self.device, self.dtype, self.threads),
            TrafficSettings(
                traffic_path,
                acceptance_rule=self.acceptance_rule,
                read=self.read,
                is_held_out=is_held_out,
            ),
            self.ks,
            self.timing,
            live_prompts=self.live_prompts,
            policy=self.policy,
            seed=self.seed,
            output=output,
            sweep_replays=sweep_replays,
        )


@dataclass(frozen=True, slots=True)
class CaptureSettings:
    """What `capture` is asked for; defaults are the command line's."""

    target: str
    prompts: Path
    output: Path
    sampling: Sampling = field(default_factory=Sampling)  # greedy
    max_new_tokens: int = 128
    batch_size: int | None = None  # prompts that are answered at a time; None: the engine's choice
    device: str | None = None
    dtype: DtypeChoice = "auto"
    limit: int | None = None  # ask only the first so many prompts
    force: bool = False  # replace an output, and discard an unfinished one of other settings
    trust_remote_code: bool = False
    target_url: str | None = None  # of a vLLM server; `target` then gives the tokenizer alone
    read: ReadSettings = field(default_factory=ReadSettings)  # of the prompts

    def __post_init__(self) -> None:
        coerce_paths(self)

    def check(self) -> None:
        """Raise OptionError with every problem of the settings."""
        problems = [*below_1("--batch-size", self.batch_size), *below_1("--limit", self.limit)]
        if self.max_new_tokens < 2:
            problems.insert(0, f"--max-new-tokens {self.max_new_tokens} must be at least 2.")
        if problems:
            raise OptionError(" ".join(problems))


def below_1(option: str, value: int | None) -> Iterator[str]:
    """Yield the problem of a number that is given and is not at least 1."""
    if value is not None and value < 1:
        yield f"{option} {value} must be at least 1."
