"""evaluate: a candidate against its full-precision self, on the same tokens, against one target."""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quantdraft.acceptance import Replayed, replay_rounds
from quantdraft.benchmark import measure_latency
from quantdraft.capture import capture
from quantdraft.checkpoint import Checkpoint, open_checkpoint, require_tokenizer
from quantdraft.errors import CheckpointError, OptionError, OutputExistsError, TrafficError
from quantdraft.judgement import Measurements, judged
from quantdraft.ledger import byte_ledger, ledger_summary
from quantdraft.live import live_keep, run_live
from quantdraft.models import load_model, load_tokenizer, pick_device, pick_dtype, resolve_model
from quantdraft.pairing import require_compatible
from quantdraft.progress import bar
from quantdraft.proof import claims_but_not_quantized, probe_logits
from quantdraft.provenance import environment, model_identity
from quantdraft.replay import keep_probabilities
from quantdraft.report import write_report
from quantdraft.results import (
    AcceptanceRule,
    Evaluation,
    Latency,
    LiveCheck,
    write_evaluation,
)
from quantdraft.stages import STAGES_DIR, stage
from quantdraft.traffic import Sampling, Traffic, read_traffic
from quantdraft.unpacking import rounds_activations
from quantdraft.verdict import load_policy

RECORD_FILE = "evaluation.json"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user asked for; names and defaults are the command line's."""

    candidate: str
    ks: tuple[int, ...] = tuple(range(1, 17))
    target: str | None = None
    baseline: str | None = None
    traffic_path: Path | None = None
    prompts: Path | None = None
    output: Path | None = None
    acceptance_rule: AcceptanceRule | None = None
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    batch_size: int = 1
    context_length: int | None = None
    latency_seconds: float = 20.0
    no_latency: bool = False
    live_prompts: int = 4
    policy: Path | None = None
    device: str | None = None
    dtype: str = "auto"
    threads: int | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class Models:
    """The opened checkpoints; `target` is None when only its traffic is at hand."""

    target: Checkpoint | None
    baseline: Checkpoint
    candidate: Checkpoint


def evaluate(settings: Settings) -> tuple[Evaluation, Path]:
    """Measure, decide, and write the run directory; returns the record and where it lies.

    Parts that a killed run with the same settings had finished are not computed again.
    """
    _check_settings(settings)
    device, models = pick_device(settings.device), _open_models(settings)
    policy = load_policy(settings.policy)
    run_dir = _open_run(settings, models.candidate)
    traffic = _traffic(settings, models, run_dir)
    rule = settings.acceptance_rule or default_rule(traffic)
    _say(f"{len(traffic.responses)} responses, {traffic.num_tokens} tokens, rule {rule}")

    work = _Work(settings, models, traffic, rule, device, run_dir)
    keeps = {arm: work.keep(arm) for arm in ("baseline", "candidate")}
    false_claim = claims_but_not_quantized(models.candidate)
    measured = Measurements(
        name=_name(models.candidate),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        rule=rule,
        ks=settings.ks,
        keeps=keeps,
        traffic=traffic,
        latency=work.latency(),
        live=work.live(keeps),
        is_control=models.candidate.quantization is None,
        not_quantized=false_claim,
        has_identical_logits=None if false_claim else work.has_identical_logits(),
        ledger=ledger_summary(
            byte_ledger(models.baseline),
            byte_ledger(models.candidate),
            context_length=work.context_length,
        ),
        provenance=_provenance(settings, models, traffic, device),
        seed=settings.seed,
    )
    evaluation = judged(measured, policy)
    write_evaluation(evaluation, run_dir / RECORD_FILE)
    write_report(evaluation, run_dir)
    return evaluation, run_dir


def default_rule(traffic: Traffic) -> AcceptanceRule:
    """Greedy traffic: greedy. Drawn or unknown: the engines' default, a draft that argmaxes."""
    is_greedy = traffic.sampling is not None and traffic.sampling.is_greedy
    return "greedy" if is_greedy else "greedy_draft"


@dataclass(frozen=True, slots=True)
class _Work:
    """The measurements of one run, each kept as a stage when it is done."""

    settings: Settings
    models: Models
    traffic: Traffic
    rule: AcceptanceRule
    device: torch.device
    run_dir: Path

    @property
    def dtype(self) -> torch.dtype:
        return pick_dtype(self.settings.dtype, self.device)

    def keep(self, arm: str) -> list[NDArray[np.float64]]:
        """Keep probabilities of every response token under one draft; one model in memory."""
        checkpoint: Checkpoint = getattr(self.models, arm)

        def compute() -> list[list[float]]:
            draft = self._load(checkpoint)
            with bar(len(self.traffic.responses), f"replay {arm}", "prompt") as progress:
                kept = keep_probabilities(draft, self.traffic, self.rule, progress)
            return [values.tolist() for values in kept]

        kept = stage(self.run_dir, f"keep-{arm}", self._inputs(arm), list[list[float]], compute)
        return [np.array(values) for values in kept]

    def latency(self) -> Latency:
        """Step times of all arms, or the reason why there are none."""
        target = self.models.target
        if self.settings.no_latency:
            return self._unmeasured("latency was not asked for (--no-latency)")
        if target is None:
            return self._unmeasured("the target is not at hand: give --target to time it")
        inputs = (
            self._inputs("baseline")
            | self._inputs("candidate")
            | {
                "ks": self.settings.ks,
                "batch_size": self.settings.batch_size,
                "context_length": self.context_length,
                "seconds": self.settings.latency_seconds,
                "threads": torch.get_num_threads(),
            }
        )

        def compute() -> Latency:
            with bar(100, "latency", "%") as update:
                done = 0.0

                def progress(share: float) -> None:
                    nonlocal done
                    update(100 * share - done)
                    done = 100 * share

                return measure_latency(
                    target,
                    self.models.baseline,
                    self.models.candidate,
                    ks=self.settings.ks,
                    batch_size=self.settings.batch_size,
                    context_length=self.context_length,
                    device=self.device,
                    max_seconds=self.settings.latency_seconds,
                    progress=progress,
                )

        return stage(self.run_dir, "latency", inputs, Latency, compute)

    def live(self, keeps: dict[str, list[NDArray[np.float64]]]) -> tuple[LiveCheck, ...]:
        """The live loop of both arms on the first prompts, as proof of the replay."""
        target, num_prompts = self.models.target, self.settings.live_prompts
        if target is None or num_prompts < 1:
            return ()
        k = _live_k(self.settings.ks)
        inputs = (
            self._inputs("baseline")
            | self._inputs("candidate")
            | {
                "k": k,
                "num_prompts": num_prompts,
                "seed": self.settings.seed,
            }
        )

        def compute() -> list[LiveCheck]:
            loaded = load_model(target.path, self.dtype, self.device)
            return [self._live_arm(loaded, arm, k, keeps[arm]) for arm in ("baseline", "candidate")]

        return tuple(stage(self.run_dir, "live", inputs, list[LiveCheck], compute))

    def has_identical_logits(self) -> bool:
        """True when the candidate's logits on a probe are the baseline's to the last bit."""
        inputs = self._inputs("baseline") | self._inputs("candidate")

        def compute() -> bool:
            baseline, candidate = (
                probe_logits(checkpoint, self.device)
                for checkpoint in (self.models.baseline, self.models.candidate)
            )
            return torch.equal(baseline, candidate)

        return stage(self.run_dir, "probe", inputs, bool, compute)

    def _live_arm(
        self, target: Any, arm: str, k: int, keep: list[NDArray[np.float64]]
    ) -> LiveCheck:
        checkpoint: Checkpoint = getattr(self.models, arm)
        draft = self._load(checkpoint)
        num_prompts = min(self.settings.live_prompts, len(self.traffic.responses))
        some = replace(self.traffic, responses=self.traffic.responses[:num_prompts])
        sampling = self.traffic.sampling or Sampling()
        with bar(num_prompts, f"live loop {arm}", "prompt") as progress:
            prompts = run_live(
                target,
                draft,
                some,
                num_speculative_tokens=k,
                rule=self.rule,
                seed=self.settings.seed,
                progress=progress,
            )
        is_drawn = not sampling.is_greedy
        if is_drawn:
            keep = live_keep(target, draft, prompts, self.rule, sampling)
        counted = [i for i, p in enumerate(prompts) if p.text in ("identical", "sampled")]
        replayed = _rounds(some, counted, keep, k)
        texts = [prompt.text for prompt in prompts]
        return LiveCheck(
            num_speculative_tokens=k,
            arm=arm,
            prompt_ids=tuple(some.responses[i].prompt_id for i in counted),
            num_drafts_live=tuple(float(prompts[i].run.num_drafts) for i in counted),
            num_drafts_replayed=replayed,
            num_identical_texts=texts.count("identical"),
            num_near_ties=texts.count("near-tie"),
            num_divergent=texts.count("divergent"),
            is_expectation=is_drawn,
            is_exact=self.dtype == torch.float32 and not rounds_activations(checkpoint),
        )

    def _load(self, checkpoint: Checkpoint) -> Any:
        """A checkpoint with a false claim is read as what it holds; the verdict has the alarm."""
        is_false = claims_but_not_quantized(checkpoint) is not None
        return load_model(checkpoint.path, self.dtype, self.device, ignore_quantization=is_false)

    def _unmeasured(self, reason: str) -> Latency:
        return Latency(
            engine="native",
            device=str(self.device),
            num_threads=torch.get_num_threads(),
            batch_size=self.settings.batch_size,
            context_length=self.context_length,
            arms={},
            undefined=dict.fromkeys(("baseline", "candidate", "control", "target"), reason),
        )

    @property
    def context_length(self) -> int:
        """The user's, or the middle of the traffic's own contexts: half of a response is behind."""
        if self.settings.context_length is not None:
            return self.settings.context_length
        lengths = [
            len(r.prompt_token_ids) + len(r.response_token_ids) // 2 for r in self.traffic.responses
        ]
        return int(np.median(lengths))

    def _inputs(self, arm: str) -> dict[str, Any]:
        identity = model_identity(getattr(self.models, arm))
        target = self.models.target
        return {
            arm: identity["sha256"],
            "target": None if target is None else model_identity(target)["sha256"],
            "traffic": self.traffic.sha256,
            "rule": self.rule,
            "dtype": str(self.dtype),
            "device": str(self.device),
        }


def _rounds(
    traffic: Traffic, counted: list[int], keep: list[NDArray[np.float64]], k: int
) -> tuple[float, ...]:
    if not counted:
        return ()
    ids = [traffic.responses[i].prompt_id for i in counted]
    replayed: Replayed = replay_rounds(ids, [keep[i] for i in counted], [k])
    return tuple(replayed.num_drafts[0].tolist())


def _live_k(ks: tuple[int, ...]) -> int:
    """One k is proof enough, replay being exact for each: the largest up to 4."""
    small = [k for k in ks if k <= 4]
    return max(small) if small else min(ks)


def _check_settings(settings: Settings) -> None:
    if (settings.traffic_path is None) == (settings.prompts is None):
        raise OptionError(
            "give either --traffic (from `quantdraft capture`, or a log) or --prompts."
        )
    if settings.prompts is not None and settings.target is None:
        raise OptionError("--prompts needs --target: it is the target that answers them.")
    for name in ("batch_size", "context_length", "max_new_tokens", "threads"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise OptionError(f"--{name.replace('_', '-')} {value} must be at least 1.")
    if settings.latency_seconds <= 0:
        raise OptionError(f"--latency-seconds {settings.latency_seconds} must be above 0.")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)


def _open_models(settings: Settings) -> Models:
    candidate = open_checkpoint(resolve_model(settings.candidate))
    require_tokenizer(candidate)
    baseline = open_checkpoint(resolve_model(settings.baseline or _source_of(candidate)))
    require_compatible(baseline.path, candidate.path)
    target = None
    if settings.target is not None:
        target = open_checkpoint(resolve_model(settings.target))
        require_compatible(target.path, candidate.path)
    return Models(target, baseline, candidate)


def _source_of(candidate: Checkpoint) -> str:
    draft = (candidate.manifest or {}).get("draft", {})
    if not draft:
        raise OptionError(
            f"'{candidate.path}' does not say which draft it was made from. Give --baseline."
        )
    if Path(draft["path"]).is_dir():
        return str(draft["path"])
    if Path(draft["name"]).is_absolute() or draft["name"].startswith("."):
        raise CheckpointError(
            f"the draft '{draft['path']}', from which '{candidate.path}' was made, is gone. "
            "Give --baseline."
        )
    return str(draft["name"])


def _name(candidate: Checkpoint) -> str:
    recipe = (candidate.manifest or {}).get("recipe", {})
    return str(recipe.get("name") or candidate.name)


def _open_run(settings: Settings, candidate: Checkpoint) -> Path:
    run_dir = settings.output or Path("runs") / candidate.name
    if (run_dir / RECORD_FILE).exists():
        if not settings.force:
            raise OutputExistsError(
                f"'{run_dir}' holds a finished run. Give another --output, or --force to replace "
                "it; `quantdraft report` shows it."
            )
        shutil.rmtree(run_dir / STAGES_DIR, ignore_errors=True)
    run_dir.mkdir(parents=True, exist_ok=True)
    return run_dir


def _traffic(settings: Settings, models: Models, run_dir: Path) -> Traffic:
    if settings.traffic_path is not None:
        tokenizer = load_tokenizer((models.target or models.candidate).path)
        return _usable(read_traffic(settings.traffic_path, tokenizer), models)
    assert settings.prompts is not None
    assert models.target is not None
    path = run_dir / "traffic.jsonl"
    if path.exists() and not settings.force:
        return _usable(read_traffic(path), models)
    sampling = Sampling(settings.temperature, settings.top_p, settings.top_k, settings.seed)
    return _usable(
        capture(
            str(models.target.path),
            settings.prompts,
            path,
            sampling=sampling,
            max_new_tokens=settings.max_new_tokens,
            device=settings.device,
            dtype=settings.dtype,
            force=settings.force,
        ),
        models,
    )


def _usable(traffic: Traffic, models: Models) -> Traffic:
    """Refuse ids that the draft lacks; leave out prompts that the recipe was calibrated on."""
    vocab_size = int(models.candidate.text_config["vocab_size"])
    for response in traffic.responses:
        largest = max(*response.prompt_token_ids, *response.response_token_ids)
        if largest >= vocab_size:
            raise TrafficError(
                f"prompt {response.prompt_id!r} has token id {largest}, but the draft's vocabulary "
                f"ends at {vocab_size - 1}: the traffic is of another tokenizer."
            )
    for reason in traffic.skipped:
        _say(f"left out: {reason}")
    return _without_calibration(traffic, models.candidate)


def _without_calibration(traffic: Traffic, candidate: Checkpoint) -> Traffic:
    """The recipe has seen these responses: on them the candidate looks better than it is."""
    seen = (candidate.manifest or {}).get("calibration") or {}
    if seen.get("sha256") != traffic.sha256:
        return traffic
    ids = set(seen["prompt_ids"])
    kept = tuple(r for r in traffic.responses if r.prompt_id not in ids)
    if not kept:
        raise TrafficError(
            f"'{candidate.path}' was calibrated on all of this traffic. Evaluate on other prompts."
        )
    _say(f"left out: {len(traffic.responses) - len(kept)} prompts that it was calibrated on")
    return replace(traffic, responses=kept)


def _provenance(
    settings: Settings, models: Models, traffic: Traffic, device: torch.device
) -> dict[str, Any]:
    given = {
        "target": settings.target,
        "baseline": settings.baseline,
        "candidate": settings.candidate,
    }
    identities = {
        arm: None if checkpoint is None else model_identity(checkpoint, given[arm])
        for arm, checkpoint in (
            ("target", models.target),
            ("baseline", models.baseline),
            ("candidate", models.candidate),
        )
    }
    source = settings.traffic_path or settings.prompts
    return {
        **environment(str(device)),
        **identities,
        "command": shlex.join(["quantdraft", *sys.argv[1:]]),
        "compute_dtype": str(pick_dtype(settings.dtype, device)).removeprefix("torch."),
        "traffic": {
            "path": str(source),
            "sha256": traffic.sha256,
            "num_prompts": len(traffic.responses),
            "num_tokens": traffic.num_tokens,
            "sampling": None if traffic.sampling is None else asdict(traffic.sampling),
            "target": traffic.target,
        },
        "seeds": {"bootstrap": settings.seed, "live": settings.seed},
    }


def _say(message: str) -> None:
    print(message, file=sys.stderr)
