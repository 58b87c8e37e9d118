"""What an evaluation is given: settings, the opened models, and the traffic they are judged on."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from quantdraft.checkpoints.checkpoint import Checkpoint, open_checkpoint, require_tokenizer
from quantdraft.checkpoints.configs import num_positions
from quantdraft.checkpoints.heads import require_draft_model
from quantdraft.checkpoints.pairing import require_compatible
from quantdraft.checkpoints.tensors.loading import load_tokenizer, resolve_model
from quantdraft.common.locks import sole_writer
from quantdraft.common.progress import aside
from quantdraft.errors import CheckpointError, OptionError, OutputExistsError, TrafficError
from quantdraft.measure.capture import capture, has_captured
from quantdraft.record import AcceptanceRule
from quantdraft.record.terms import ALL_KS
from quantdraft.record.wording import counted
from quantdraft.traffic.jsonl import pick_items
from quantdraft.traffic.traffic import Sampling, Traffic, read_traffic, token_counts

# How steps run: the engine's modes, or the one that a trial finds fastest.
ModeChoice = Literal["auto", "eager", "fused", "compiled", "graph"]
TRAFFIC_FILE = "traffic.jsonl"  # what was captured for a run, in its directory

VLLM_COUNTS = ("vllm_prompts", "vllm_k", "vllm_loads")
AT_LEAST_1 = ("batch_size", "context_length", "max_new_tokens", "threads", *VLLM_COUNTS)
FOR_VLLM = ("vllm_python", "vllm_url", "vllm_spec", "vllm_args", *VLLM_COUNTS)
SAMPLING = ("temperature", "top_p", "top_k")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user asked for; names and defaults are the command line's."""

    candidate: str
    ks: tuple[int, ...] = ALL_KS
    target: str | None = None
    baseline: str | None = None
    traffic_path: Path | None = None
    prompts: Path | None = None
    output: Path | None = None
    acceptance_rule: AcceptanceRule | None = None
    max_new_tokens: int = 128
    # With prompts: how they are answered, None: greedily. With traffic: how a log was sampled.
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int = 0
    batch_size: int = 1
    context_length: int | None = None
    batch_sizes: tuple[int, ...] | None = None  # timed too, with every one of context_lengths
    context_lengths: tuple[int, ...] | None = None
    latency_seconds: float = 20.0
    mode: ModeChoice = "auto"
    no_latency: bool = False
    live_prompts: int = 4
    policy: Path | None = None
    device: str | None = None
    dtype: str = "auto"
    threads: int | None = None
    force: bool = False
    engine: Literal["native", "vllm"] = "native"
    vllm_python: Path | None = None
    vllm_url: tuple[str, ...] = ()
    vllm_spec: tuple[str, ...] = ()
    vllm_args: tuple[str, ...] = ()
    vllm_prompts: int | None = None
    vllm_k: int | None = None  # the one k that is served; None: the nearest of `ks` to 4
    vllm_loads: int | None = None  # starts of each arm's server; None: 2
    shared_stages: Path | None = None  # where runs of one sweep share the baseline's replay


@dataclass(frozen=True, slots=True)
class Models:
    """The opened checkpoints; `target` is None when only its traffic is at hand."""

    target: Checkpoint | None
    baseline: Checkpoint
    candidate: Checkpoint


def check_settings(settings: Settings) -> None:
    """Raise OptionError for settings that cannot be used together."""
    if (settings.traffic_path is None) == (settings.prompts is None):
        raise OptionError(
            "give either --traffic (from `quantdraft capture`, or a log) or --prompts."
        )
    if settings.prompts is not None and settings.target is None:
        raise OptionError("--prompts needs --target: it is the target that answers them.")
    _check_engine(settings)
    for name in AT_LEAST_1:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise OptionError(f"{option_name(name)} {value} must be at least 1.")
    if settings.latency_seconds <= 0:
        raise OptionError(f"--latency-seconds {settings.latency_seconds} must be above 0.")


def _check_engine(settings: Settings) -> None:
    """What only vLLM reads needs vLLM; what vLLM cannot do is refused."""
    given = [option_name(name) for name in FOR_VLLM if getattr(settings, name)]
    if settings.engine != "vllm":
        if given:
            raise OptionError(f"{given[0]} needs --engine vllm.")
        return
    if settings.target is None:
        raise OptionError("--engine vllm needs --target: it is what the engine serves.")
    if settings.batch_size != 1:
        raise OptionError(
            f"--batch-size {settings.batch_size}: requests are sent to vLLM one at a time, so that "
            "its counters are each prompt's own. Leave it out."
        )
    if settings.vllm_url and (settings.vllm_python or settings.vllm_spec or settings.vllm_args):
        raise OptionError("--vllm-url names servers that run: they have their own settings.")
    if settings.vllm_url and settings.vllm_loads:
        raise OptionError("--vllm-loads: servers that run are not started again. Leave it out.")
    if settings.vllm_k is not None and settings.vllm_k not in settings.ks:
        raise OptionError(f"--vllm-k {settings.vllm_k} is not replayed. Add it to -k.")


def option_name(name: str) -> str:
    """Return a setting as the command line spells it."""
    return f"--{name.replace('_', '-')}"


def open_models(settings: Settings) -> Models:
    """Open what the settings name; refuse models whose token ids differ."""
    candidate = open_checkpoint(resolve_model(settings.candidate))
    require_draft_model(candidate, "replayed")
    require_tokenizer(candidate)
    baseline = open_checkpoint(resolve_model(settings.baseline or source_of(candidate)))
    require_compatible(baseline.path, candidate.path)
    target = None
    if settings.target is not None:
        target = open_checkpoint(resolve_model(settings.target))
        require_compatible(target.path, candidate.path)
    models = Models(target, baseline, candidate)
    _require_positions(settings, models)
    return models


def _require_positions(settings: Settings, models: Models) -> None:
    """Raise OptionError for a context to time that a model cannot hold."""
    asked = max((settings.context_length or 0, *(settings.context_lengths or ())))
    for model in (models.candidate, models.target):
        positions = None if model is None else num_positions(model.text_config)
        if model is not None and positions is not None and asked >= positions:
            raise OptionError(
                f"--context-length {asked} is too long: '{model.name}' has {positions} positions."
            )


def source_of(candidate: Checkpoint) -> str:
    """The full-precision draft that `apply` made a candidate from, by its manifest."""
    draft = (candidate.manifest or {}).get("draft", {})
    if not draft or not draft.get("path"):
        raise OptionError(
            f"'{candidate.path}' does not say which draft it was made from. Give --baseline."
        )
    if Path(draft["path"]).is_dir():
        return str(draft["path"])
    # Never from the Hub: it is the checkpoint that names the draft, not the user.
    raise CheckpointError(
        f"the draft '{draft['path']}', from which '{candidate.path}' was made, is gone. "
        f"Give --baseline: its directory, or its Hub id ({draft.get('name')!r}, it says)."
    )


def read_run_traffic(settings: Settings, models: Models, run_dir: Path) -> Traffic:
    """The traffic given, or the target's responses to the prompts given, captured once a run."""
    if settings.traffic_path is not None:
        tokenizer = load_tokenizer((models.target or models.candidate).path)
        traffic = read_traffic(settings.traffic_path, tokenizer)
        return _usable(sampled_as_told(traffic, settings), models)
    assert settings.prompts is not None
    assert models.target is not None
    path = run_dir / TRAFFIC_FILE
    sampling = told_sampling(settings)
    if path.exists():
        if has_captured(path, settings.prompts, sampling, settings.max_new_tokens):
            with sole_writer(path):  # and the lock of a capture that was killed at its end is gone
                return _usable(read_traffic(path), models)
        if not settings.force:
            raise OutputExistsError(
                f"'{path}' was captured from other prompts, or in another way. Give another "
                "--output, --force to capture again, or it itself as --traffic."
            )
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


def told_sampling(settings: Settings) -> Sampling:
    """Return the sampling that the settings name; without a word it is greedy, without limits."""
    return Sampling(
        settings.temperature or 0.0,
        1.0 if settings.top_p is None else settings.top_p,
        settings.top_k or 0,
        settings.seed,
    )


def sampled_as_told(traffic: Traffic, settings: Settings) -> Traffic:
    """Return the traffic with the sampling that the user says a log came from.

    Raises OptionError where a header says another, and for a limit without a temperature.
    """
    given = [name for name in SAMPLING if getattr(settings, name) is not None]
    if not given:
        return traffic
    told = told_sampling(settings)
    if traffic.sampling is None:
        if settings.temperature is None:
            raise OptionError(
                f"{option_name(given[0])} alone does not say how the log was sampled. Give "
                "--temperature too."
            )
        return replace(traffic, sampling=told)
    for name in given:
        wanted, found = getattr(told, name), getattr(traffic.sampling, name)
        if wanted != found:
            raise OptionError(
                f"{option_name(name)} {wanted}: '{settings.traffic_path}' says in its header that "
                f"it was sampled with {name} {found}. Leave the option out."
            )
    return traffic


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
        say(f"left out: {reason}")
    fitting = _without_overlong(traffic, models)
    return _without_calibration(_without_repeats(fitting), models.candidate)


def _without_overlong(traffic: Traffic, models: Models) -> Traffic:
    """Beyond its positions no engine runs a model: what it would predict there is no measurement.

    Raises TrafficError where nothing fits.
    """
    limits = [
        (positions, model.name)
        for model in (models.candidate, models.target)
        if model is not None and (positions := num_positions(model.text_config)) is not None
    ]
    if not limits:
        return traffic
    limit, name = min(limits)
    counts = token_counts(traffic.responses)
    kept = np.flatnonzero(counts.prompt + counts.response <= limit).tolist()
    num_overlong = len(traffic.responses) - len(kept)
    if num_overlong == 0:
        return traffic
    words = f"longer, with their prompts, than the {limit} positions of '{name}'"
    if not kept:
        raise TrafficError(f"all responses are {words}. Give shorter ones.")
    say(f"left out: {counted(num_overlong, 'response')} {words}")
    return replace(traffic, responses=pick_items(traffic.responses, kept))


def _without_repeats(traffic: Traffic) -> Traffic:
    """Each pair of prompt and response once: its copies say nothing new, and resampling them as if
    they did would make every interval too narrow.
    """
    seen: set[int] = set()
    kept = []
    for index, response in enumerate(traffic.responses):
        pair = hash((response.prompt_token_ids, response.response_token_ids))
        if pair not in seen:
            seen.add(pair)
            kept.append(index)
    num_copies = len(traffic.responses) - len(kept)
    if num_copies == 0:
        return traffic
    say(f"left out: {num_copies} responses that repeat another to the token")
    return replace(traffic, responses=pick_items(traffic.responses, kept))


def _without_calibration(traffic: Traffic, candidate: Checkpoint) -> Traffic:
    """The recipe has seen these responses: on them the candidate looks better than it is."""
    seen = (candidate.manifest or {}).get("calibration") or {}
    if seen.get("sha256") != traffic.sha256:
        return traffic
    ids = set(seen["prompt_ids"])
    kept = [i for i, r in enumerate(traffic.responses) if r.prompt_id not in ids]
    if not kept:
        raise TrafficError(
            f"'{candidate.path}' was calibrated on all of this traffic. Evaluate on other prompts."
        )
    left_out = counted(len(traffic.responses) - len(kept), "prompt")
    say(f"left out: {left_out} that it was calibrated on")
    return replace(traffic, responses=pick_items(traffic.responses, kept))


def say(message: str) -> None:
    """Tell the user on stderr what stands in no record."""
    with aside():
        print(message, file=sys.stderr)
